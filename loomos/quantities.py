"""Quantities and durations as people write them: `128Gi` as Kubernetes does, `24h` as Go does."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

LONGEST = 64
"""Characters that a quantity or a duration may have."""

_SUFFIX = {
    "": 1,
    **{s: 1000**i for i, s in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{s: 1024**i for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<suffix>k|[MGTPE]|[KMGTPE]i)?")
_UNIT_S = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def parse_bytes(text: str) -> int:
    """Parse a Kubernetes resource quantity into bytes.

    Example:
        >>> parse_bytes("128Gi")
        137438953472

    Raises:
        ValueError: `text` is no quantity, or not a whole number of bytes.

    Source: kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity.
    """
    match = _QUANTITY.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if match is None:
        raise ValueError(
            f"{text[:LONGEST]!r} is not a quantity; write for example 128Gi, 500G or 1073741824"
        )
    value = Decimal(match["number"]) * _SUFFIX[match["suffix"] or ""]
    if value != value.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(value)


def parse_duration(text: str) -> timedelta:
    """Parse a Go duration.

    Example:
        >>> parse_duration("1h30m")
        datetime.timedelta(seconds=5400)

    Raises:
        ValueError: `text` is no duration, or negative.

    Source: pkg.go.dev/time#ParseDuration (LoomOS takes no sign).
    """
    stripped = text.strip()
    if stripped == "0":
        return timedelta(0)
    parts = _DURATION_PART.findall(stripped) if len(text) <= LONGEST else []
    if not parts or "".join(n + u for n, u in parts) != stripped:
        raise ValueError(
            f"{text[:LONGEST]!r} is not a duration; write for example 24h, 90m, 1h30m or 45s"
        )
    seconds = sum((Decimal(n) * _UNIT_S[u] for n, u in parts), Decimal(0))
    try:
        return timedelta(seconds=float(seconds))
    except OverflowError:
        raise ValueError(f"{text!r} is longer than LoomOS can count") from None


def format_duration(value: timedelta) -> str:
    """Write a duration as Go does, dropping zero parts: `1h30m`, `45s`, `0s`."""
    total = value.total_seconds()
    hours, rest = divmod(int(total), 3600)
    minutes, seconds = divmod(rest, 60)
    fraction = total - int(total)
    text = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
    if seconds or fraction or not text:
        text += f"{seconds + fraction:.6f}".rstrip("0").rstrip(".") + "s"
    return text


def format_bytes(size_bytes: float) -> str:
    """Write a size for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError("a duration is text with a unit, such as 24h, 90m or 45s")


def _quantity(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        return parse_bytes(value)
    raise ValueError("a quantity is text such as 128Gi or 500G, or a whole number of bytes")


def _moment(value: Any) -> datetime:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        with contextlib.suppress(OverflowError):  # at the ends of the calendar
            return value.astimezone(UTC)
    raise ValueError("a moment is RFC 3339 text with a time zone, such as 2027-01-31T18:00:00Z")


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    PlainSerializer(lambda value: value.isoformat().replace("+00:00", "Z"), return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "maxLength": LONGEST,
            "pattern": r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2})$",
        }
    ),
]
"""A `datetime` in UTC that is written in RFC 3339."""

Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": r"^([0-9.]+(ns|us|µs|ms|s|m|h))+$|^0$", "maxLength": LONGEST}
    ),
]
"""A `timedelta` that is written `24h` in documents."""

Quantity = Annotated[
    int,
    BeforeValidator(_quantity),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {
                    "type": "string",
                    "pattern": r"^[0-9]+(\.[0-9]+)?(k|[MGTPE]|[KMGTPE]i)?$",
                    "maxLength": LONGEST,
                },
            ]
        }
    ),
]
"""A number of bytes that may be written `128Gi` in documents."""
