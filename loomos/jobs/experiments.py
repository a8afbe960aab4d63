"""Messages about experiments: trials, suggestions, what a sweep carries and says of itself."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from loomos.errors import Unavailable
from loomos.jobs.message import CompactMessage, Message, TimelineEntryBase
from loomos.jobs.pruning import PruningRule, Reports
from loomos.jobs.training import ResolvedInputs
from loomos.manifest import ExperimentSpec, TrainingSpec
from loomos.quantities import Duration

Params = dict[str, bool | int | float | str]
"""Values of parameters, by name; those that do not apply are left out."""


class ExperimentState(StrEnum):
    """Where an experiment is."""

    PREPARING = "preparing"
    """Pins inputs, reads earlier experiments."""
    RUNNING = "running"
    """Trials run."""
    STOPPING = "stopping"
    """Enough is known, or the budget is used; the last trials end."""
    COMPLETED = "completed"
    """Done."""
    FAILED = "failed"
    """It could not be carried out."""
    CANCELLED = "cancelled"
    """Ended by a person."""

    @property
    def is_final(self) -> bool:
        """Whether it will not change any more."""
        return self.value in ("completed", "failed", "cancelled")


class TrialState(StrEnum):
    """Where a trial is."""

    WAITING = "waiting"
    """Chosen; waits for its turn."""
    RUNNING = "running"
    """Handed to the pool."""
    COMPLETED = "completed"
    """Ran to its end."""
    PRUNED = "pruned"
    """Given up."""
    FAILED = "failed"
    """Did not come to an end."""
    CANCELLED = "cancelled"
    """Ended with its experiment."""

    @property
    def is_final(self) -> bool:
        """Whether it will not change any more."""
        return self not in (TrialState.WAITING, TrialState.RUNNING)


# --- trials -------------------------------------------------------------------------------------


class TrialRequest(CompactMessage):
    """Run a trial."""

    experiment_id: str
    """Of which experiment."""
    number: int
    """Counts from 0."""
    retry: int = 0
    """How often it has failed before."""
    params: Params
    """Chosen values."""
    seed: int
    """The experiment's."""
    metrics: list[str]
    """What it must give; the first is what it reports on the way."""
    limits: list[str] = []
    """What it must give besides."""
    function: str | None = None
    """What to call."""
    arguments_json: str = "{}"
    """For the function."""
    training: TrainingSpec | None = None
    """Or what to train."""
    inputs: ResolvedInputs | None = None
    """From what."""
    pruning: PruningRule | None = None
    """When to give up."""
    most_reports: int
    """How often it may report."""
    parent: int | None = None
    """The trial whose state it goes on from."""
    timeout: Duration
    """Time for it."""

    @property
    def job_id(self) -> str:
        """Where its checkpoints, logs and metrics are in the store."""
        return trial_job_id(self.experiment_id, self.number)


def trial_job_id(experiment_id: str, number: int) -> str:
    """Id under which a trial keeps checkpoints, or runs as a job of its own."""
    return f"{experiment_id}-t{number}"


class TrialResult(CompactMessage):
    """What came of a trial."""

    state: TrialState
    """Completed, pruned or failed."""
    values: list[float] = []
    """By metric, if it completed."""
    metrics: dict[str, float] = {}
    """Others that it gave."""
    reports: Reports = []
    """On the way."""
    rungs: int = 0
    """Rungs of `asha` and `hyperband` at which it was judged."""
    node: str = ""
    """Where it ran."""
    duration_s: float = 0.0
    """How long its last attempt ran."""
    cost: float = 0.0
    """By the node's price."""
    error: str = ""
    """Why it failed."""


class TrialRecord(Message):
    """A trial, as the experiment keeps it."""

    number: int
    """Counts from 0."""
    params: Params
    """Chosen values."""
    state: TrialState = TrialState.WAITING
    """Where it is."""
    values: list[float] = []
    """By metric."""
    metrics: dict[str, float] = {}
    """Others."""
    reports: Reports = []
    """(step, value), on the way."""
    rungs: int = 0
    """Rungs at which it was judged."""
    is_feasible: bool = True
    """Whether it keeps every limit."""
    parent: int | None = None
    """The trial whose state it went on from."""
    retries: int = 0
    """Times it failed and was tried again."""
    node: str = ""
    """Where it ran."""
    started_at: datetime | None = None
    """When it was handed to the pool."""
    finished_at: datetime | None = None
    """When its result came."""
    duration_s: float = 0.0
    """How long it ran."""
    cost: float = 0.0
    """By the node's price."""
    error: str = ""
    """Why it failed."""


# --- suggestions --------------------------------------------------------------------------------


class Known(CompactMessage):
    """What a sampler is told of a trial."""

    params: Params
    """Its point."""
    state: TrialState
    """How it ended."""
    values: list[float] = []
    """By metric."""
    reports: Reports = []
    """On the way."""
    violations: dict[str, float] = {}
    """By limit how far it was broken; at most 0 where it was kept."""


