"""Documents name files: what they may name is decided before anything starts."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel

from api.context import Gateway
from loomos.errors import FieldError, InvalidData, InvalidInput, InvalidManifest
from loomos.manifest import NamedPath, is_explicit, named_paths, path_text
from loomos.storage import Store
from loomos.storage.uploads import read_listing, touch_upload, upload_digest


async def check_named_files(document: BaseModel, parts: Gateway) -> None:
    """Refuse a document that names files which it may not, or uploads that are not there.

    Raises:
        InvalidManifest: with every such field.
    """
    content: dict[str, Any] = document.model_dump(mode="json", exclude_unset=True)
    named = list(named_paths(type(document), content))
    if not named:
        return
    errors = await asyncio.to_thread(_errors, named, parts)
    if errors:
        raise InvalidManifest(errors, "request")


def _errors(named: list[NamedPath], parts: Gateway) -> list[FieldError]:
    found: list[FieldError] = []
    faults = _upload_faults({upload_digest(each.value) for each in named}, parts.store)
    for each in named:
        digest = upload_digest(each.value)
        if digest is not None and digest in faults:
            found.append(FieldError(path=each.where, message=faults[digest]))
        try:
            _check_path(each, parts)
        except (InvalidData, InvalidInput) as error:
            found.append(FieldError(path=each.where, message=str(error)))
    return found


def _upload_faults(digests: set[str | None], store: Store) -> dict[str, str]:
    """What is wrong with uploads; each is read once, however often a document names it."""
    found: dict[str, str] = {}
    for digest in filter(None, digests):
        try:
            read_listing(store, digest)
            touch_upload(store, digest)
        except (InvalidData, InvalidInput) as error:
            found[digest] = str(error)
    return found


def _check_path(named: NamedPath, parts: Gateway) -> None:
    text = path_text(named.value, named.kind)
    if text is None or (named.kind == "model" and not is_explicit(text)):
        return
    parts.reach.open(text, named.where.rpartition(".")[2])
