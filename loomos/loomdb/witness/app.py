"""The witness's HTTP interface (C2SP tlog-witness), with its prescribed status codes."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request, Response

from loomos.errors import NotFound
from loomos.loomdb.errors import FormatInvalid, HistoryChanged, ProofInvalid, SignatureInvalid
from loomos.loomdb.witness.request import decode_request
from loomos.loomdb.witness.store import StaleSize, Witness

LARGEST_BODY_BYTES = 1 << 18
STATUS: dict[type[Exception], int] = {
    NotFound: 404,
    SignatureInvalid: 403,
    FormatInvalid: 400,
    HistoryChanged: 409,
    ProofInvalid: 422,
}


def create_app(witness: Witness) -> FastAPI:
    """The witness as an ASGI application."""
    app = FastAPI(title="LoomOS witness", openapi_url=None)

    @app.post("/add-checkpoint")
    async def add_checkpoint(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY_BYTES:
                return _text("the request is too large", 400)
        try:
            old_size, proof, note = decode_request(body)
            signatures = await asyncio.to_thread(witness.add_checkpoint, old_size, proof, note)
        except StaleSize as stale:
            return Response(f"{stale.size}\n", 409, headers={"Content-Type": "text/x.tlog.size"})
        except tuple(STATUS) as error:
            return _text(str(error), STATUS[type(error)])
        return _text("".join(signature.line() for signature in signatures), 200)

    @app.get("/checkpoint")
    async def checkpoint(origin: str) -> Response:
        """The newest checkpoint cosigned for a log; what auditors compare with."""
        try:
            note = await asyncio.to_thread(witness.newest, origin)
        except NotFound as error:
            return _text(str(error), 404)
        return _text(note.encode(), 200)

    return app


def _text(content: str, status: int) -> Response:
    ending = "" if content.endswith("\n") else "\n"
    return Response(content + ending, status, media_type="text/plain; charset=utf-8")
