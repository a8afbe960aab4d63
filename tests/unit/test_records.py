"""Records that several nodes write are read as one sequence, from either end, and lost nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from loomos.errors import InvalidInput
from loomos.settings import StorageSettings
from loomos.storage import Store, open_store
from loomos.storage.chunks import ChunkWriter
from loomos.storage.records import Position, Wanted, read_newest, read_records

PREFIX = "jobs/j/logs/"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StorageSettings(url=tmp_path.as_uri()))


class Node:
    """Writes lines of one node."""

    def __init__(self, store: Store, generation: int, number: int) -> None:
        self._number, self._generation = number, generation
        self._writer = ChunkWriter(store, PREFIX, generation, f"n{number:04d}")

    def says(self, at: float, *steps: int) -> None:
        for step in steps:
            self._writer.append(
                {
                    "at": at,
                    "generation": self._generation,
                    "kind": "step",
                    "step": step,
                    "source": f"rank {self._number} stdout",
                }
            )
        self._writer.flush()


def steps(records: list[dict[str, object]]) -> list[object]:
    return [record["step"] for record in records]


def test_nothing_of_a_slower_node_is_passed_over(store: Store) -> None:
    first, second = Node(store, 1, 0), Node(store, 1, 1)
    second.says(1.0, 10)
    found, position = read_records(store, PREFIX, Position())
    assert steps(found) == [10]
    first.says(2.0, 20)
    second.says(3.0, 30)
    found, position = read_records(store, PREFIX, Position.parse(str(position)))
    assert steps(found) == [20, 30]
    found, after = read_records(store, PREFIX, position)
    assert (found, after) == ([], position)
    Node(store, 2, 0).says(4.0, 40)
    assert steps(read_records(store, PREFIX, position)[0]) == [40]


def test_an_attempt_is_merged_by_time_and_attempts_follow_each_other(store: Store) -> None:
    Node(store, 2, 0).says(1.5, 99)
    first, second = Node(store, 1, 0), Node(store, 1, 1)
    for moment in range(0, 20, 2):
        first.says(float(moment), moment)
        second.says(moment + 1.0, moment + 1)
    found, _ = read_records(store, PREFIX, Position())
    assert steps(found) == [*range(20), 99]


def test_pages_hold_about_as_many_as_asked_for_and_together_all(store: Store) -> None:
    first, second = Node(store, 1, 0), Node(store, 1, 1)
    for moment in range(0, 40, 2):
        first.says(float(moment), moment)
        second.says(moment + 1.0, moment + 1)
    position, pages = Position(), []
    while True:
        found, after = read_records(store, PREFIX, position, most=7)
        if after == position:
            break
        pages.append(steps(found))
        position = Position.parse(str(after))
    assert [step for page in pages for step in page] == list(range(40))
    assert max(map(len, pages)) <= 8


def test_the_newest_come_from_the_end(store: Store) -> None:
    Node(store, 1, 0).says(1.0, *range(50))
    late, other = Node(store, 2, 0), Node(store, 2, 1)
    late.says(10.0, 60, 61)
    other.says(11.0, 70)
    late.says(12.0, 80)
    found, end = read_newest(store, PREFIX, Wanted(), 3)
    assert steps(found) == [61, 70, 80]
    assert steps(read_newest(store, PREFIX, Wanted(), 6)[0]) == [48, 49, 60, 61, 70, 80]
    assert steps(read_newest(store, PREFIX, Wanted(generation=1), 2)[0]) == [48, 49]
    assert steps(read_newest(store, PREFIX, Wanted(rank=1), 9)[0]) == [70]
    assert steps(read_newest(store, PREFIX, Wanted(since=11.0), 9)[0]) == [70, 80]
    assert steps(read_newest(store, PREFIX, Wanted(every=10, since=2.0), 9)[0]) == [60, 70, 80]
    other.says(13.0, 90)
    assert steps(read_records(store, PREFIX, end)[0]) == [90]


def test_the_newest_cost_few_requests(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(store, 1, 0)
    for step in range(300):
        node.says(float(step), step)
    asked: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda key: asked.append(key) or get(key))
    assert steps(read_newest(store, PREFIX, Wanted(), 20)[0]) == list(range(280, 300))
    assert len(asked) <= 30


@pytest.mark.parametrize("text", ["x", "g1:n1=1", "g000001:", "g000001:n0000=x", "g²:n0=1", "/"])
def test_another_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="after"):
        Position.parse(text)
