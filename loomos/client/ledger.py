"""The SDK's part for events, the ledger and provenance: `client.ledger`, and what it answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.provenance.lineage import Lineage


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class EventRecord(_Answer):
    """An event."""

    position: int
    """Place among all events."""
    event_id: str
    """Unique."""
    stream: str
    """What it is about."""
    version: int
    """Place within the stream."""
    event_type: str
    """What happened."""
    time: datetime
    """When it was logged, by the writer's clock."""
    data: dict[str, Any]
    """Facts. The personal ones only for administrators."""
    by: str | None = None
    """Part of LoomOS that did it; the person only for administrators."""
    is_erased: bool = False
    """Whether personal parts were erased."""


class EventPage(_Answer):
    """Events, oldest first."""

    events: list[EventRecord]
    """Some of them."""
    next_after: int | None = None
    """Give it as `after` for the next ones; none if these are all."""


class LedgerStatus(_Answer):
    """The ledger as a whole."""

    origin: str | None = None
    """Name of the log."""
    size: int
    """Events."""
    signed_size: int
    """Events under the newest checkpoint."""
    root: str | None = None
    """Root hash of the newest checkpoint, base 64."""
    cosigned_by: list[str] = []
    """Witnesses that cosigned it."""
    policy: str
    """C2SP policy that this gateway goes by."""
    is_sequenced: bool
    """Whether a process sequences now."""


class ConsistencyProof(_Answer):
    """Proof that one tree is a prefix of another."""

    old: int
    """Size of the older tree."""
    new: int
    """Size of the newer one."""
    hashes: list[str]
    """RFC 6962 section 2.1.2, base 64."""


class LedgerApi:
    """Reads events and proofs through the gateway."""

    def __init__(self, client: LoomOSClient) -> None:
        self._client = client

    async def status(self) -> LedgerStatus:
        """How far the ledger is."""
        return await self._client.call("GET", "/ledger", LedgerStatus)

    async def events(
        self,
        *,
        event_types: Sequence[str] = (),
        stream: str | None = None,
        after: int = -1,
        limit: int = 100,
        newest_first: bool = False,
    ) -> EventPage:
        """A page of events."""
        query = _query(event_types, stream, after)
        query += [("limit", limit), ("newest_first", str(newest_first).lower())]
        return await self._client.call("GET", "/events", EventPage, params=query)

    async def follow(
        self, *, event_types: Sequence[str] = (), stream: str | None = None, after: int = -1
    ) -> AsyncIterator[EventRecord]:
        """Events as they come, for ever; none left out, none twice, across lost connections."""
        query = [*_query(event_types, stream, after), ("follow", "true")]
        async for kind, data in self._client.stream("/events", query):
            if kind == "event":
                yield EventRecord.model_validate(data)

    async def checkpoint(self, *, cosigned: bool = False) -> str:
        """The newest checkpoint, as text."""
        params = {"cosigned": str(cosigned).lower()}
        return (await self._client.request("GET", "/ledger/checkpoint", params=params)).text

    async def entry(self, position: int) -> bytes:
        """One entry, byte for byte."""
        return (await self._client.request("GET", f"/ledger/entries/{position}")).content

    async def proof(self, position: int) -> str:
        """An offline proof of one entry, as text."""
        return (await self._client.request("GET", f"/ledger/proofs/{position}")).text

    async def consistency(self, old: int, new: int) -> ConsistencyProof:
        """Proof that the first `old` entries are a prefix of the first `new`."""
        params = {"old": old, "new": new}
        return await self._client.call(
            "GET", "/ledger/consistency", ConsistencyProof, params=params
        )

    async def lineage(self, name: str, version: str) -> Lineage:
        """Everything the ledger knows of how a model version was made; not yet verified."""
        from loomos.provenance.lineage import Lineage

        return await self._client.call("GET", f"/provenance/{name}/{version}", Lineage)

    async def export_lineage(self, name: str, version: str, folder: Path) -> Lineage:
        """Write a lineage, its attestations and the model into a folder; then verify it there.

        Raises:
            VerificationFailed: what came does not hold.
        """
        from loomos.provenance import directory
        from loomos.provenance.lineage import attestations_of

        lineage = await self.lineage(name, version)
        directory.write(folder, lineage)
        where = f"/provenance/{name}/{version}/files"
        for file, digest in attestations_of(lineage).items():
            await self._client.download(f"{where}/{file}", digest, folder / file)
        for file, facts in json.loads(lineage.manifest)["files"].items():
            target = folder / "model" / file
            await self._client.download(f"{where}/{file}", facts["sha256"], target)
        return lineage


def _query(
    event_types: Sequence[str], stream: str | None, after: int
) -> list[tuple[str, str | int]]:
    query: list[tuple[str, str | int]] = [("event_type", t) for t in event_types]
    query.append(("after", after))
    if stream is not None:
        query.append(("stream", stream))
    return query
