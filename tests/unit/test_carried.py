"""What experiments and campaigns carry from run to run fits, and the front is kept cheaply."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from loomos.errors import InvalidManifest
from loomos.jobs.campaigns import CampaignStatus, CarriedCampaign, MemberReport, RoundReport
from loomos.jobs.experiments import (
    CarriedSweep,
    Known,
    KnownTrials,
    Params,
    TrialRecord,
    TrialResult,
    TrialState,
)
from loomos.jobs.packing import MOST_BYTES, MOST_PLAIN_BYTES
from loomos.jobs.states import JobState
from loomos.manifest import Experiment, ExperimentSpec, validate_as
from loomos.rl import campaigns
from loomos.weaver import results
from loomos.weaver.book import TrialBook
from loomos.weaver.packing import pack_study, pack_sweep, unpack_study, unpack_sweep

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RANDOM = random.Random(0)


def document(names: list[str], trials: int = 2000, **more: Any) -> dict[str, Any]:
    space = {name: {"type": "uniform", "min": 0, "max": 1} for name in names}
    spec = {"objective": {"function": "m:f"}, "parameters": space, "trials": trials, **more}
    head = {"apiVersion": "loomos.ai/v1", "kind": "Experiment", "metadata": {"name": "x"}}
    return {**head, "spec": spec}


def spec_of(*args: Any, **more: Any) -> ExperimentSpec:
    return validate_as(Experiment, document(*args, **more)).spec


def sweep(spec: ExperimentSpec, error: Callable[[], str] = str, reports: int = 20) -> CarriedSweep:
    trials = [
        TrialRecord(
            number=number,
            params={name: RANDOM.random() for name in spec.parameters},
            state=TrialState.FAILED if error is not str else TrialState.COMPLETED,
            values=[RANDOM.random()],
            reports=[(step * 1000, RANDOM.random()) for step in range(reports)],
            error=error(),
            started_at=NOW,
            finished_at=NOW,
        )
        for number in range(spec.most_trials)
    ]
    return CarriedSweep(trials=trials, finished=list(range(len(trials))), started_at=NOW)


def test_an_honest_experiment_travels_whole() -> None:
    spec = spec_of([f"p{n}" for n in range(10)])
    carried = sweep(spec)
    assert len(carried.model_dump_json()) > 2 * 2**20
    packed = pack_sweep(carried, spec)
    assert len(packed.model_dump_json()) <= MOST_BYTES + 200
    assert unpack_sweep(packed) == carried
    assert unpack_sweep(carried) is carried, "as older versions wrote it"


def test_errors_are_shortened_first_and_reports_then() -> None:
    spec = spec_of([f"p{n}" for n in range(8)])
    letters = [chr(code) for code in range(0x4E00, 0x9FA0)]
    carried = sweep(spec, lambda: "".join(RANDOM.choices(letters, k=1000)))
    packed = pack_sweep(carried, spec)
    assert len(packed.packed) <= MOST_BYTES
    found = unpack_sweep(packed)
    assert [t.params for t in found.trials] == [t.params for t in carried.trials]
    assert {len(t.error) for t in found.trials} == {40}
    assert found.trials[7].error == carried.trials[7].error[:40]
    assert found.trials[7].reports == carried.trials[7].reports[1::2]


def test_what_a_study_is_made_of_fits() -> None:
    spec = spec_of([f"p{n}" for n in range(8)])
    trials = sweep(spec, reports=60).trials
    known = [Known(params=t.params, state=t.state, reports=t.reports) for t in trials]
    state = pack_study(spec, KnownTrials(known=known))
    assert len(state.packed) <= MOST_BYTES
    found = unpack_study(state)
    assert (found.spec, len(found.known)) == (spec, 2000)
    assert all(f.params == k.params for f, k in zip(found.known, known, strict=True))
    assert {f.reports[-1] == k.reports[-1] for f, k in zip(found.known, known, strict=True)} == {
        True
    }


def test_points_are_counted_in_bytes() -> None:
    names = ["a" + "\U00010400" * 61 + str(n) for n in range(7)]
    with pytest.raises(InvalidManifest, match=r"spec\.trials: 2000 points .* more than 1,000,000"):
        validate_as(Experiment, document(names))
    stored = document(names)["spec"]
    assert ExperimentSpec.model_validate(stored).trials == 2000, "one that runs can be read"


def test_a_campaign_of_failures_fits_and_can_be_asked() -> None:
    letters = [chr(code) for code in range(0x4E00, 0x9FA0)]
    rounds = [
        RoundReport(
            number=number,
            members={
                f"m{n}": MemberReport(
                    job_id=f"c-m{n}-r{number}", error="".join(RANDOM.choices(letters, k=500))
                )
                for n in range(200)
            },
        )
        for number in range(10)
    ]
    carried = CarriedCampaign(rounds=rounds, started_at=NOW)
    assert campaigns.unpack(carried) is carried
    packed = campaigns.pack(carried)
    assert len(packed.packed) <= MOST_BYTES
    found = campaigns.unpack(packed)
    error = rounds[3].members["m7"].error
    assert found.rounds[3].members["m7"].error == error[:40]
    assert found == CarriedCampaign(rounds=found.rounds, started_at=NOW)
    status = CampaignStatus(
        campaign_id="c", name="c", owner="o", state=JobState.RUNNING, phase="p",
        started_at=NOW, rounds=rounds,
    )  # fmt: skip
    told = campaigns.told(status)
    assert len(told.model_dump_json().encode()) <= MOST_PLAIN_BYTES
    assert told.rounds[3].members["m7"].error == error[:200]


# --- the Pareto front -----------------------------------------------------------------------------


def judged(metrics: int) -> ExperimentSpec:
    names = [{"name": f"m{n}"} for n in range(metrics)]
    return spec_of(["p"], metrics=names, sampler="nsga2")


def settled(book: TrialBook, values: list[float]) -> None:
    point: Params = {"p": 0.5}
    book.add(point)
    result = TrialResult(state=TrialState.COMPLETED, values=values)
    book.settle(len(book) - 1, result, NOW)


@pytest.mark.parametrize(("metrics", "most"), [(2, 2 * 2000), (10, 2000 * 2000 // 2)])
def test_a_front_of_all_trials_is_kept_and_not_made_again(
    metrics: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = [0]
    compare = results.dominates

    def counted(a: list[float], b: list[float]) -> bool:
        compared[0] += 1
        return compare(a, b)

    monkeypatch.setattr(results, "dominates", counted)
    spec = judged(metrics)
    book = TrialBook(spec, [], [])
    for number in range(2000):
        before = compared[0]
        settled(book, [float(number)] * (metrics - 1) + [-float(number)])
        assert compared[0] - before <= number
    assert compared[0] <= most
    before = compared[0]
    assert [trial.number for trial in book.best()] == list(range(2000))
    again = TrialBook(spec, book.trials, book.finished, book.front)
    assert again.best() == book.best()
    assert compared[0] == before, "neither a look nor a new run compares anything"


@pytest.mark.parametrize("metrics", [1, 2, 3])
def test_the_front_is_that_of_its_definition(metrics: int) -> None:
    spec = judged(metrics)
    for _ in range(50):
        book = TrialBook(spec, [], [])
        for _ in range(RANDOM.randint(1, 30)):
            settled(book, [float(RANDOM.randint(0, 5)) for _ in range(metrics)])
        trials = book.trials
        front = [
            t
            for t in trials
            if not any(
                o.values != t.values and all(map(float.__le__, o.values, t.values)) for o in trials
            )
        ]
        assert book.front == [t.number for t in front]
        assert book.best() == (front[:1] if metrics == 1 else front)
        assert results.best(spec, trials) == book.best()
