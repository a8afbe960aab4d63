"""What is asked of the sequencer, what it answers, and both as text for the inbox."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from loomos.errors import InvalidInput, LoomOSError
from loomos.loomdb.errors import EventIdReused, LedgerFull, LedgerUnavailable, WrongVersion
from loomos.loomdb.events import Prepared
from loomos.loomdb.merkle import leaf_hash

_ERRORS: dict[str, type[LoomOSError]] = {
    e.__name__: e for e in (WrongVersion, EventIdReused, LedgerFull, LedgerUnavailable)
}


class Recorded(NamedTuple):
    """Where an event came to stand."""

    event_id: str
    """Its id."""
    position: int
    """Place among all events."""
    version: int
    """Place within its stream."""


@dataclass
class Append:
    """Events to be appended together, or not at all."""

    events: Sequence[Prepared]
    expected: tuple[str, int] | None = None
    """Stream and the version it must have before; None for any."""
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    refusal: LoomOSError | None = None
    """Why it cannot be done, if that is known beforehand."""
    outcome: asyncio.Future[list[Recorded]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future(), repr=False
    )

    @property
    def may_be_known(self) -> bool:
        """Whether any of its events might have been appended before."""
        return any(not event.is_fresh for event in self.events)

    def doubt(self) -> None:
        """Nobody knows whether it was committed: from now on look before writing."""
        self.events = [event._replace(is_fresh=False) for event in self.events]

    def answer(self, outcome: list[Recorded] | LoomOSError) -> None:
        """Tell who asked."""
        if isinstance(outcome, LoomOSError):
            self.fail(outcome)
        else:
            self.resolve(outcome)

    def resolve(self, recorded: list[Recorded]) -> None:
        """It is done."""
        if not self.outcome.done():
            self.outcome.set_result(recorded)

    def fail(self, error: BaseException) -> None:
        """It is not done and will not be."""
        if not self.outcome.done():
            self.outcome.set_exception(error)
            self.outcome.exception()  # the caller may have stopped waiting

    def encode(self) -> str:
        """As the inbox has it."""
        return json.dumps(
            {
                "expected": self.expected,
                "events": [
                    [e.event_id, e.stream, e.event_type, e.schema, e.time_us, e.entry, e.is_fresh]
                    for e in self.events
                ],
            },
            separators=(",", ":"),
        )

    @classmethod
    def decode(cls, request_id: str, text: str) -> Append:
        """From the inbox; what cannot be read becomes a request that is refused."""
        try:
            return cls._decode(request_id, text)
        except (ValueError, TypeError, KeyError) as error:
            refusal = InvalidInput(f"the request in the inbox cannot be read: {error!r}")
            return cls([], None, request_id, refusal)

    @classmethod
    def _decode(cls, request_id: str, text: str) -> Append:
        content = json.loads(text)
        events = [
            Prepared(
                event_id=event_id,
                stream=stream,
                event_type=event_type,
                schema=schema,
                time_us=time_us,
                entry=entry,
                leaf=leaf_hash(entry.encode()),
                is_fresh=is_fresh,
            )
            for event_id, stream, event_type, schema, time_us, entry, is_fresh in content["events"]
        ]
        expected = content["expected"]
        return cls(events, tuple(expected) if expected else None, request_id)


def encode_outcome(outcome: list[Recorded] | LoomOSError) -> str:
    """What became of an append, as the inbox has it."""
    if isinstance(outcome, LoomOSError):
        return json.dumps({"error": type(outcome).__name__, "message": str(outcome)})
    return json.dumps({"recorded": [[r.event_id, r.position, r.version] for r in outcome]})


def decode_outcome(text: str) -> list[Recorded] | LoomOSError:
    """What became of an append."""
    content = json.loads(text)
    if "error" in content:
        return _ERRORS.get(content["error"], InvalidInput)(content["message"])
    return [Recorded(*row) for row in content["recorded"]]
