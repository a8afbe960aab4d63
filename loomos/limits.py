"""How large, long and deep anything may be that a person writes: each bound once, with its reason.

Every number, duration, text, list and mapping of a document has bounds, so that what is accepted
can be stored, sent, read again and reckoned with. A test walks the schemas and fails for a field
without any. Free-form maps are held to what JSON and the ledger can say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from annotated_types import BaseMetadata
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema, to_json

from loomos.quantities import Duration, Moment, Quantity, format_duration

LONGEST_DURATION = timedelta(days=3650)
"""Ten years: calendars and timers still hold the end of it."""
SHORTEST_TIMEOUT = timedelta(milliseconds=100)
"""A time-out that something can still be done in."""
MOST_STEPS = 10**12
"""No run makes more of anything that is counted; such a count is exact everywhere."""
MOST_BYTES = 2**52
"""4 PiB: no machine has more, and a sum of many is still exact."""
LARGEST_NUMBER = 1e12
"""Products with it are still finite in single precision."""
SMALLEST_NUMBER = 1e-12
"""Quotients by it are still finite in single precision."""
LARGEST_INTEGER = 2**53 - 1
"""The ledger's canonical JSON (RFC 8785) and JavaScript know no larger whole number exactly."""
DEEPEST = 32
"""Levels of a document; deeper ones overflow the stack of whoever reads them."""
MOST_VALUES = 10_000
"""Values in one document, names included."""
LONGEST_TEXT = 8192
"""Characters of one text in a document."""
MOST_LABEL_BYTES = 4096
"""Labels that nodes must have, names and values together: they go into the request for nodes, of
which the cluster holds thousands."""
MOST_SPEC_BYTES = 56 * 1024
"""A `spec` as JSON, with its defaults: it goes into the ledger, whose entries have at most 65,535
bytes."""
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Moments that may be named."""


@dataclass(frozen=True)
class Within(BaseMetadata):
    """Bounds of a number or a duration, and the reason for them, which the error tells."""

    least: Any
    """Smallest value."""
    most: Any
    """Largest value."""
    why: str
    """Reason, as the error's last words."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler(schema)
        if isinstance(self.most, int | float):
            for part in found.get("anyOf", [found]):
                if part.get("type") in ("integer", "number"):
                    part |= {"minimum": self.least, "maximum": self.most}
        return found

    def check(self, value: Any) -> Any:
        """The value, if it lies within."""
        if not self.least <= value <= self.most:
            raise ValueError(
                f"must be from {_told(self.least)} to {_told(self.most)}, not {_told(value)}: "
                f"{self.why}"
            )
        return value


@dataclass(frozen=True)
class Written(BaseMetadata):
    """Narrower bounds for what a person writes than for what is stored.

    What is stored is JSON and keeps the bounds of the type itself, so that it can still be read
    though it was written under wider ones.
    """

    narrower: Any
    """The type as it may be written."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.json_or_python_schema(
            json_schema=handler(source), python_schema=handler.generate_schema(self.narrower)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema["python_schema"])


def _told(value: Any) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return shown(value)


def shown(value: Any, most: int = 80) -> str:
    """A value for a message: short, on one line, and writable as UTF-8 whatever it holds."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of some {value.bit_length() * 3 // 10} digits"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10**6 else str(value)
    text = printable(value if isinstance(value, str) else repr(value))
    return text if len(text) <= most else f"{text[:most]}..."


