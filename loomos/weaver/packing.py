"""What an experiment hands to its next run and to its sampler, as messages that always fit.

What is too much even compressed is shortened: errors first, then what trials reported on their way,
of which the last is kept longest. Points and values, by which is searched, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from loomos.jobs.experiments import CarriedSweep, Known, KnownTrials, StudyState, TrialRecord
from loomos.jobs.packing import packed, unpacked
from loomos.jobs.pruning import Reports
from loomos.manifest import ExperimentSpec

ERROR_LENGTHS = (200, 40)
"""Characters that are left of errors, the first time and the second."""


def pack_sweep(carried: CarriedSweep, spec: ExperimentSpec) -> CarriedSweep:
    """The same in few bytes."""
    text = packed(_shorter_sweeps(carried, {limit.metric for limit in spec.limits}))
    return CarriedSweep(trials=[], finished=[], started_at=carried.started_at, packed=text)


def unpack_sweep(carried: CarriedSweep) -> CarriedSweep:
    """What `pack_sweep` was given."""
    return unpacked(CarriedSweep, carried.packed) if carried.packed else carried


def pack_study(spec: ExperimentSpec, known: KnownTrials) -> StudyState:
    """All that a study is made of, in few bytes."""
    return StudyState(spec=spec, packed=packed(_shorter_studies(known)))


def unpack_study(state: StudyState) -> StudyState:
    """What `pack_study` was given."""
    if not state.packed:
        return state
    found = unpacked(KnownTrials, state.packed)
    return StudyState(spec=state.spec, earlier=found.earlier, known=found.known)


def _shorter_sweeps(carried: CarriedSweep, limits: set[str]) -> Iterator[CarriedSweep]:
    yield carried
    for length in ERROR_LENGTHS:
        carried = _with_trials(carried, [_with_error(t, length) for t in carried.trials])
        yield carried
    while any(t.reports for t in carried.trials) or any(k.reports for k in carried.earlier):
        trials = [t.model_copy(update={"reports": _half(t.reports)}) for t in carried.trials]
        carried = _with_trials(carried, trials)
        carried = carried.model_copy(update={"earlier": _with_half_reports(carried.earlier)})
        yield carried
    trials = [_with_metrics_of(t, limits) for t in carried.trials]
    carried = _with_trials(carried, trials)
    yield carried
    while carried.earlier:
        half = carried.earlier[: len(carried.earlier) // 2]
        carried = carried.model_copy(update={"earlier": half})
        yield carried


def _shorter_studies(known: KnownTrials) -> Iterator[KnownTrials]:
    yield known
    while any(each.reports for each in [*known.known, *known.earlier]):
        known = KnownTrials(
            earlier=_with_half_reports(known.earlier), known=_with_half_reports(known.known)
        )
        yield known
    while known.earlier:
        half = known.earlier[: len(known.earlier) // 2]
        known = KnownTrials(earlier=half, known=known.known)
        yield known


def _with_trials(carried: CarriedSweep, trials: list[TrialRecord]) -> CarriedSweep:
    return carried.model_copy(update={"trials": trials})


def _with_error(trial: TrialRecord, length: int) -> TrialRecord:
    return trial.model_copy(update={"error": trial.error[:length]})


def _with_metrics_of(trial: TrialRecord, names: set[str]) -> TrialRecord:
    kept = {name: value for name, value in trial.metrics.items() if name in names}
    return trial.model_copy(update={"metrics": kept})


def _with_half_reports(known: list[Known]) -> list[Known]:
    return [each.model_copy(update={"reports": _half(each.reports)}) for each in known]


def _half(reports: Reports) -> Reports:
    """Every second report, the last among them; none of a single one."""
    return reports[1::2] if len(reports) % 2 == 0 else reports[2::2]
