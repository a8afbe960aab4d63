"""Uploading: files of this machine, content-addressed, in parts, each sent once: `client.data`.

A document may name files by a path. Before it is sent, each path is looked for here, beside the
document first; what is found is uploaded, and the document goes with `upload:SHA256` in its place.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from loomos.client.transport import Transport
from loomos.errors import FieldError, InvalidData, InvalidManifest, Unavailable
from loomos.jobs.uploads import (
    MOST_FILES,
    PART_BYTES,
    UploadAnswer,
    UploadedFile,
    UploadList,
    UploadListing,
    UploadRecord,
    UploadRequest,
)
from loomos.local_files import FoundFile, data_files, model_files
from loomos.manifest import NamedPath, is_explicit, named_paths, path_text

SENT_AT_ONCE = 8
UPLOAD_TIMEOUT_S = 3600.0
MOST_ROUNDS = 10_000

UploadProgress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes that are done, and all bytes."""


class _Piece(NamedTuple):
    """A range of a file that travels as one blob."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class _Prepared(NamedTuple):
    """Files, looked at."""

    listing: UploadListing
    pieces: dict[str, _Piece]


class DataApi:
    """Uploads, through a gateway."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.progress: UploadProgress | None = None
        """Told of uploads, those that documents bring about among them."""

    async def upload(
        self,
        path: str | Path,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        name: str | None = None,
    ) -> UploadRecord:
        """Upload a file, or the data of a folder; what is there already is not sent.

        A cut upload goes on where it was when it is asked for again.

        Args:
            path: file or folder.
            include: globs of what is taken from a folder. Default: every known suffix.
            exclude: globs of what is left out.
            name: what to call it. Default: as the file or folder.

        Raises:
            InvalidData: there is nothing to upload.
            Unavailable: a file changed while it was sent.
        """
        root = _expanded(path)
        found = await asyncio.to_thread(_found, root, include, exclude)
        return await self._send(root, found, name)

    async def upload_model(self, folder: str | Path) -> UploadRecord:
        """Upload a folder that holds a model or a tokenizer.

        Raises:
            InvalidData: there is nothing to upload.
        """
        root = _expanded(folder)
        return await self._send(root, await asyncio.to_thread(model_files, root), None)

    async def list(self) -> UploadList:
        """Your uploads; of everybody, with the scope `admin`."""
        return await self._transport.call("GET", "/uploads", UploadList)

    async def delete(self, reference: str) -> None:
        """Forget an upload, by `upload:SHA256` or its digest; what runs need of it stays.

        Raises:
            NotFound: you have no such upload.
        """
        await self._transport.request("DELETE", f"/uploads/{reference.removeprefix('upload:')}")

    # --- documents ---

    async def carried(
        self, model: type[BaseModel], body: dict[str, Any], folder: Path | None = None
    ) -> dict[str, Any]:
        """A document whose local files are uploaded, with references in their place.

        Args:
            model: what the document is.
            body: the document, as it would be sent.
            folder: where relative paths are looked for first, before the working folder.

        Raises:
            InvalidManifest: relative paths that are not there, each with its field.
        """
        errors: list[FieldError] = []
        changed: list[tuple[NamedPath, str]] = []
        for named in named_paths(model, body):
            try:
                local = await asyncio.to_thread(_located, named, folder or Path())
            except InvalidData as error:
                errors.append(FieldError(path=named.where, message=str(error)))
                continue
            if local is None:
                continue
            if named.kind == "growing":
                changed.append((named, str(local)))
                continue
            try:
                record = await self._upload_named(named, local)
            except InvalidData as error:
                errors.append(FieldError(path=named.where, message=str(error)))
                continue
            changed.append((named, record.reference))
        if errors:
            raise InvalidManifest(errors)
        return _replaced(body, changed)

    async def _upload_named(self, named: NamedPath, local: Path) -> UploadRecord:
        if named.kind == "model":
            return await self.upload_model(local)
        include, exclude = named.beside.get("include"), named.beside.get("exclude") or ()
        if named.kind != "data" or not local.is_dir():  # noqa: ASYNC240
            include, exclude = None, ()
        return await self.upload(local, include=include, exclude=exclude)

    # --- sending ---

    async def _send(self, root: Path, found: Sequence[FoundFile], name: str | None) -> UploadRecord:
        if not found:
            raise InvalidData(f"{root} holds no data; name files by `include`, or another folder")
        if len(found) > MOST_FILES:
            raise InvalidData(
                f"{root} has {len(found):,} files, and at most {MOST_FILES:,} travel; put them "
                "together, or use s3://"
            )
        ready = await asyncio.to_thread(self._prepare, root, found)
        label = name or await asyncio.to_thread(lambda: root.resolve().name) or "data"
        request = UploadRequest(sha256=ready.listing.sha256, name=label[:255])
        sent = 0
        for _ in range(MOST_ROUNDS):
            answer = await self._transport.call(
                "POST",
                "/uploads",
                UploadAnswer,
                json=request.model_dump(),
                headers={"Idempotency-Key": request.sha256},
                timeout=UPLOAD_TIMEOUT_S,
            )
            if answer.upload is not None:
                return answer.upload
            for start in range(0, len(answer.missing), SENT_AT_ONCE):
                some = answer.missing[start : start + SENT_AT_ONCE]
                sizes = await asyncio.gather(*(self._send_blob(d, ready) for d in some))
                sent += sum(sizes)
                self._tell(f"uploading {request.name}", sent, ready.listing.size_bytes)
        raise Unavailable(f"the upload of {request.name} does not come to an end; try again")

    async def _send_blob(self, digest: str, ready: _Prepared) -> int:
        """Send a piece, or the listing itself; the bytes of data in it."""
        if digest == ready.listing.sha256:
            await self._put(digest, ready.listing.encode())
            return 0
        piece = ready.pieces.get(digest)
        if piece is None:
            raise Unavailable(
                f"the gateway asks for {digest[:12]}, which is not part of the upload"
            )
        content = await asyncio.to_thread(piece.read)
        if hashlib.sha256(content).hexdigest() != digest:
            raise Unavailable(f"{piece.path} changed while it was sent; try again")
        await self._put(digest, content)
        return piece.size

    async def _put(self, digest: str, content: bytes) -> None:
        await self._transport.request(
            "PUT",
            f"/blobs/{digest}",
            content=content,
            headers={"Idempotency-Key": digest},
            timeout=UPLOAD_TIMEOUT_S,
        )

    def _prepare(self, root: Path, found: Sequence[FoundFile]) -> _Prepared:
        """Digests of files and parts; reads everything once."""
        files: list[UploadedFile] = []
        pieces: dict[str, _Piece] = {}
        total, done = sum(file.path.stat().st_size for file in found), 0
        for name, path in found:
            whole, parts, offset = hashlib.sha256(), [], 0
            with path.open("rb") as file:
                while content := file.read(PART_BYTES):
                    whole.update(content)
                    digest = hashlib.sha256(content).hexdigest()
                    pieces[digest] = _Piece(path, offset, len(content))
                    parts.append(digest)
                    offset += len(content)
                    done += len(content)
                    self._tell(f"looking at {root.name}", done, total)
            if not parts:
                pieces[whole.hexdigest()] = _Piece(path, 0, 0)
            files.append(
                UploadedFile(
                    path=name,
                    sha256=whole.hexdigest(),
                    size_bytes=offset,
                    parts=parts if len(parts) > 1 else [],
                )
            )
        return _Prepared(UploadListing(is_folder=root.is_dir(), files=files), pieces)

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


