"""The programs of the code environment: right ones, ways to break them, and inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Random = np.random.Generator
Inputs = Callable[[Random, int], list[Any]]


class Program(NamedTuple):
    """A right program."""

    language: str
    name: str
    """Of its function; of a query, a word for it."""
    purpose: str
    """What it does, for whoever mends it."""
    source: str
    faults: tuple[tuple[str, str], ...]
    """(a piece of the source, what to put there instead) to break it, each in its own way."""
    inputs: Inputs
    """Arguments of a call, of a size from 1 up; of a query, the statements that fill tables."""
    slow: str = ""
    """The same done in far more steps; for whoever makes it fast."""


TELLING = 40
"""Inputs that are among every task's tests."""


@functools.cache
def telling_inputs(program: Program) -> list[list[Any]]:
    """Inputs on which every broken program differs from the right one; a test holds that."""
    random = np.random.default_rng(0)
    return [program.inputs(random, 1 + n % 16) for n in range(TELLING)]


def _numbers(random: Random, size: int) -> list[Any]:
    return [[int(n) for n in random.integers(-20, 21, size)]]


def _sorted_and_one(random: Random, size: int) -> list[Any]:
    values = sorted({int(n) for n in random.integers(-50, 51, size)})
    wanted = int(random.choice(values)) if random.random() < 0.7 else int(random.integers(-60, 60))
    return [values, wanted]


def _word(random: Random, size: int) -> list[Any]:
    return ["".join(str(c) for c in random.choice(list("abcAB ."), size))]


def _brackets(random: Random, size: int) -> list[Any]:
    return ["".join(str(c) for c in random.choice(list("()[]x"), size))]


def _two_numbers(random: Random, size: int) -> list[Any]:
    return [int(n) for n in random.integers(1, 10 * size + 2, 2)]


def _intervals(random: Random, size: int) -> list[Any]:
    starts = random.integers(0, 30, size)
    return [
        [[int(s), int(s + n)] for s, n in zip(starts, random.integers(1, 9, size), strict=True)]
    ]


def _sales(random: Random, size: int) -> list[Any]:
    rows = [
        f"INSERT INTO sales VALUES ('{random.choice(['ann', 'bo', 'cy'])}', "
        f"{int(random.integers(1, 100))}, '{random.choice(['paid', 'open'])}')"
        for _ in range(size)
    ]
    return ["CREATE TABLE sales (seller TEXT, amount INTEGER, state TEXT)", *rows]