def printable(text: str) -> str:
    """A text that every encoding of Unicode takes: half characters are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


# --- kinds of numbers ---------------------------------------------------------------------------

_COUNTED = "no run makes more, and counters stay exact"
_NUMBER = "single precision must be able to compute with it"
_LONG = "ten years are the longest that LoomOS plans for"

Positive = Annotated[float, Within(SMALLEST_NUMBER, LARGEST_NUMBER, _NUMBER)]
"""A number above 0."""
Coefficient = Annotated[float, Within(0, LARGEST_NUMBER, _NUMBER)]
"""A number that may be 0."""
Real = Annotated[float, Within(-LARGEST_NUMBER, LARGEST_NUMBER, _NUMBER)]
"""Any number."""
Steps = Annotated[int, Within(1, MOST_STEPS, _COUNTED)]
"""How many, at least one."""
Count = Annotated[int, Within(0, MOST_STEPS, _COUNTED)]
"""How many, perhaps none."""
Batch = Annotated[int, Within(1, 10**9, "a batch beyond that fits no memory")]
"""Things that are held at the same time."""
Width = Annotated[int, Within(1, 2**20, "a layer that wide fits no memory")]
"""Units of a layer."""
Probability = Annotated[
    float, Within(1e-6, 1 - 1e-6, "statistics need a chance that can be told from 0 and 1")
]
"""A chance or a rate that is neither 0 nor 1."""
ErrorChance = Annotated[float, Within(1e-9, 0.5, "an error's chance must be above 0, and no guess")]
"""How likely a wrong decision may be."""
Size = Annotated[Quantity, Within(0, MOST_BYTES, "no machine has more than 4 PiB")]
"""Bytes."""
Gibibytes = Annotated[int, Within(1, MOST_BYTES // 2**30, "no machine has more than 4 PiB")]
"""GiB."""
Span = Annotated[Duration, Within(timedelta(0), LONGEST_DURATION, _LONG)]
"""A duration that may be 0."""
Timeout = Annotated[
    Duration, Within(SHORTEST_TIMEOUT, LONGEST_DURATION, "too short to do anything in, or " + _LONG)
]
"""A duration in which something must be done."""
PlannedMoment = Annotated[Moment, Within(EARLIEST, LATEST, "no calendar of a cluster goes beyond")]
"""A moment that a document names."""


# --- texts --------------------------------------------------------------------------------------


def _writable(text: str) -> str:
    for index, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise ValueError(
                f"has half a character (U+{ord(character):04X}) at place {index + 1}; such a text "
                "cannot be stored: write the whole character"
            )
        if character == "\0":
            raise ValueError(f"has a NUL at place {index + 1}; remove it")
    return text


WRITABLE = AfterValidator(_writable)
"""Refuses texts that cannot be stored and sent."""
Word = Annotated[str, Field(min_length=1, max_length=63), WRITABLE]
"""A name of something outside."""
Words = Annotated[str, Field(min_length=1, max_length=255), WRITABLE]
"""A few words."""
Where = Annotated[str, Field(min_length=1, max_length=1024), WRITABLE]
"""A path or a URL."""
Reference = Annotated[str, Field(min_length=1, max_length=200), WRITABLE]
"""`NAME`, `NAME@VERSION` or `NAME@ALIAS` of a model."""
Text = Annotated[str, Field(max_length=LONGEST_TEXT), WRITABLE]
"""A text, perhaps empty."""


# --- labels of nodes ----------------------------------------------------------------------------


def _light(labels: dict[str, str]) -> dict[str, str]:
    size = sum(len(text.encode()) for item in labels.items() for text in item)
    if size > MOST_LABEL_BYTES:
        raise ValueError(
            f"has {size:,} bytes, names and values together, and may have {MOST_LABEL_BYTES:,}; "
            "ask for fewer labels, or give the nodes one that stands for several"
        )
    return labels


_WrittenNodeLabels = Annotated[
    dict[Words, Annotated[str, Field(max_length=63), WRITABLE]],
    Field(max_length=64),
    AfterValidator(_light),
]
NodeLabels = Annotated[dict[Words, Text], Field(max_length=64), Written(_WrittenNodeLabels)]
"""Labels that a node must have. Values have as many characters as Kubernetes allows."""


# --- free-form maps -----------------------------------------------------------------------------


Path = tuple[int | str, ...]


class _Reader:
    """Copies a JSON value, and notes what of it is none."""

    def __init__(self) -> None:
        self.faults: list[tuple[Path, str]] = []
        self._left = MOST_VALUES

    def copy(self, value: Any, path: Path = ()) -> Any:
        self._left -= 1
        if self._left < 0:
            if self._left == -1:
                self._note((), f"has more than {MOST_VALUES:,} values; put them into a file")
            return None
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, int):
            if abs(value) > LARGEST_INTEGER:
                return self._note(
                    path, f"{shown(value)} is beyond 2^53, which JSON cannot say exactly"
                )
            return value
        if isinstance(value, float):
            if not abs(value) <= 1.7976931348623157e308:
                return self._note(path, f"{value} is no number that JSON has; use a finite one")
            return value
        if len(path) >= DEEPEST:
            return self._note(path[:8], f"is nested deeper than {DEEPEST} levels; make it flatter")
        if isinstance(value, list | tuple):
            return [self.copy(item, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {
                self._key(key, path): self.copy(item, (*path, printable(str(key))[:64]))
                for key, item in value.items()
            }
        return self._note(path, f"a {type(value).__name__} is nothing that JSON has")

    def _text(self, value: str, path: Path) -> str:
        if len(value) > LONGEST_TEXT:
            self._note(path, f"has more than {LONGEST_TEXT:,} characters; put it into a file")
            return ""
        try:
            return _writable(value)
        except ValueError as error:
            self._note(path, str(error))
            return ""

    def _key(self, key: Any, path: Path) -> str:
        if not isinstance(key, str):
            self._note(path, f"{shown(key)}: keys are text; put it in quotes")
            return ""
        return self._text(key, (*path, printable(key)[:64]))

    def _note(self, path: Path, why: str) -> None:
        if len(self.faults) < 20:
            self.faults.append((path, why))


def plain_json(value: Any) -> Any:
    """A copy of a value that JSON, the ledger and whoever decodes it can hold.

    Raises:
        ValidationError: with the path of everything that is not: numbers that are not finite or
            beyond 2**53, half characters, other objects, more than 32 levels or 10,000 values.
    """
    reader = _Reader()
    found = reader.copy(value)
    if reader.faults:
        raise _not_json(reader.faults)
    return found


JsonMap = Annotated[dict[str, Any], Field(max_length=1000), AfterValidator(plain_json)]
"""A free-form mapping, as far as JSON can say it."""


# --- whole documents ----------------------------------------------------------------------------


def check_travels(part: BaseModel, name: str, most_bytes: int = MOST_SPEC_BYTES) -> None:
    """Refuse a part of a document that would not read back as it is.

    It is written and read by the very functions with which Temporal's payloads are
    (`temporalio.contrib.pydantic`), so that a worker reads whatever is accepted.

    Raises:
        ValidationError: saying which field cannot be read again, or that the part is too large.
    """
    why = ""
    where: Path = ()
    try:
        encoded = to_json(part)
        if type(part).model_validate_json(encoded) != part:
            why = "does not mean the same once it is stored and read again"
        elif len(encoded) > most_bytes:
            why = (
                f"has {len(encoded):,} bytes as JSON, defaults included, and may have "
                f"{most_bytes:,}: it goes into the ledger; put large parts into files and name "
                "those"
            )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = first["loc"]
        why = f"cannot be read again once it is stored: {first['msg']}"
    except (ValueError, RecursionError) as error:
        why = f"cannot be written as JSON: {printable(str(error))[:200]}"
    if why:
        raise _not_json([((name, *where), why)])


def _not_json(faults: Sequence[tuple[Path, str]]) -> ValidationError:
    return ValidationError.from_exception_data(
        "JSON",
        [
            {
                "type": PydanticCustomError("not_json", "{why}", {"why": why}),
                "loc": path,
                "input": None,
            }
            for path, why in faults
        ],
    )


def parts_of(document: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    """The parts of a document that are models themselves, by name."""
    for name in type(document).model_fields:
        part = getattr(document, name)
        if isinstance(part, BaseModel):
            yield name, part


# --- time that cannot overflow ------------------------------------------------------------------


def later(moment: datetime, by: timedelta) -> datetime:
    """The moment so much later, or the last that there is."""
    try:
        return moment + by
    except OverflowError:
        return datetime.max.replace(tzinfo=moment.tzinfo)


def backoff(first: timedelta, failures: int, longest: timedelta) -> timedelta:
    """The wait after so many failures: it doubles from `first`, and is never above `longest`."""
    wait: timedelta = min(first, longest) * 2 ** min(failures, 30)
    return min(longest, wait)
