"""What the SDK's transport sends: files piece by piece, and again from their beginning."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import httpx

from loomos.client.http import LoomOSClient
from loomos.client.transport import PIECE_BYTES
from loomos.storage import file_sha256

SIZE = 48 * PIECE_BYTES


class Gateway(httpx.AsyncBaseTransport):
    """Takes blobs; the first try of each meets a gateway that is just going away."""

    def __init__(self) -> None:
        self.blobs: dict[str, str] = {}
        self.lengths: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if request.method == "HEAD":
            return httpx.Response(404)
        digest = hashlib.sha256()
        async for piece in request.stream:  # type: ignore[union-attr]
            digest.update(piece)
            if len(self.lengths) == 0:
                self.lengths.append("cut")
                return httpx.Response(503)
        self.lengths.append(request.headers["Content-Length"])
        self.blobs[name] = digest.hexdigest()
        return httpx.Response(204)


async def test_a_file_travels_in_pieces_and_again_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.write(b"head")
        file.truncate(SIZE)
    digest, gateway = file_sha256(path), Gateway()
    async with LoomOSClient("http://gateway", "token", transport=gateway) as client:
        tracemalloc.start()
        await client.send_file(f"/blobs/{digest}", path, key=digest, timeout_s=60)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert gateway.blobs == {digest: digest}
    assert gateway.lengths == ["cut", str(SIZE)]
    assert peak < 8 * PIECE_BYTES
