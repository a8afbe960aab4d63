"""What a person may write of an experiment: what is searched, how, and for how long."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import to_json

from loomos.errors import InvalidManifest
from loomos.limits import (
    LARGEST_INTEGER,
    MOST_STEPS,
    WRITABLE,
    Coefficient,
    Count,
    JsonMap,
    Positive,
    Real,
    Span,
    Steps,
    Timeout,
    Within,
    Words,
)
from loomos.manifest._document import validate_as
from loomos.manifest._document_model import Document, Metadata, WholeDocument
from loomos.manifest._expressions import names_in
from loomos.manifest._local_path import TemplateOf
from loomos.manifest._spec import TrainingSpec
from loomos.manifest._template import placeholders, substitute

Scalar = bool | int | float | str
"""A value of a parameter."""

Bound = Annotated[float, Within(-1e15, 1e15, "beyond that, neighbouring values are the same")]
"""An end of a parameter's range."""
Choice = (
    bool
    | Annotated[
        int, Within(-LARGEST_INTEGER, LARGEST_INTEGER, "JSON cannot say a larger one exactly")
    ]
    | Bound
    | Annotated[str, Field(max_length=1024), WRITABLE]
)
"""A value of a parameter, as a document may name it."""

ParameterName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_]\w*$")]

TRAINING_METRICS = ("validation_loss", "loss", "steps", "training_seconds")
"""What a training trial can be judged by."""

MOST_TRIALS = 2000
"""Most trials of an experiment; all of them travel from run to run of its workflow."""

MOST_REPORTS_IN_ALL = 40_000
MOST_BYTES_OF_POINTS = 1_000_000


class Parameter(Document):
    """One dimension of the space."""

    type: Literal["uniform", "log_uniform", "int_uniform", "int_log_uniform", "choice"]
    """How values are spread: evenly or evenly in their logarithm, real or whole, or some values."""
    min: Bound | None = None
    """Least value."""
    max: Bound | None = None
    """Greatest value, included."""
    step: Positive | None = None
    """Distance between values of `uniform` and `int_uniform`."""
    values: Annotated[list[Choice], Field(min_length=1, max_length=1000)] | None = None
    """Values of `choice`."""
    when: Annotated[
        dict[ParameterName, Choice | Annotated[list[Choice], Field(max_length=1000)]],
        Field(max_length=200),
    ] = {}
    """Only where earlier parameters have these values, such as `{optimizer: [adamw, lion]}`."""

    def faults(self) -> Iterator[str]:
        """A choice has values, all else has bounds that fit its scale."""
        if self.type == "choice":
            yield from self._choice_faults()
        else:
            yield from self._range_faults()

    def _choice_faults(self) -> Iterator[str]:
        if self.values is None:
            yield "a choice needs values; add them"
        if self.min is not None or self.max is not None or self.step is not None:
            yield "a choice has values, not min, max or step; remove those"
        keys = [(type(value), value) for value in self.values or ()]
        if len(set(keys)) < len(keys):
            yield "values has one twice; remove it"

    def _range_faults(self) -> Iterator[str]:
        if self.values is not None:
            yield "values is for type choice; give min and max"
        elif self.min is None or self.max is None:
            yield "give min and max"
        bounds = [bound for bound in (self.min, self.max) if bound is not None]
        if not all(map(math.isfinite, bounds)) or bounds != sorted(bounds):
            yield "min must not be above max, and both finite"
        if self.is_log and self.min is not None and self.min <= 0:
            yield "min must be above 0 on a logarithmic scale"
        if self.is_log and self.step is not None:
            yield "step is not for logarithmic scales; remove it"
        if self.is_whole and not all(
            value is None or value.is_integer() for value in (self.min, self.max, self.step)
        ):
            yield "min, max and step of a whole number must be whole"

    @property
    def is_log(self) -> bool:
        """Whether the scale is logarithmic."""
        return self.type in ("log_uniform", "int_log_uniform")

    @property
    def is_whole(self) -> bool:
        """Whether values are whole numbers."""
        return self.type in ("int_uniform", "int_log_uniform")

    @property
    def first(self) -> Scalar:
        """One of its values, to check what uses it."""
        if self.values is not None:
            return self.values[0]
        assert self.min is not None
        return int(self.min) if self.is_whole else self.min


class Metric(Document):
    """What a trial is judged by."""

    name: ParameterName
    """Its name: one that the function gives, or for a training `validation_loss`, `loss`, `steps`
    or `training_seconds`."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Which way is better."""