PROGRAMS = (
    Program(
        "python",
        "running_max",
        "returns the list of the largest number so far at each place",
        "def running_max(values):\n"
        "    result = []\n"
        "    for value in values:\n"
        "        if result and result[-1] > value:\n"
        "            result.append(result[-1])\n"
        "        else:\n"
        "            result.append(value)\n"
        "    return result\n",
        (
            ("result[-1] > value", "result[-1] < value"),
            ("result[-1] > value", "result[0] > value"),
            ("result.append(value)", "result.append(0)"),
            ("return result", "return result[1:]"),
            ("if result and", "if not result or"),
        ),
        _numbers,
        "def running_max(values):\n"
        "    result = []\n"
        "    for place in range(len(values)):\n"
        "        largest = values[0]\n"
        "        for value in values[: place + 1]:\n"
        "            if value > largest:\n"
        "                largest = value\n"
        "        result.append(largest)\n"
        "    return result\n",
    ),
    Program(
        "python",
        "find",
        "returns the place of a number in a sorted list by bisection, or -1",
        "def find(values, wanted):\n"
        "    low, high = 0, len(values) - 1\n"
        "    while low <= high:\n"
        "        middle = (low + high) // 2\n"
        "        if values[middle] == wanted:\n"
        "            return middle\n"
        "        if values[middle] < wanted:\n"
        "            low = middle + 1\n"
        "        else:\n"
        "            high = middle - 1\n"
        "    return -1\n",
        (
            ("while low <= high", "while low < high"),
            ("return -1", "return 0"),
            ("low = middle + 1", "low = middle + 2"),
            ("high = middle - 1", "high = middle - 2"),
            ("return middle", "return middle + 1"),
            ("values[middle] < wanted", "values[middle] > wanted"),
        ),
        _sorted_and_one,
    ),
    Program(
        "python",
        "is_balanced",
        "says whether the brackets ( ) [ ] in a text are balanced",
        "def is_balanced(text):\n"
        "    open_ones = []\n"
        "    for sign in text:\n"
        '        if sign in "([":\n'
        "            open_ones.append(sign)\n"
        '        elif sign in ")]":\n'
        '            if not open_ones or open_ones.pop() + sign not in ("()", "[]"):\n'
        "                return False\n"
        "    return not open_ones\n",
        (
            ("return not open_ones", "return True"),
            ("not open_ones or ", "open_ones and "),
            ('sign in "(["', 'sign in "("'),
            ("return False", "return True"),
            ('not in ("()", "[]")', 'in ("()", "[]")'),
        ),
        _brackets,
    ),
    Program(
        "python",
        "most_common",
        "returns the number that is there most often, the smallest of several",
        "def most_common(values):\n"
        "    counts = {}\n"
        "    for value in values:\n"
        "        counts[value] = counts.get(value, 0) + 1\n"
        "    return min(counts, key=lambda value: (-counts[value], value))\n",
        (
            ("(-counts[value], value)", "(counts[value], value)"),
            ("(-counts[value], value)", "(-counts[value], -value)"),
            ("counts.get(value, 0) + 1", "1"),
            ("min(counts", "max(counts"),
            ("(-counts[value], value)", "value"),
        ),
        _numbers,
        "def most_common(values):\n"
        "    best, best_count = None, 0\n"
        "    for value in sorted(values):\n"
        "        count = 0\n"
        "        for other in values:\n"
        "            if other == value:\n"
        "                count += 1\n"
        "        if count > best_count:\n"
        "            best, best_count = value, count\n"
        "    return best\n",
    ),
    Program(
        "python",
        "merge",
        "merges intervals [start, end] that overlap or touch, sorted",
        "def merge(intervals):\n"
        "    merged = []\n"
        "    for start, end in sorted(intervals):\n"
        "        if merged and start <= merged[-1][1]:\n"
        "            merged[-1][1] = max(merged[-1][1], end)\n"
        "        else:\n"
        "            merged.append([start, end])\n"
        "    return merged\n",
        (
            ("start <= merged", "start < merged"),
            ("max(merged[-1][1], end)", "end"),
            ("sorted(intervals)", "intervals"),
            ("max(", "min("),
            ("[start, end]", "[start, start]"),
        ),
        _intervals,
    ),
    Program(
        "javascript",
        "gcd",
        "returns the greatest common divisor of two whole numbers",
        "function gcd(a, b) {\n"
        "  while (b !== 0) {\n"
        "    [a, b] = [b, a % b];\n"
        "  }\n"
        "  return a;\n"
        "}\n",
        (
            ("return a;", "return b;"),
            ("a % b", "b % a"),
            ("while (b !== 0)", "if (b !== 0)"),
            ("while (b !== 0)", "while (b > 1)"),
            ("return a;", "return a + 1;"),
        ),
        _two_numbers,
    ),
    Program(
        "javascript",
        "capitalize",
        "makes the first letter of each word big and the others small",
        "function capitalize(text) {\n"
        '  return text.split(" ").map((word) => {\n'
        "    return word.slice(0, 1).toUpperCase() + word.slice(1).toLowerCase();\n"
        '  }).join(" ");\n'
        "}\n",
        (
            ("toUpperCase", "toLowerCase"),
            ("word.slice(1).toLowerCase()", "word.slice(1)"),
            ('join(" ")', 'join("")'),
            ("word.slice(0, 1)", "word.slice(0, 2)"),
            ("word.slice(1)", "word.slice(2)"),
        ),
        _word,
    ),
    Program(
        "sql",
        "paid by seller",
        "lists each seller with the sum of paid amounts, the largest first, then by name; "
        "the table is sales (seller TEXT, amount INTEGER, state TEXT)",
        "SELECT seller, SUM(amount) FROM sales WHERE state = 'paid'\n"
        "GROUP BY seller ORDER BY SUM(amount) DESC, seller\n",
        (
            ("SUM(amount) FROM", "COUNT(amount) FROM"),
            ("WHERE state = 'paid'", "WHERE state = 'open'"),
            (" DESC", ""),
            ("WHERE state = 'paid'\n", ""),
            ("SUM(amount) FROM", "MAX(amount) FROM"),
        ),
        _sales,
    ),
    Program(
        "sql",
        "above average",
        "lists seller and amount of the sales above the average amount, by amount then seller; "
        "the table is sales (seller TEXT, amount INTEGER, state TEXT)",
        "SELECT seller, amount FROM sales\n"
        "WHERE amount > (SELECT AVG(amount) FROM sales)\nORDER BY amount, seller\n",
        (
            ("amount > (", "amount < ("),
            ("AVG(amount)", "MIN(amount)"),
            ("ORDER BY amount, seller", "ORDER BY seller, amount DESC"),
            ("SELECT seller, amount", "SELECT amount, seller"),
            ("AVG(amount)", "MAX(amount)"),
        ),
        _sales,
    ),
)
