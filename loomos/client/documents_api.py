"""Workflows that a document starts, over HTTP."""

from __future__ import annotations

import uuid
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel

from loomos.client.transport import Transport
from loomos.manifest import Document

DocumentT = TypeVar("DocumentT", bound=Document)
StatusT = TypeVar("StatusT", bound=BaseModel)
ListT = TypeVar("ListT", bound=BaseModel)


class DocumentsApi(Generic[DocumentT, StatusT, ListT]):
    """What can be done with all of one kind."""

    path: ClassVar[str]
    """Below the API's root."""
    status: type[StatusT]
    """What tells where one is."""
    page: type[ListT]
    """What lists them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def start(self, document: DocumentT, *, idempotency_key: str | None = None) -> StatusT:
        """Start one.

        A key is made up if none is given, so that a retry after a lost answer starts once.

        Raises:
            Conflict: the key was used for another document.
        """
        return await self._transport.call(
            "POST",
            self.path,
            self.status,
            json=document.model_dump(mode="json", exclude_unset=True),
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )

    async def get(self, document_id: str) -> StatusT:
        """Where one is.

        Raises:
            NotFound: there is none of this id.
        """
        return await self._transport.call("GET", f"{self.path}/{document_id}", self.status)

    async def cancel(self, document_id: str) -> StatusT:
        """End one, and what it runs.

        Raises:
            Conflict: it has ended.
        """
        return await self._transport.call("POST", f"{self.path}/{document_id}/cancel", self.status)

    async def list(self) -> ListT:
        """The newest."""
        return await self._transport.call("GET", self.path, self.page)