class Limit(Document):
    """A bound that a trial's result must keep to be feasible."""

    metric: ParameterName
    """Which of its metrics."""
    min: Real | None = None
    """Least value."""
    max: Real | None = None
    """Greatest value."""

    def faults(self) -> Iterator[str]:
        """A limit has an end."""
        if self.min is None and self.max is None:
            yield "give min, max or both"


class Objective(Document):
    """What a trial does: call a function, or train."""

    function: Words | None = None
    """`package.module:name`, importable where trials run, or a name that a package offers by the
    entry point group `loomos.objectives`. Called with a `loomos.weaver.Trial`."""
    arguments: JsonMap = {}
    """For the function, as `trial.arguments`."""
    training: Annotated[JsonMap | None, TemplateOf("TrainingSpec")] = None
    """The spec of a TrainingJob, with `{{ name }}` where a parameter goes."""
    own_page: bool = False
    """Run each training as a job of its own: with leases, several nodes, a published model."""

    def faults(self) -> Iterator[str]:
        """It is one of the two, and has only what belongs to that."""
        if (self.function is None) == (self.training is None):
            yield "give function or training, one of them"
            return
        if self.function is None and self.arguments:
            yield "arguments are for a function; put values into the training"
        if self.training is None and self.own_page:
            yield "own_page is for trainings; remove it"


class Sampler(Document):
    """How points are chosen; the algorithms are Optuna's, `grid` walks every combination once."""

    name: Literal["tpe", "gp", "cmaes", "nsga2", "qmc", "random", "grid"] = "tpe"
    """`tpe` (Bergstra et al. 2011), `gp` (Gaussian process), `cmaes` (Hansen), `nsga2` (Deb et
    al. 2002), `qmc` (Sobol), `random`, `grid`."""
    startup_trials: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Random trials before `tpe`, `gp` and `cmaes` begin to learn. Default: Optuna's."""
    population_size: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """Of `nsga2` and `cmaes`. Default: Optuna's."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def learns(self) -> bool:
        """Whether results change what it chooses next."""
        return self.name in ("tpe", "gp", "cmaes", "nsga2")


class Pruner(Document):
    """When a trial is given up, by what it reports on the way."""

    name: Literal["none", "asha", "hyperband", "median", "percentile"] = "none"
    """`asha` (Li et al. 2018, arXiv:1810.05934), `hyperband` (several brackets of it), `median`
    and `percentile` (of earlier trials at the same step)."""
    min_resource: Steps = 1
    """`asha`, `hyperband`: the step of the first rung."""
    max_resource: Steps | None = None
    """`hyperband`: the last step of a whole trial."""
    reduction_factor: Annotated[int, Field(ge=2, le=1000)] = 4
    """`asha`, `hyperband`: one in so many goes on at each rung."""
    percentile: Annotated[float, Field(ge=0.001, le=99.999)] = 50.0
    """`percentile`: the share, in percent, that goes on."""
    startup_trials: Annotated[int, Field(ge=0, le=100_000)] = 5
    """`median`, `percentile`: whole trials before any is pruned."""
    warmup_steps: Count = 0
    """`median`, `percentile`: steps of a trial before it may be pruned."""
    interval_steps: Steps = 1
    """`median`, `percentile`: steps between looks."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def faults(self) -> Iterator[str]:
        """Hyperband knows the end of a trial, which is not before its first rung."""
        if self.name == "hyperband" and self.max_resource is None:
            yield "hyperband needs max_resource, the last step of a whole trial"
        if self.max_resource is not None and self.max_resource < self.min_resource:
            yield "max_resource must not be below min_resource"


class Population(Document):
    """Population based training (Jaderberg et al. 2017, arXiv:1711.09846).

    Each generation trains every member a while; then the worst take over state and parameters of
    the best, changed a little.
    """

    size: Annotated[int, Field(ge=2, le=1000)]
    """Members."""
    generations: Annotated[int, Field(ge=1, le=1000)]
    """Rounds. A trial is one member in one round. A training's `max_steps` is the length of one
    round: in round g it trains on to g times as many."""
    quantile: Annotated[float, Field(ge=0.001, le=0.5)] = 0.25
    """Share of the members that is replaced by the best of the same share."""
    factors: Annotated[list[Real], Field(min_length=1, max_length=100)] = [0.8, 1.2]
    """A taken-over number is multiplied by one of these; a choice moves to a neighbour."""
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Chance that a taken-over parameter is drawn anew instead."""


class Stop(Document):
    """When enough is known."""

    patience: Steps | None = None
    """Trials in a row, by number, that do not better the best."""
    min_delta: Coefficient = 0.0
    """Least change that counts as better."""
    target: Real | None = None
    """A value that is good enough."""


class Budget(Document):
    """What an experiment may use."""

    max_duration: Span | None = None
    """Time after which no trial starts."""
    max_cost: Positive | None = None
    """Cost of trials after which none starts, by the nodes' `cost_per_hour`."""


