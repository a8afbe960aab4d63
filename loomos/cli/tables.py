"""Tables and facts in the width of the screen: a word is never broken, ids and URLs least of all.

What does not fit is made to fit in this order: cells wrap between words; columns that a command
can spare are left out, and named below; what is left is shown as one block per row. Without a
screen each row is one line, for `grep` and `awk`.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import Any

GAP = "  "


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], spare: Sequence[str] = ()
) -> None:
    """Print rows under headings.

    Args:
        columns: headings.
        rows: one cell per heading.
        spare: headings of columns that may be left out, the first first.
    """
    for line in table_lines(columns, rows, spare, screen_width()):
        print(line)


def print_facts(facts: Sequence[tuple[str, Any]]) -> None:
    """Print names and values, aligned; those without a value are left out."""
    for line in fact_lines(facts, screen_width()):
        print(line)


def screen_width() -> int | None:
    """Columns of the screen, or of `COLUMNS`; None where the output goes into a file or pipe."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        return None
    return max(20, shutil.get_terminal_size().columns)


def table_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    spare: Sequence[str] = (),
    width: int | None = None,
) -> list[str]:
    """The lines of a table; see `print_table`."""
    cells = [[cell_text(cell) for cell in row] for row in rows]
    shown = list(range(len(columns)))
    left_out: list[str] = []
    to_spare = [name for name in spare if name in columns]
    while (widths := _fit([columns[i] for i in shown], cells, shown, width)) is None:
        if not to_spare:
            return _blocks(columns, cells, width)
        left_out.append(to_spare.pop(0))
        shown.remove(columns.index(left_out[-1]))
    lines = _row([columns[i] for i in shown], widths)
    lines.append(GAP.join("─" * size for size in widths))
    for row in cells:
        lines += _row([row[i] for i in shown], widths)
    if left_out:
        lines += _wrapped(f"not shown, for lack of width: {', '.join(left_out)}", width)
    return lines


def fact_lines(facts: Sequence[tuple[str, Any]], width: int | None = None) -> list[str]:
    """The lines of names and values; see `print_facts`."""
    known = [(name, cell_text(value)) for name, value in facts if value not in (None, "", {}, [])]
    margin = max((len(name) for name, _ in known), default=0)
    lines: list[str] = []
    for name, text in known:
        lines += _row([name, text], [margin, _room(width, margin)])
    return lines


def cell_text(cell: Any) -> str:
    """A value as people read it; control characters, with which text could move the cursor, go."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return number(cell)
    if isinstance(cell, datetime):
        return f"{cell.astimezone():%Y-%m-%d %H:%M:%S}"
    return printable(" ".join(str(cell).split()))


def printable(text: str) -> str:
    """Text without characters that steer a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def number(value: float) -> str:
    """A number to four significant digits: `0.0123`, `3.142`, `12346`, `1.2e-06`."""
    size = abs(value)
    if value != value or size == float("inf"):
        return str(value)
    if 1000 <= size < 1e15:
        return f"{value:.0f}"
    if 0 < size < 1e-4:
        return f"{value:.2g}"
    return "0" if value == 0 else f"{value:.4g}"


def _fit(
    headings: Sequence[str], cells: Sequence[Sequence[str]], shown: Sequence[int], width: int | None
) -> list[int] | None:
    """Widths of columns, narrowed where words allow it; None if that is not enough."""
    texts = [
        [heading, *(row[i] for row in cells)] for heading, i in zip(headings, shown, strict=True)
    ]
    widths = [max(map(len, column)) for column in texts]
    if width is None:
        return widths
    least = [max(len(w) for text in column for w in [*text.split(), ""]) for column in texts]
    room = width - len(GAP) * (len(widths) - 1)
    if sum(least) > room:
        return None
    while (excess := sum(widths) - room) > 0:
        # The widest of those that can give is cut down to the next, or as far as needed.
        able = [i for i in range(len(widths)) if widths[i] > least[i]]
        widest = max(able, key=lambda i: widths[i])
        others = max((widths[i] for i in able if widths[i] < widths[widest]), default=0)
        target = max(least[widest], others - 1, widths[widest] - excess)
        widths[widest] = min(target, widths[widest] - 1)
    return widths


def _row(texts: Sequence[str], widths: Sequence[int | None]) -> list[str]:
    """One row, as many lines as its tallest cell has."""
    pieces = [_wrapped(text, size) for text, size in zip(texts, widths, strict=True)]
    height = max(map(len, pieces))
    lines = []
    for k in range(height):
        parts = [
            (piece[k] if k < len(piece) else "").ljust(size or 0)
            for piece, size in zip(pieces, widths, strict=True)
        ]
        lines.append(GAP.join(parts).rstrip())
    return lines


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None or len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _blocks(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Each row as names and values."""
    margin = max(map(len, columns))
    lines: list[str] = []
    for row in cells:
        lines += [""] if lines else []
        for name, text in zip(columns, row, strict=True):
            lines += _row([name, text], [margin, _room(width, margin)]) if text else []
    return lines


def _room(width: int | None, margin: int) -> int | None:
    return None if width is None else max(1, width - margin - len(GAP))
