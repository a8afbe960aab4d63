"""Bodies of requests: what is refused, where it is wrong, and what it may cost."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from api.bodies import MOST_VALUES, read_json
from loomos.errors import InvalidManifest

KEY = "a" * 20_000


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ('{"a": {"b": [1, "\\ud800"]}}', "a.b.1", "half of a surrogate pair"),
        ('{"a": {"\\ud800": 1}}', "a", "half of a surrogate pair"),
        ('"\\ud800"', "$", "half of a surrogate pair"),
        ('{"a": [0, 1e999]}', "a.1", "the number is larger"),
        ('{"a": NaN}', "$", "NaN is no number"),
        (f'{{"{KEY}": [1e999]}}', f"{'a' * 64}.0", "the number is larger"),
        ("[" * 66 + "]" * 66, "0.0.0.0.0.0.0.0", "nested deeper than 64"),
        ("[" * 50_000, "$", "nested deeper than 64"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(body: str, path: str, words: str) -> None:
    with pytest.raises(InvalidManifest, match=words) as refused:
        read_json(body.encode())
    (error,) = refused.value.errors
    assert error.path == path


def test_a_body_costs_memory_in_proportion_to_its_size() -> None:
    body = json.dumps({KEY: [0] * 10_000}).encode()
    tracemalloc.start()
    try:
        assert len(read_json(body)[KEY]) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 10 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("item", ["{}", "0", '{"a":[]}', "[]"])
def test_a_body_of_too_many_values_is_refused_before_it_is_read(item: str) -> None:
    body = f"[{','.join([item] * (MOST_VALUES + 1))}]".encode()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidManifest, match="more than 100,000 values; send less"):
            read_json(body)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


def test_punctuation_in_texts_counts_for_nothing() -> None:
    text = '[{:,"\\' * MOST_VALUES
    assert read_json(json.dumps({text: [text]}).encode()) == {text: [text]}
    with pytest.raises(InvalidManifest, match="not JSON"):
        read_json(b'{"' + b'\\",' * MOST_VALUES)