class ExperimentSpec(Document):
    """What an `Experiment` does."""

    objective: Objective
    """What a trial does."""
    parameters: Annotated[dict[ParameterName, Parameter], Field(min_length=1, max_length=200)]
    """The space, in the order in which values are chosen."""
    constraints: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=500), WRITABLE]], Field(max_length=50)
    ] = []
    """Conditions over parameters, such as `batch_size * 4 <= 256`; what breaks one is not tried."""
    metrics: Annotated[list[Metric], Field(max_length=10)] = []
    """What trials are judged by; several make a Pareto front. Default: `validation_loss` of a
    training, `value` of a function, to be made small."""
    limits: Annotated[list[Limit], Field(max_length=20)] = []
    """Bounds on metrics; a trial that breaks one is not feasible and never the best."""
    sampler: Sampler = Sampler()
    """How points are chosen: a name or a mapping."""
    pruner: Pruner = Pruner()
    """When trials are given up: a name or a mapping."""
    population: Population | None = None
    """Population based training, instead of a search trial by trial."""
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 100
    """Most trials."""
    parallelism: Annotated[int, Field(ge=1, le=500)] = 1
    """Most trials at a time."""
    lookahead: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Trial n is chosen knowing the results of the trials up to n - lookahead, no more and no
    fewer, so that what is chosen does not depend on who is fast. A longer one keeps workers busy
    when trials differ in length. Default: parallelism, twice that with a pruner."""
    budget: Budget = Budget()
    """Time and cost."""
    stop: Stop = Stop()
    """When enough is known."""
    retries: Annotated[int, Field(ge=0, le=100)] = 1
    """Times a trial that fails is tried again. Lost workers do not count."""
    trial_timeout: Timeout = timedelta(hours=24)
    """Time that one attempt at a trial may take."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all choices: the same seed and results give the same suggestions."""
    warm_start: Annotated[list[Words], Field(max_length=20)] = []
    """Ids of experiments whose trials are known from the start, where they fit the space."""
    priority: Annotated[int, Field(ge=1, le=5)] = 3
    """1 is served first, 5 last."""

    @model_validator(mode="before")
    @classmethod
    def _default_metrics(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("metrics"):
            objective = value.get("objective")
            trains = isinstance(objective, dict) and "training" in objective
            return {**value, "metrics": [{"name": "validation_loss" if trains else "value"}]}
        return value

    def faults(self) -> Iterator[str]:
        """The space is sound, what searches it fits, and a training is whole."""
        yield from self._space_faults()
        yield from self._search_faults()
        if self.objective.training is not None:
            yield from self._template_faults(self.objective.training)

    def _space_faults(self) -> Iterator[str]:
        earlier: set[str] = set()
        for name, parameter in self.parameters.items():
            for other in parameter.when:
                if other not in earlier:
                    yield (
                        f"parameters.{name}.when names {other!r}, which is not an earlier parameter"
                    )
            earlier.add(name)
        for condition in self.constraints:
            try:
                unknown = names_in(condition) - earlier
            except ValueError as error:
                yield str(error)
                continue
            for name in sorted(unknown):
                yield f"constraints: {condition!r} names {name!r}, which is no parameter"
        if self.sampler.name == "grid":
            for name, parameter in self.parameters.items():
                if parameter.type in ("log_uniform", "int_log_uniform") or (
                    parameter.type == "uniform" and parameter.step is None
                ):
                    yield (
                        f"sampler grid needs finitely many values; give parameters.{name} a step, "
                        "or make it a choice"
                    )

    def _search_faults(self) -> Iterator[str]:
        several = len(self.metrics) > 1
        if several and self.sampler.name == "cmaes":
            yield "sampler cmaes knows one metric; use tpe, gp or nsga2"
        if several and (self.pruner.name != "none" or self.population is not None):
            yield "pruner and population need exactly one metric"
        if several and (self.stop.patience is not None or self.stop.target is not None):
            yield "stop.patience and stop.target need exactly one metric"
        if self.population is not None and self.objective.own_page:
            yield "a population's trials run in the pool; remove objective.own_page"
        if self.population is not None and self.pruner.name != "none":
            yield "a population replaces its worst; remove the pruner"
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            yield "metrics has a name twice"

    @property
    def longest_point(self) -> int:
        """Bytes, as JSON, of a trial's parameters."""
        return sum(
            len(name.encode()) + 6 + max((len(to_json(v)) for v in p.values or ()), default=24)
            for name, p in self.parameters.items()
        )

    def _template_faults(self, template: dict[str, Any]) -> Iterator[str]:
        """What is wrong with the training's template, and with the training that it makes."""
        used = placeholders(template)
        unknown = used - self.parameters.keys()
        for name in sorted(unknown):
            yield f"objective.training uses {{{{ {name} }}}}, which is no parameter"
        for name in sorted(self.parameters.keys() - used):
            yield f"parameters.{name} is not used; write {{{{ {name} }}}} in objective.training"
        judged = [*(m.name for m in self.metrics), *(limit.metric for limit in self.limits)]
        for name in judged:
            if name not in TRAINING_METRICS:
                yield f"a training has no metric {name!r}; it has {', '.join(TRAINING_METRICS)}"
        if unknown:
            return
        try:
            spec = self.training_spec({n: p.first for n, p in self.parameters.items()})
        except InvalidManifest as error:
            yield from (f"objective.training: {fault}" for fault in error.errors)
        else:
            yield from self._training_faults(spec)

    def _training_faults(self, spec: TrainingSpec) -> Iterator[str]:
        if spec.algorithm == "noop" or spec.data is None:
            yield "objective.training: algorithm noop trains nothing; use sft"
        elif spec.data.validation_dataset is None and not spec.data.validation_split:
            yield (
                "objective.training: validation_loss needs data.validation_dataset or "
                "data.validation_split"
            )
        if spec.verify is not None or spec.rollout is not None:
            yield (
                "objective.training: verify and rollout are for the model that you choose in the "
                "end; remove them"
            )
        if not self.objective.own_page and spec.resources.node_range.max > 1:
            yield (
                "objective.training: a trial in the pool has one node; set objective.own_page: true"
            )
        if self.population is None or spec.model is None:
            return
        length = spec.model.fine_tuning_config.max_steps
        if length is None:
            yield (
                "objective.training: a population needs model.fine_tuning_config.max_steps, "
                "the length of a round"
            )
        elif length * self.population.generations > MOST_STEPS:
            yield (
                f"population.generations: its last round would go on to more than "
                f"{MOST_STEPS:,} steps; make max_steps smaller"
            )

    def training_spec(self, params: dict[str, Scalar]) -> TrainingSpec:
        """The training with parameters in their places; those without a value leave no key.

        Raises:
            InvalidManifest: it does not fit.
        """
        assert self.objective.training is not None
        filled = _without_open(substitute(self.objective.training, params))
        return validate_as(TrainingSpec, filled, "objective.training")

    @property
    def most_reports(self) -> int:
        """Intermediate values that a trial may have: all of them travel together now and then."""
        return max(20, min(200, MOST_REPORTS_IN_ALL // self.trials))

    @property
    def most_trials(self) -> int:
        """Trials that there may be."""
        if self.population is None:
            return self.trials
        return min(self.trials, self.population.size * self.population.generations)

    @property
    def known_before(self) -> int:
        """How far behind trial n the results lie that it is chosen by; see `lookahead`."""
        if self.population is not None:
            return self.population.size
        if self.lookahead is not None:
            return self.lookahead
        if not self.sampler.learns and self.pruner.name == "none":
            return 1000
        return self.parallelism if self.pruner.name == "none" else 2 * self.parallelism


def _without_open(document: Any) -> Any:
    """Leave out mapping entries whose value still has a placeholder."""
    if isinstance(document, dict):
        return {
            key: _without_open(value)
            for key, value in document.items()
            if not (isinstance(value, str) and placeholders(value))
        }
    if isinstance(document, list):
        return [_without_open(item) for item in document]
    return document


class Experiment(WholeDocument):
    """The document: `kind: Experiment`."""

    apiVersion: Literal["loomos.ai/v1"]
    """Version of this schema."""
    kind: Literal["Experiment"]
    """What the document describes."""
    metadata: Metadata
    """Who and what the experiment is."""
    spec: ExperimentSpec
    """What it does."""

    def faults(self) -> Iterator[str]:
        """All points together are small enough to travel; what runs already is not asked again."""
        trials = self.spec.most_trials
        if self.spec.longest_point * trials > MOST_BYTES_OF_POINTS:
            yield (
                f"spec.trials: {trials} points of this space may have more than "
                f"{MOST_BYTES_OF_POINTS:,} bytes, and all of them travel together; make trials "
                "fewer, or names and values shorter"
            )
