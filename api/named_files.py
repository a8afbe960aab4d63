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
    for each in named:
        try:
            _check(each, parts)
        except (InvalidData, InvalidInput) as error:
            found.append(FieldError(path=each.where, message=str(error)))
    return found


def _check(named: NamedPath, parts: Gateway) -> None:
    digest = upload_digest(named.value)
    if digest is not None:
        _check_upload(parts.store, digest)
        return
    text = path_text(named.value, named.kind)
    if text is None or (named.kind == "model" and not is_explicit(text)):
        return
    parts.reach.open(text, named.where.rpartition(".")[2])


def _check_upload(store: Store, digest: str) -> None:
    read_listing(store, digest)
    touch_upload(store, digest)
