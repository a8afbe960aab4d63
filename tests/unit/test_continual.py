"""What is learnt from captures, and what a schedule remembers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from activities.continual import _new_samples
from loomos.continual.memory import change_state, concluded, over_budget, read_state
from loomos.continual.samples import learnable, mix
from loomos.errors import InvalidManifest
from loomos.jobs.continual import (
    Budget,
    Collect,
    CollectRequest,
    ContinualJob,
    ContinualSpec,
    ContinualState,
    PendingMarks,
    UpdateRecord,
)
from loomos.local_files import Reach
from loomos.manifest import read_document
from loomos.serving.outcomes import RecordWriters
from loomos.storage._local import LocalStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def captured(name: str, said: str = "an answer") -> dict[str, object]:
    turns = [{"role": "user", "content": f"question {name}"}]
    return {"id": name, "request": {"messages": turns}, "answers": [said]}


def said(samples: list[dict[str, object]]) -> list[str]:
    return [s["messages"][-1]["content"] for s in samples]  # type: ignore[index]


def test_liked_answers_and_corrections_are_learnt_and_the_rest_is_not() -> None:
    records = [
        captured("liked"),
        captured("disliked"),
        captured("corrected", "wrong"),
        captured("unrated"),
        {"id": "chatcmpl-liked", "score": 1},
        {"id": "disliked", "score": -1},
        {"id": "corrected", "score": -1, "correction": "right"},
    ]
    assert said(learnable(records, Collect())) == ["an answer", "right"]
    assert said(learnable(records, Collect(unrated=True))) == ["an answer", "right", "an answer"]


def test_completions_become_prompt_and_completion() -> None:
    records = [
        {"id": "a", "request": {"prompt": "1 + 1 ="}, "answers": ["2"]},
        {"id": "b", "request": {"prompt": "x"}, "answers": [" "]},
    ]
    assert learnable(records, Collect(unrated=True)) == [{"prompt": "1 + 1 =", "completion": "2"}]


def test_old_samples_are_mixed_in_by_their_ratio_and_always_alike() -> None:
    new = [{"n": i} for i in range(10)]
    old = [{"o": i} for i in range(100)]
    mixed = mix(new, old, 1.5, "seed")
    assert len(mixed) == 25 and sum("o" in s for s in mixed) == 15
    assert mixed == mix(new, old, 1.5, "seed") != mix(new, old, 1.5, "other")
    assert len(mix(new, old[:3], 5.0, "seed")) == 13


def record(name: str, decision: str = "promoted", **more: object) -> UpdateRecord:
    return UpdateRecord.model_validate(
        {"update_id": name, "at": NOW, "decision": decision, "reason": "", **more}
    )


def test_the_watermark_moves_only_when_the_data_was_used(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    marks = PendingMarks(cursors={"s": "k"}, offsets={"f": 10})
    change_state(store, "n", lambda s: s.model_copy(update={"pending": {"u": marks}}))
    failed = concluded(read_state(store, "n"), record("u", "failed"), learnt=False)
    assert failed.cursors == {} and failed.offsets == {} and failed.pending == {}
    used = change_state(store, "n", lambda s: concluded(s, record("u"), learnt=True))
    assert used.cursors == {"s": "k"} and used.offsets == {"f": 10}
    assert change_state(store, "n", lambda s: concluded(s, record("u"), learnt=True)) == used


def test_a_budget_counts_updates_and_time_of_its_period() -> None:
    state = ContinualState(
        updates=[
            record("old", at=NOW - timedelta(days=40), training_s=1000),
            record("a", training_s=100),
            record("b", "discarded", training_s=50),
            record("c", "skipped"),
        ]
    )
    assert over_budget(state, Budget(), NOW) == ""
    assert over_budget(state, Budget(updates=3), NOW) == ""
    assert "2 of 2 updates" in over_budget(state, Budget(updates=2), NOW)
    assert over_budget(state, Budget(training_time=timedelta(seconds=151)), NOW) == ""
    assert "took 150 s" in over_budget(state, Budget(training_time=timedelta(seconds=150)), NOW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("  cron: 'every night'", "five fields"),
        ("  cron: '0 3 * * *'\n  update: {method: full, max_steps: 1}", "an update is an adapter"),
        ("  cron: '0 3 * * *'\n  rollout: {endpoint: other}", "must be the endpoint"),
        ("  cron: '0 3 * * *'\n  collect: {captures: false}", "nothing is collected"),
        ("  cron: '0 3 * * *'\n  colect: {}", "did you mean collect"),
    ],
)
def test_malformed_schedules_are_refused(tmp_path: Path, changes: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "apiVersion: loomos.ai/v1\nkind: ContinualLearning\nmetadata: {name: n}\n"
        f"spec:\n  endpoint: chat\n{changes}\n"
    )
    with pytest.raises(InvalidManifest, match=message):
        read_document(path, ContinualJob)


def collect(
    store: LocalStore, name: str, reach: Reach, **fields: object
) -> tuple[list[str], PendingMarks]:
    spec = {
        "endpoint": "e",
        "cron": "0 3 * * *",
        "collect": {"captures": True, "unrated": True, "max_samples": 3, **fields},
    }
    request = CollectRequest(update_id="u", name=name, spec=ContinualSpec.model_validate(spec))
    found, marks = _new_samples(store, request, read_state(store, name), reach)
    return [s["messages"][0]["content"] if "messages" in s else s["text"] for s in found], marks


def test_samples_beyond_the_most_of_an_update_are_left_for_the_next(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    writers = RecordWriters(store, "server")
    for chunk in (["a", "b", "c", "d", "e"], ["f"]):
        for name in chunk:
            writers.sample("e", captured(name))
        writers.flush()
    lines = tmp_path / "more.jsonl"
    lines.write_text("".join(f'{{"text": "line {n}"}}\n' for n in range(3)))
    learnt: list[list[str]] = []
    for period in range(4):
        found, marks = collect(store, "n", Reach(roots=(tmp_path.resolve(),)), files=[str(lines)])
        learnt.append(found)
        pending = {"pending": {f"u{period}": marks}}
        change_state(store, "n", lambda s, pending=pending: s.model_copy(update=pending))
        done = record(f"u{period}")
        change_state(store, "n", lambda s, done=done: concluded(s, done, learnt=True))
    assert learnt == [
        ["question a", "question b", "question c"],
        ["question d", "question e", "question f"],
        ["line 0", "line 1", "line 2"],
        [],
    ]
