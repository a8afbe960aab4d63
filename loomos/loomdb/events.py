"""Events: what is written, what is read back, and the bytes that the ledger hashes.

An event's *entry* is canonical JSON (RFC 8785) with the keys `context`, `data`, `id`, `schema`,
`stream`, `time`, `type`. The last five repeat the row's columns; as keys are sorted, they are the
entry's last bytes, which lets an audit compare them without parsing. Position and version are not
in it: they follow from the order, to which the Merkle tree commits.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from loomos.errors import InvalidInput
from loomos.loomdb.canonical import canonical_json
from loomos.loomdb.event_types import EventType
from loomos.loomdb.merkle import leaf_hash

LARGEST_ENTRY_BYTES = 65_535
"""C2SP tlog-tiles gives an entry's length 16 bits. Larger things go by reference."""

RESERVED_BYTES = 2048
"""What an entry may have besides its data: names, and who it was."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@=-]{0,199}")
_NOTHING: Mapping[str, Any] = {}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class AuditContext:
    """Who did it, from where. Personal: it is encrypted under a key of the person's own."""

    user_id: str
    """The person."""
    session_id: str | None = None
    """Their session."""
    source_ip: str | None = None
    """Their address."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of them."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A part of LoomOS that did it, and no person."""

    name: str
    """Such as `control` or `node-1`."""


class NewEvent(NamedTuple):
    """An event to be appended."""

    event_type: str
    """What happened."""
    data: Mapping[str, Any] = _NOTHING
    """Facts, as JSON. Public for ever: personal ones belong in `personal`."""
    personal: Mapping[str, Any] = _NOTHING
    """Facts of the context's person; encrypted, erasable."""
    event_id: str | None = None
    """Appending the same id again changes nothing. Default: a new UUIDv7."""
    schema: int = 1
    """Version of the shape of `data`."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event as read back."""

    position: int
    """Place among all events, from 0 without gaps; its leaf in the ledger."""
    event_id: str
    """Unique."""
    stream: str
    """What it is about."""
    version: int
    """Place within the stream, from 1 without gaps."""
    event_type: EventType
    """What happened."""
    schema: int
    """Version of the shape of `data`, after upcasting."""
    time: datetime
    """When its writer logged it, by the writer's clock; order is by position."""
    data: dict[str, Any]
    """Facts, upcast, with the personal ones if their key still exists."""
    context: AuditContext | Service | None
    """Who did it; None if unknown or erased."""
    is_erased: bool
    """Whether it had personal parts that were erased."""
    entry: str
    """The canonical text that the ledger hashes, as it was written."""


class Prepared(NamedTuple):
    """An event as it will be stored."""

    event_id: str
    stream: str
    event_type: str
    schema: int
    time_us: int
    entry: str
    leaf: bytes
    is_fresh: bool
    """Whether its id was made just now, so that it cannot have been appended before."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A person's reference and key."""

    reference: str
    """Random; what entries say instead of a name."""
    key: bytes
    """AES-256. Destroying it erases what was encrypted with it."""


def prepare(
    new: Sequence[tuple[str, NewEvent]],
    who: AuditContext | Service | None,
    subject: Subject | None,
) -> list[Prepared]:
    """Make the entries of events that are logged together.

    Args:
        new: streams and events.
        who: the context.
        subject: the key of the context's person; needed if there is one.

    Raises:
        InvalidInput: a name is malformed, the data is no JSON, or too large.
    """
    time_us = time.time_ns() // 1000
    fresh = iter(new_event_ids(len(new)))
    prepared: list[Prepared] = []
    for stream, event in new:
        is_fresh = event.event_id is None
        event_id = next(fresh) if event.event_id is None else check_name("event_id", event.event_id)
        kind = EventType.of(event.event_type)
        data = canonical_json(event.data)
        if data[0] != "{":
            raise InvalidInput("data must be a JSON object")
        context = "null"
        if who is not None or event.personal:
            context = _encode_context(event, who, subject, event_id)
        tail = entry_tail(event_id, event.schema, stream, time_us, kind)
        entry = f'{{"context":{context},"data":{data}{tail}'
        encoded = entry.encode()
        if len(encoded) > LARGEST_ENTRY_BYTES:
            raise InvalidInput(
                f"data: the event has {len(encoded)} bytes, more than {LARGEST_ENTRY_BYTES}; "
                "put the content into the store and log its digest"
            )
        leaf = leaf_hash(encoded)
        prepared.append(
            Prepared(event_id, stream, kind, event.schema, time_us, entry, leaf, is_fresh)
        )
    return prepared


