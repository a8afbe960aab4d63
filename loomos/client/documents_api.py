"""Workflows that a document starts, over HTTP."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel

from loomos.client.transport import Transport
from loomos.client.uploads import DataApi
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

    def __init__(self, transport: Transport, data: DataApi | None = None) -> None:
        self._transport = transport
        self._data = data or DataApi(transport)

    async def start(
        self,
        document: DocumentT,
        *,
        idempotency_key: str | None = None,
        folder: Path | None = None,
    ) -> StatusT:
        """Upload the files that a document names, and start one.

        A key is made up if none is given, so that a retry after a lost answer starts once.

        Args:
            document: what is to be done.
            idempotency_key: the same key and document start one, once.
            folder: where relative paths are looked for first. Default: the working folder.

        Raises:
            Conflict: the key was used for another document.
        """
        body = document.model_dump(mode="json", exclude_unset=True)
        return await self._transport.call(
            "POST",
            self.path,
            self.status,
            json=await self._data.carried(type(document), body, folder),
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

    async def delete(self, document_id: str) -> None:
        """Forget one that has ended, with the jobs and trials that it started; models stay.

        Raises:
            Conflict: it has not ended.
        """
        await self._transport.request("DELETE", f"{self.path}/{document_id}")

    async def list(self) -> ListT:
        """The newest."""
        return await self._transport.call("GET", self.path, self.page)
