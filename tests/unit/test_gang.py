"""How a gang's end is judged: whose fault it was, and whether it would come again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.exceptions import ActivityError, ApplicationError, RetryState

from loomos.errors import InvalidManifest, Unavailable
from loomos.jobs.training import AttemptSummary, CarriedState, Progress, TrainOutcome
from workflows.causes import as_failure, root_cause
from workflows.gang import GangEnd, GangFailed, _judge
from workflows.journal import Journal


def broken(kind: str, message: str, step: int) -> Any:
    """A member that failed with an exception of this class at this step."""
    error = ActivityError(
        "activity failed",
        scheduled_event_id=1,
        started_event_id=2,
        identity="n",
        activity_type="train",
        activity_id="1",
        retry_state=RetryState.MAXIMUM_ATTEMPTS_REACHED,
    )
    error.__cause__ = ApplicationError(message, step, type=kind)
    loop = asyncio.new_event_loop()
    member: asyncio.Future[Any] = loop.create_future()
    member.set_exception(error)
    member.exception()
    loop.close()
    return member


def signature(kind: str, message: str, step: int) -> str:
    end = _judge([broken(kind, message, step)], "", None)
    assert isinstance(end, GangFailed)
    return end.signature


def test_the_same_exception_at_the_same_step_is_known_again() -> None:
    first = signature("ValueError", "rank 0: ValueError: bad shape at 0x7f01", 7)
    assert first and first == signature("ValueError", "rank 1: ValueError: bad shape at 0xabc", 7)
    assert first != signature("ValueError", "rank 0: ValueError: bad shape at 0x7f01", 8)
    assert first != signature("KeyError", "rank 0: ValueError: bad shape at 0x7f01", 7)


def test_who_misses_the_store_is_told_of_before_those_who_miss_that_member() -> None:
    peer = broken("RuntimeError", "[gloo] Connection closed by peer [127.0.0.1]:1234", 8)
    end = _judge([peer, broken("Unavailable", "S3 cannot be reached", 8)], "", None)
    assert isinstance(end, GangFailed) and end.kind == "Unavailable"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("AttemptFailed", "ranks ended with exit code -9 and no word"),
        ("Unavailable", "the store is away"),
        ("RuntimeError", "[gloo] Connection closed by peer [127.0.0.1]:1234"),
        ("DistNetworkError", "the server is gone"),
    ],
)
def test_a_fault_of_the_machine_never_counts_as_the_same_error(kind: str, message: str) -> None:
    assert signature(kind, message, 3) == ""


async def test_an_attempt_that_was_cancelled_tells_how_far_it_came() -> None:
    outcome = TrainOutcome(status="stopped", step=42, total_steps=100)
    end = _judge_done(outcome)
    assert isinstance(end, GangEnd)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    attempt = AttemptSummary(generation=1, nodes=["n1"], started_at=began)
    known = Progress(generation=1, step=10, total_steps=100)
    journal = Journal(CarriedState(attempts=[attempt], progress=known), lambda: [])
    journal.close_attempt(end)
    assert journal.progress is not None
    assert (journal.attempts[0].outcome, journal.attempts[0].to_step) == ("cancelled", 42)
    assert journal.progress.step == 42


def _judge_done(outcome: TrainOutcome) -> GangEnd | GangFailed:
    loop = asyncio.get_running_loop()
    member: Any = loop.create_future()
    member.set_result(outcome)
    return _judge([member], "cancelled", None)


def test_a_mistake_of_ours_is_no_result_of_a_run() -> None:
    assert as_failure(KeyError("ours")) is None
    failed = ApplicationError("theirs")
    assert as_failure(failed) is failed
    found = as_failure(InvalidManifest([], "experiment"))
    assert isinstance(found, ApplicationError) and found.non_retryable
    assert found.type == "InvalidManifest"
    away = as_failure(Unavailable("away"))
    assert isinstance(away, ApplicationError) and not away.non_retryable
    assert root_cause(found) == "experiment has 0 errors: "