class SuggestRequest(Message):
    """Choose the points of some trials that follow each other."""

    experiment_id: str
    """Of which experiment."""
    study: str
    """Which study: each run of a sweep has its own."""
    first: int
    """First trial to choose for."""
    count: int
    """How many."""
    known_from: int
    """Results of trials before this one are not in `known`."""
    known: list[Known]
    """Results from there on, in order of their numbers."""


class Suggested(Message):
    """Points for the trials asked for; fewer if the space has no more."""

    params: list[Params]
    """One for each."""


class KnownTrials(Message):
    """The trials that a study is made of."""

    earlier: list[Known] = []
    """Trials of earlier experiments."""
    known: list[Known] = []
    """Results of the trials that are finished with none unfinished before them."""


class StudyState(KnownTrials):
    """Answer of the `study` query: all that a study is made of."""

    spec: ExperimentSpec
    """How points are chosen."""
    packed: str = ""
    """The trials, compressed; then none are given beside it."""


class WarmStartRequest(Message):
    """Read the trials of earlier experiments."""

    experiments: list[str]
    """Their ids."""
    spec: ExperimentSpec
    """The space that they must fit."""


class WarmStart(Message):
    """What earlier experiments found."""

    trials: list[Known]
    """Those that fit."""


# --- the experiment -----------------------------------------------------------------------------


class ExperimentEvent(TimelineEntryBase):
    """Something that happened to an experiment."""

    state: ExperimentState
    """State after it."""


class CarriedSweep(Message):
    """What a run of the sweep hands to the run that continues it."""

    trials: list[TrialRecord]
    """Every trial."""
    finished: list[int]
    """Numbers in the order in which results came."""
    earlier: list[Known] = []
    """Trials of earlier experiments."""
    inputs: ResolvedInputs | None = None
    """Pinned inputs of trainings."""
    started_at: datetime
    """When the first run began."""
    timeline: list[ExperimentEvent] = []
    """What happened."""
    stop_reason: str = ""
    """Why no more trials start; empty while they do."""
    exhausted: bool = False
    """Whether the space has no more points."""
    front: list[int] | None = None
    """Numbers of the trials that no other one dominates; None if that was not kept."""
    packed: str = ""
    """All of this, compressed; then nothing else is given but when the first run began."""


class ExperimentInput(Message):
    """Input of the `ExperimentSweep` workflow."""

    experiment_id: str
    """Workflow id."""
    name: str
    """From the document."""
    owner: str
    """Who started it."""
    project: str = "default"
    """The fairness key of its trials."""
    spec: ExperimentSpec
    """What to do."""
    carried: CarriedSweep | None = None
    """State of the run that this one continues."""


class StopRequest(Message):
    """Start no more trials."""

    reason: str = ""
    """For the record."""
    person: str
    """Who asked."""


class ExperimentStatus(Message):
    """Answer of the `status` query."""

    experiment_id: str
    """Which."""
    name: str
    """From the document."""
    owner: str
    """Who started it."""
    project: str = "default"
    """Project."""
    state: ExperimentState
    """Where it is."""
    message: str = ""
    """Why, for people."""
    spec: ExperimentSpec | None = None
    """What it does; none where what it was started with cannot be read."""
    counts: dict[str, int] = {}
    """Trials by state."""
    best: list[TrialRecord] = []
    """The best trial, or the Pareto front; empty until one is feasible and complete."""
    cost: float = 0.0
    """Of all trials."""
    started_at: datetime
    """When."""
    finished_at: datetime | None = None
    """When it ended."""
    timeline: list[ExperimentEvent] = []
    """What happened, oldest first."""
    partial: str = ""
    """Why this is not everything: the workflow itself does not answer. Empty if it does."""

    @property
    def known_spec(self) -> ExperimentSpec:
        """What it does.

        Raises:
            Unavailable: what it was started with cannot be read.
        """
        if self.spec is None:
            raise Unavailable(self.partial or "what it was started with is not known")
        return self.spec


class TrialsQuery(Message):
    """Ask for trials."""

    since: int = 0
    """Leave out so many of those that finished first."""
    limit: int = 500
    """Most to give."""


class TrialPage(Message):
    """Trials that have finished, in the order in which they did."""

    trials: list[TrialRecord]
    """Trials."""
    next: int
    """`since` for what comes after."""
    is_over: bool
    """Whether there will be no more after these."""
    partial: str = ""
    """Why these are not all: the workflow itself does not answer. Empty if it does."""


class ExperimentResult(Message):
    """Result of an `ExperimentSweep`."""

    state: ExperimentState
    """`completed` always; failures raise."""
    best: list[TrialRecord]
    """The best trial, or the Pareto front."""
    trials: int
    """How many there were."""