def check_data(data: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` unless an event with this data fits the ledger, whoever logs it."""
    size_bytes = len(canonical_json(data).encode()) + RESERVED_BYTES
    if size_bytes > LARGEST_ENTRY_BYTES:
        raise InvalidInput(
            f"data: the event would have up to {size_bytes} bytes, more than "
            f"{LARGEST_ENTRY_BYTES}; put the content into the store and log its digest"
        )


def entry_tail(event_id: str, schema: int, stream: str, time_us: int, event_type: str) -> str:
    """How the entry of a row with these columns ends."""
    return (
        f',"id":"{event_id}","schema":{schema},"stream":"{stream}",'
        f'"time":{time_us},"type":"{event_type}"}}'
    )


def check_name(what: str, value: str) -> str:
    """A stream's name or an event's id.

    Raises:
        InvalidInput: it is empty, longer than 200, or has other characters than it may.
    """
    if not _NAME.fullmatch(value):
        raise InvalidInput(
            f"{what} {value[:40]!r}: 1 to 200 letters, digits or _ . : / @ = -, "
            "beginning with a letter or digit"
        )
    return value


def microseconds(moment: datetime) -> int:
    """Microseconds since the epoch; a moment without a zone is local time."""
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def moment(time_us: int) -> datetime:
    """The moment so many microseconds after the epoch."""
    return _EPOCH + timedelta(microseconds=time_us)


_last_id = 0
_random_bits = random.Random(os.urandom(32)).getrandbits


def _reseed() -> None:
    """A forked process must not go on with its parent's sequence."""
    global _random_bits
    _random_bits = random.Random(os.urandom(32)).getrandbits


os.register_at_fork(after_in_child=_reseed)


def new_event_ids(count: int) -> list[str]:
    """UUIDv7s (RFC 9562 section 5.7): one random start, then counting up (section 6.2, method 2).

    Those of one process grow.
    """
    global _last_id
    _last_id = max(_last_id + 1, (time.time_ns() // 1_000_000) << 12)
    stamp, sequence = _last_id >> 12, _last_id & 0xFFF
    variant = 0x8000 | _random_bits(14)
    head = f"{stamp >> 16:08x}-{stamp & 0xFFFF:04x}-7{sequence:03x}-{variant:04x}-"
    start = _random_bits(47)
    return [f"{head}{number:012x}" for number in range(start, start + count)]


# --- personal parts -----------------------------------------------------------------------------


def _encode_context(
    event: NewEvent, who: AuditContext | Service | None, subject: Subject | None, event_id: str
) -> str:
    if isinstance(who, AuditContext):
        if subject is None:
            raise InvalidInput("a person's context needs the person's key")
        personal = {
            "context": {
                "details": dict(who.details),
                "session_id": who.session_id,
                "source_ip": who.source_ip,
                "user_id": who.user_id,
            },
            "data": dict(event.personal),
        }
        nonce = os.urandom(12)
        sealed = AESGCM(subject.key).encrypt(
            nonce, canonical_json(personal).encode(), _associated(event_id, subject.reference)
        )
        blob = base64.b64encode(nonce + sealed).decode()
        return f'{{"sealed":"{blob}","subject":"{subject.reference}"}}'
    if event.personal or who is None:
        raise InvalidInput("personal: say whose it is by an AuditContext with a user_id")
    return _service(who.name)


@lru_cache(maxsize=1024)
def _service(name: str) -> str:
    return canonical_json({"service": name})


def _associated(event_id: str, reference: str) -> bytes:
    return f"{event_id}\n{reference}".encode()


def _unseal(context: dict[str, Any], event_id: str, key: bytes) -> dict[str, Any]:
    blob = base64.b64decode(context["sealed"])
    try:
        text = AESGCM(key).decrypt(blob[:12], blob[12:], _associated(event_id, context["subject"]))
    except InvalidTag:
        raise InvalidInput(
            f"the personal part of event {event_id} does not fit its key; `loomos ledger audit` "
            "tells whether the row was changed"
        ) from None
    found: dict[str, Any] = json.loads(text)
    return found


def subject_of(entry: Mapping[str, Any]) -> str | None:
    """Reference of the person an entry is about, if there is one."""
    context = entry["context"]
    return context.get("subject") if context else None


# --- reading back -------------------------------------------------------------------------------

Upcast = Callable[[dict[str, Any]], dict[str, Any]]


class Upcasters:
    """Turns data of an older shape into the newest, one version at a time."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, int], Upcast] = {}

    def register(self, event_type: str, schema: int, upcast: Upcast) -> None:
        """Say how data of version `schema` becomes that of `schema + 1`.

        Raises:
            InvalidInput: it was said before.
        """
        if (event_type, schema) in self._steps:
            raise InvalidInput(f"{event_type} has an upcaster from schema {schema} already")
        self._steps[event_type, schema] = upcast

    def apply(
        self, event_type: str, schema: int, data: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """The newest version and the data in its shape."""
        while (step := self._steps.get((event_type, schema))) is not None:
            schema, data = schema + 1, step(data)
        return schema, data


def read_event(
    position: int, version: int, entry: str, keys: Mapping[str, bytes], upcasters: Upcasters
) -> Event:
    """An event from its row.

    Args:
        position: its place among all events.
        version: its place within the stream.
        entry: its canonical text.
        keys: keys of persons by reference, as far as they exist.
        upcasters: for data of older shapes.
    """
    content = json.loads(entry)
    data, context = content["data"], content["context"]
    who: AuditContext | Service | None = None
    erased = False
    if context is not None and "service" in context:
        who = Service(name=context["service"])
    elif context is not None:
        key = keys.get(context["subject"])
        if key is None:
            erased = True
        else:
            personal = _unseal(context, content["id"], key)
            who = AuditContext(**personal["context"])
            data = {**data, **personal["data"]}
    schema, data = upcasters.apply(content["type"], content["schema"], data)
    return Event(
        position=position,
        event_id=content["id"],
        stream=content["stream"],
        version=version,
        event_type=EventType.of(content["type"]),
        schema=schema,
        time=moment(content["time"]),
        data=data,
        context=who,
        is_erased=erased,
        entry=entry,
    )
