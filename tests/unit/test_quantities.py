from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomos.quantities import format_bytes, format_duration, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1073741824", 2**30),
        ("128Gi", 128 * 2**30),
        ("500G", 500 * 10**9),
        ("1.5Ki", 1536),
        ("2k", 2000),
        ("1Ti", 2**40),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "Gi", "1GB", "1 Gi", "-1", "1e3", "0.3", "K"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("1h30m", 5400), ("1.5h", 5400), ("300ms", 0.3), ("1h1s", 3601), ("0", 0)],
)
def test_durations_are_read_as_go_reads_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "24", "1d", "h", "1h 30m", "-5s", "9" * 30 + "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=4000)))
def test_a_duration_survives_writing_and_reading(value: timedelta) -> None:
    assert abs(parse_duration(format_duration(value)) - value) <= timedelta(microseconds=1)


def test_sizes_are_written_for_people() -> None:
    assert [format_bytes(n) for n in (0, 1536, 3 * 2**40)] == ["0 B", "1.5 KiB", "3.0 TiB"]
