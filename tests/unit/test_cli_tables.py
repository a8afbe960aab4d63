"""Tables and facts at the width of a screen."""

from __future__ import annotations

import pytest

from loomos.cli.tables import fact_lines, number, table_lines

JOB = "support-assistant-0123456789abcdef0123456789abcdef"
URL = "http://127.0.0.1:8233/namespaces/default/workflows/" + JOB
COLUMNS = ("JOB", "STATE", "OWNER", "MODEL", "WHY")
ROWS = [
    (JOB, "running", "ada", "support-assistant@0123456789abcdef", "waits for a node with 8 GPUs"),
    ("a-1", "failed", "bob", None, "the loss became NaN at step 12"),
]


@pytest.mark.parametrize("width", [None, 40, 60, 80, 100, 132, 250])
def test_no_word_is_broken_at_any_width(width: int | None) -> None:
    lines = table_lines(COLUMNS, ROWS, (), width)
    words = {word for line in lines for word in line.split()}
    for row in ROWS:
        for cell in row:
            assert set(str(cell).split() if cell else []) <= words


def test_rows_fit_the_screen_where_words_allow_it() -> None:
    for width in (80, 100, 132):
        for line in table_lines(COLUMNS, ROWS, ("MODEL", "OWNER"), width):
            assert len(line) <= width, line


def test_a_column_that_can_be_spared_goes_and_is_named() -> None:
    lines = table_lines(COLUMNS, ROWS, ("MODEL", "OWNER"), 80)
    assert lines[0].split() == ["JOB", "STATE", "OWNER", "WHY"]
    assert lines[-1] == "not shown, for lack of width: MODEL"
    assert table_lines(COLUMNS, ROWS, ("MODEL", "OWNER"), 250)[0].split() == list(COLUMNS)


def test_without_a_screen_a_row_is_a_line() -> None:
    lines = table_lines(COLUMNS, [*ROWS, ("b", "x" * 500, "", "", "two\nlines")], (), None)
    assert len(lines) == 2 + 3
    assert lines[-1].endswith("two lines")


def test_what_cannot_fit_is_shown_as_blocks() -> None:
    lines = table_lines(COLUMNS, ROWS, (), 60)
    assert lines[:2] == [f"JOB    {JOB}", "STATE  running"]
    assert "" in lines
    assert all(len(line) <= 60 for line in lines)


def test_a_url_stays_whole_beside_its_name() -> None:
    lines = fact_lines([("temporal", URL), ("state", "waits " * 30), ("none", None)], 80)
    assert lines[0] == f"temporal  {URL}"
    assert all(len(line) <= 80 for line in lines[1:])
    assert lines[2].startswith("          waits")


def test_text_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in "".join(table_lines(("A",), [("\x1b[2Jgone\x07",)], (), None))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.0000001, "-1e-07"),
        (-0.0, "0"),
        (0.0, "0"),
        (2.47349823, "2.473"),
        (12345.678, "12346"),
        (0.0016494, "0.001649"),
        (3.0, "3"),
        (float("nan"), "nan"),
        (1e300, "1e+300"),
    ],
)
def test_numbers_are_rounded(value: float, text: str) -> None:
    assert number(value) == text
