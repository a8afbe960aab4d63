"""Events, the ledger over them, and where models come from."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import AfterValidator

from api.bodies import Route
from api.context import Gateway, Parts, Reader
from api.problems import problem_responses
from api.stream import event as sse_event
from api.stream import sse
from loomos.client.ledger import ConsistencyProof, EventPage, EventRecord, LedgerStatus
from loomos.errors import InvalidInput, NotFound, Unavailable
from loomos.loomdb import AuditContext, Event, Service
from loomos.loomdb.checkpoints import Checkpoint
from loomos.loomdb.events import check_name
from loomos.provenance.attestation import BOM_FILE, SIGNATURE_FILE, STATEMENT_FILE
from loomos.provenance.lineage import PUBLISHED, Lineage, LineageFact, stream_of
from loomos.security.tokens import Identity
from loomos.storage.layout import attestation_key, model_prefix

router = APIRouter(route_class=Route, prefix="/api/v1", tags=["ledger"])

MOST_FACTS = 10_000
SIGNING_PATIENCE_S = 10.0
KEEP_ALIVE_S = 15.0
ATTESTATIONS = (STATEMENT_FILE, SIGNATURE_FILE, BOM_FILE)
LARGEST = 2**62


def _in_utc(moment: datetime) -> datetime:
    """The same moment in UTC; near the ends of the calendar there may be none."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("no moment of the calendar in UTC; give a year from 2 to 9998") from None


Moment = Annotated[datetime, AfterValidator(_in_utc)]
Position = Annotated[int, Path(ge=0, le=LARGEST)]
Size = Annotated[int, Query(ge=0, le=LARGEST)]
Name = Annotated[str, Path(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}, "application/json": {}}}
}


# --- events -------------------------------------------------------------------------------------


