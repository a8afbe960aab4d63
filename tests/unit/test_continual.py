"""What is learnt from captures, and what a schedule remembers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
from loomos.jobs.serving import EndpointSpec, Route, Target
from loomos.local_files import Reach
from loomos.manifest import read_document
from loomos.serving.api_errors import ApiError
from loomos.serving.noting import MOST_SAMPLE_BYTES, Choice, Notes
from loomos.serving.outcomes import RecordWriters
from loomos.serving.protocol import ChatRequest, CompletionRequest, FeedbackRequest
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


def conclude(store: LocalStore, update: str, marks: PendingMarks) -> None:
    """End a period whose samples were learnt."""
    pending = {"pending": {update: marks}}
    change_state(store, "n", lambda state: state.model_copy(update=pending))
    change_state(store, "n", lambda state: concluded(state, record(update), learnt=True))


def periods(store: LocalStore, count: int, **fields: object) -> list[list[str]]:
    """What so many periods learn, one after the other."""
    learnt: list[list[str]] = []
    for period in range(count):
        found, marks = collect(store, "n", Reach(), **fields)
        learnt.append([question.split()[1] for question in found])
        conclude(store, f"u{period}", marks)
    return learnt


def test_what_memory_does_not_hold_at_a_time_is_left_for_the_next_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.continual.MOST_READ_BYTES", 5000)
    store = LocalStore(tmp_path)
    writers = RecordWriters(store, "server")
    for name in "abcdefgh":
        writers.sample("e", captured(name, "x" * 2000))
        writers.flush()
    assert periods(store, 4, max_samples=100, min_samples=1) == [
        ["a", "b", "c"],
        ["d", "e", "f"],
        ["g", "h"],
        [],
    ]


def test_much_that_nothing_is_learnt_from_does_not_hide_what_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.continual.MOST_READ_BYTES", 5000)
    store = LocalStore(tmp_path)
    writers = RecordWriters(store, "server")
    for name in "abcdefgh":
        writers.sample("e", captured(name, "x" * 2000))
        if name in "gh":
            writers.sample("e", {"id": name, "score": 1})
        writers.flush()
    fields = {"unrated": False, "max_samples": 2, "min_samples": 2}
    assert periods(store, 2, **fields) == [["g", "h"], []]
    # More than there may ever be is not waited for without end.
    assert periods(LocalStore(tmp_path), 1, max_samples=1, min_samples=9) == [[]]


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
        conclude(store, f"u{period}", marks)
    assert learnt == [
        ["question a", "question b", "question c"],
        ["question d", "question e", "question f"],
        ["line 0", "line 1", "line 2"],
        [],
    ]


# --- what is kept of requests -------------------------------------------------------------------


class Kept:
    """Samples and outcomes, in lists."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self.outcomes: list[object] = []

    def sample(self, endpoint: str, sample: dict[str, Any]) -> None:
        self.samples.append(sample)

    def outcome(self, endpoint: str, outcome: object) -> None:
        self.outcomes.append(outcome)


TARGET = Target(version="m@0123")
ROUTE = Route(
    endpoint="m",
    generation=1,
    spec=EndpointSpec(model="m", capture=True),
    stable=TARGET,
    issued_at=NOW,
)


def test_a_capture_has_the_protocols_fields_and_is_not_large() -> None:
    kept: Any = Kept()
    notes = Notes(kept)
    choice = Choice(
        route=ROUTE, arm="stable", target=TARGET, hosted=None, user="u", request_id="s-0123-1"
    )
    part = {"type": "text", "text": "hi", "padding": "x" * 1000}
    chat = {"model": "m", "messages": [{"role": "user", "content": [part]}], "padding": "x" * 1000}
    notes.note_sample(choice, ChatRequest.model_validate(chat), ["hello"])
    large = {"model": "m", "prompt": "x" * MOST_SAMPLE_BYTES}
    notes.note_sample(choice, CompletionRequest.model_validate(large), ["y"])
    small = {"model": "m", "prompt": "x", "metadata": {"a": [0] * 1000}, "temperature": 0.5}
    notes.note_sample(choice, CompletionRequest.model_validate(small), ["y"])
    assert [sample["request"] for sample in kept.samples] == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        },
        {"model": "m", "prompt": "x", "temperature": 0.5},
    ]


def test_a_correction_that_is_too_large_to_keep_is_refused() -> None:
    kept: Any = Kept()
    body = {"id": "s-0123-1", "score": "down", "correction": "\U0001f9f5" * 99_999}
    with pytest.raises(ApiError, match=r"correction: has more than 262,144 bytes"):
        Notes(kept).feedback(FeedbackRequest.model_validate(body), [ROUTE])
    assert not kept.samples and not kept.outcomes
    body["correction"] = "better"
    Notes(kept).feedback(FeedbackRequest.model_validate(body), [ROUTE])
    assert kept.samples[0]["correction"] == "better" and len(kept.outcomes) == 1
