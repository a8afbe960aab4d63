"""Kinds of events. Strings with names, open for more kinds by subclassing.

An `Enum` with members cannot be subclassed, so `EventType` is a `str` whose class attributes
become members:

    class PipelineEvent(EventType):
        NIGHTLY_START = "nightly_start"
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, ClassVar, Self

from loomos.errors import InvalidInput

_SHAPE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")


class EventType(str):
    """What happened, in a word. Any well-formed string can be one; known ones have names."""

    __slots__ = ()
    _registry: ClassVar[dict[str, EventType]] = {}

    MODEL_TRAINING_START: ClassVar[EventType]
    MODEL_TRAINING_COMPLETE: ClassVar[EventType]
    MODEL_TRAINING_FAILED: ClassVar[EventType]
    MODEL_UPDATE: ClassVar[EventType]
    MODEL_DEPLOYED: ClassVar[EventType]
    PERFORMANCE_METRIC: ClassVar[EventType]
    SECURITY_ALERT: ClassVar[EventType]
    SUBJECT_ERASED: ClassVar[EventType]
    JOB_SUBMITTED: ClassVar[EventType]
    INPUTS_RESOLVED: ClassVar[EventType]
    LEASE_GRANTED: ClassVar[EventType]
    CHECKPOINT_COMMITTED: ClassVar[EventType]
    RUN_RECOVERED: ClassVar[EventType]
    MODEL_PUBLISHED: ClassVar[EventType]
    JOB_ENDED: ClassVar[EventType]

    def __new__(cls, value: str) -> Self:
        """The kind with this name.

        Raises:
            InvalidInput: it does not begin with a letter, or has other than letters, digits, `_.-`.
        """
        if not _SHAPE.fullmatch(value):
            raise InvalidInput(
                f"event_type {value[:40]!r}: begin with a letter, then letters, digits, _ . -; "
                "at most 128"
            )
        return super().__new__(cls, value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make members of the subclass's string attributes, and remember them."""
        super().__init_subclass__(**kwargs)
        members = {
            name: value
            for name, value in vars(cls).items()
            if name.isupper() and isinstance(value, str) and not isinstance(value, EventType)
        }
        for name, value in members.items():
            cls._register(name, value)

    @classmethod
    def _register(cls, name: str, value: str) -> None:
        known = EventType._registry.get(value)
        if known is not None and type(known) is not cls:
            raise InvalidInput(f"event_type {value!r} is already one of {type(known).__name__}")
        member = cls(value)
        EventType._registry[value] = member
        setattr(cls, name, member)

    @classmethod
    def of(cls, value: str) -> EventType:
        """The member with this value, or a nameless kind.

        Raises:
            InvalidInput: it is malformed.
        """
        return EventType._registry.get(value) or _nameless(value)

    @classmethod
    def members(cls) -> list[EventType]:
        """Every kind that has a name, of this class and those below it."""
        return [member for member in EventType._registry.values() if isinstance(member, cls)]


@lru_cache(maxsize=4096)
def _nameless(value: str) -> EventType:
    return EventType(value)


for _name in EventType.__annotations__:
    if _name.isupper():
        EventType._register(_name, _name.lower())