@router.get("/events", responses={**problem_responses(), **STREAM}, response_model=EventPage)
async def list_events(
    parts: Parts,
    who: Reader,
    event_type: Annotated[list[str] | None, Query(max_length=50)] = None,
    stream: Annotated[str | None, Query(max_length=200)] = None,
    start_time: Annotated[Moment | None, Query(description="Logged then or later.")] = None,
    end_time: Annotated[Moment | None, Query(description="Logged before.")] = None,
    after: Annotated[int, Query(ge=-1, le=LARGEST, description="Behind this position.")] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    newest_first: Annotated[bool, Query(description="From the end.")] = False,
    follow: Annotated[bool, Query(description="Server-sent events, for ever.")] = False,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> EventPage | StreamingResponse:
    """Events in the ledger's order; followed, none is left out and none comes twice."""
    if stream is not None:
        check_name("stream", stream)
    if follow:
        if last_event_id and last_event_id.isascii() and last_event_id.isdigit():
            after = min(int(last_event_id), LARGEST)
        return sse(_follow(parts, who, event_type, stream, after))
    found = await parts.db.query_events(
        event_type=event_type,
        stream=stream,
        start_time=start_time,
        end_time=end_time,
        after=after,
        limit=limit,
        newest_first=newest_first,
    )
    more = len(found) == limit and not newest_first
    return EventPage(
        events=[_record(e, who) for e in found], next_after=found[-1].position if more else None
    )


async def _follow(
    parts: Gateway, who: Identity, event_types: list[str] | None, stream: str | None, after: int
) -> AsyncIterator[str]:
    events = parts.db.stream_events(event_types, after=after, stream=stream)
    upcoming: asyncio.Task[Event] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([upcoming], timeout=KEEP_ALIVE_S)
            if not done:
                yield ": alive\n\n"
                continue
            found, upcoming = upcoming.result(), None
            yield sse_event(
                "event", _record(found, who).model_dump(mode="json"), str(found.position)
            )
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.wait([upcoming])
        await events.aclose()


def _record(event: Event, who: Identity) -> EventRecord:
    """An event as this reader may see it: persons are for administrators."""
    by = None
    data = event.data
    if isinstance(event.context, Service):
        by = event.context.name
    elif isinstance(event.context, AuditContext):
        if who.allows("admin"):
            by = event.context.user_id
        else:
            public = json.loads(event.entry)["data"]
            data = {name: value for name, value in data.items() if name in public}
    return EventRecord(
        position=event.position,
        event_id=event.event_id,
        stream=event.stream,
        version=event.version,
        event_type=event.event_type,
        time=event.time,
        data=data,
        by=by,
        is_erased=event.is_erased,
    )


# --- the ledger ---------------------------------------------------------------------------------


@router.get("/ledger", responses=problem_responses())
async def get_ledger(parts: Parts, who: Reader) -> LedgerStatus:
    """How far the ledger is, and whom to trust about it."""
    note = await parts.db.ledger.checkpoint()
    checkpoint = Checkpoint.parse_text(note.text) if note else None
    return LedgerStatus(
        origin=checkpoint.origin if checkpoint else None,
        size=await parts.db.size(),
        signed_size=checkpoint.size if checkpoint else 0,
        root=base64.b64encode(checkpoint.root).decode() if checkpoint else None,
        cosigned_by=sorted(parts.policy.cosigned_by(note)) if note else [],
        policy=parts.policy.encode(),
        is_sequenced=await parts.db.is_sequenced(),
    )


@router.get(
    "/ledger/checkpoint",
    responses={**problem_responses(404), **TEXT},
    response_class=PlainTextResponse,
)
async def get_checkpoint(
    parts: Parts,
    who: Reader,
    cosigned: Annotated[
        bool, Query(description="The newest that enough witnesses cosigned.")
    ] = False,
) -> PlainTextResponse:
    """The newest checkpoint, a C2SP tlog-checkpoint."""
    note = await parts.db.ledger.checkpoint(parts.policy if cosigned else None)
    if note is None:
        raise NotFound("no checkpoint has been signed yet")
    return PlainTextResponse(note.encode())


@router.get("/ledger/entries/{position}", responses=problem_responses(404))
async def get_entry(position: Position, parts: Parts, who: Reader) -> Response:
    """One entry, byte for byte as it was hashed."""
    found = await parts.db.event_at(position)
    return Response(found.entry, media_type="application/json")


@router.get(
    "/ledger/proofs/{position}",
    responses={**problem_responses(404), **TEXT},
    response_class=PlainTextResponse,
)
async def get_proof(position: Position, parts: Parts, who: Reader) -> PlainTextResponse:
    """An offline proof that an entry is in the log, a C2SP tlog-proof."""
    bundle = await parts.db.ledger.prove(position, parts.policy)
    return PlainTextResponse(bundle.encode())


@router.get("/ledger/consistency", responses=problem_responses())
async def get_consistency(old: Size, new: Size, parts: Parts, who: Reader) -> ConsistencyProof:
    """Proof that the first `old` entries are a prefix of the first `new`."""
    size = await parts.db.size()
    if not 0 < old <= new <= size:
        raise InvalidInput(f"old, new: 1 to {size}, the older first; nothing is proven from 0")
    hashes = await parts.db.ledger.consistency_proof(old, new)
    return ConsistencyProof(
        old=old, new=new, hashes=[base64.b64encode(value).decode() for value in hashes]
    )


# --- provenance ---------------------------------------------------------------------------------


@router.get("/provenance/{name}/{version}", responses=problem_responses(404))
async def get_provenance(name: Name, version: Name, parts: Parts, who: Reader) -> Lineage:
    """Everything the ledger knows of how a model version was made, with proofs."""
    manifest = await asyncio.to_thread(_manifest, parts, name, version)
    job_id = json.loads(manifest)["lineage"].get("job_id")
    if job_id is None:
        raise NotFound(f"{name}@{version} was uploaded: no job here made it, so none is told of")
    facts = await parts.db.query_events(stream=stream_of(job_id), limit=MOST_FACTS)
    if not any(f.event_type == PUBLISHED and f.data["version"] == version for f in facts):
        raise NotFound(f"the publication of {name}@{version} is not in the ledger yet")
    return Lineage(
        name=name,
        version=version,
        job_id=job_id,
        manifest=manifest,
        facts=await _proven(parts, who, facts),
        policy=parts.policy.encode(),
        attestation_key=parts.attestation_key,
    )


async def _proven(parts: Gateway, who: Identity, facts: list[Event]) -> list[LineageFact]:
    """Facts with proofs; new ones wait until a checkpoint covers them."""
    deadline = asyncio.get_running_loop().time() + SIGNING_PATIENCE_S
    while True:
        note = await parts.db.ledger.checkpoint(parts.policy)
        if note and Checkpoint.parse_text(note.text).size > facts[-1].position:
            break
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable(
                f"no checkpoint covers fact {facts[-1].position} yet; see `loomos ledger status`"
            )
        await asyncio.sleep(0.2)
    return [
        LineageFact(
            position=fact.position,
            entry=fact.entry,
            proof=(await parts.db.ledger.prove(fact.position, parts.policy)).encode(),
            by=_record(fact, who).by,
        )
        for fact in facts
    ]


@router.get(
    "/provenance/{name}/{version}/files/{path:path}",
    responses=problem_responses(404),
    response_class=Response,
)
async def get_provenance_file(
    name: Name, version: Name, path: str, parts: Parts, who: Reader
) -> StreamingResponse:
    """One of the model's files, or of its attestations."""
    if path in ATTESTATIONS:
        key = attestation_key(name, version, path)
    else:
        files = json.loads(await asyncio.to_thread(_manifest, parts, name, version))["files"]
        if path not in files:
            known = ", ".join([*ATTESTATIONS, *sorted(files)])
            raise NotFound(f"{name}@{version} has no file {path[:100]!r}; known: {known}")
        key = model_prefix(name, version) + path
    pieces: Iterator[bytes] = await asyncio.to_thread(parts.store.stream, key)
    return StreamingResponse(pieces, media_type="application/octet-stream")


def _manifest(parts: Gateway, name: str, version: str) -> str:
    try:
        return parts.store.get(f"{model_prefix(name, version)}manifest.json").decode()
    except NotFound:
        raise NotFound(
            f"no model {name}@{version}; write NAME@VERSION of a published one"
        ) from None