def _expanded(path: str | Path) -> Path:
    return Path(path).expanduser()


def _found(root: Path, include: Sequence[str] | None, exclude: Sequence[str]) -> list[FoundFile]:
    if root.is_file():
        return [FoundFile(root.name, root)]
    if not root.is_dir():
        raise InvalidData(f"{root} is not there")
    return list(data_files(root, include, exclude))


def _located(named: NamedPath, folder: Path) -> Path | None:
    """Where a named file is on this machine; None for what the other side may know.

    Raises:
        InvalidData: it is relative, and nowhere here.
    """
    text = path_text(named.value, named.kind)
    if text is None:
        return None
    path = Path(text).expanduser()
    candidates = [path] if path.is_absolute() else [folder / path, Path() / path]
    for candidate in candidates:
        if _fits(candidate, named.kind):
            return candidate.absolute()
    if path.is_absolute() or (named.kind == "model" and not is_explicit(text)):
        return None
    places = " nor ".join(dict.fromkeys(str(c.parent.absolute()) for c in candidates))
    raise InvalidData(f"{text!r} is not in {places}; write where it is")


def _fits(path: Path, kind: str) -> bool:
    if kind == "data":
        return path.exists()
    return path.is_dir() if kind == "model" else path.is_file()


def _replaced(body: Mapping[str, Any], changed: Sequence[tuple[NamedPath, str]]) -> dict[str, Any]:
    """The document with other values in some places; the rest is shared, nothing is altered."""
    result: Any = dict(body)
    for named, value in changed:
        place = result
        for key in named.field[:-1]:
            inner = place[key]
            place[key] = list(inner) if isinstance(inner, list) else dict(inner)
            place = place[key]
        place[named.field[-1]] = value
    document: dict[str, Any] = result
    return document
