"""What a person may write of an experiment: what is searched, how, and for how long."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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

    @model_validator(mode="after")
    def _fits_its_type(self) -> Parameter:
        if self.type == "choice":
            if self.values is None:
                raise ValueError("a choice needs values; add them")
            if self.min is not None or self.max is not None or self.step is not None:
                raise ValueError("a choice has values, not min, max or step; remove those")
            keys = [(type(value), value) for value in self.values]
            if len(set(keys)) < len(keys):
                raise ValueError("values has one twice; remove it")
            return self
        if self.values is not None:
            raise ValueError("values is for type choice; give min and max")
        if self.min is None or self.max is None:
            raise ValueError("give min and max")
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min <= self.max):
            raise ValueError("min must not be above max, and both finite")
        if self.is_log and self.min <= 0:
            raise ValueError("min must be above 0 on a logarithmic scale")
        if self.is_log and self.step is not None:
            raise ValueError("step is not for logarithmic scales; remove it")
        if self.is_whole and any(
            value is not None and value != int(value) for value in (self.min, self.max, self.step)
        ):
            raise ValueError("min, max and step of a whole number must be whole")
        return self

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

    @model_validator(mode="after")
    def _bounds_something(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


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

    @model_validator(mode="after")
    def _is_one(self) -> Objective:
        if (self.function is None) == (self.training is None):
            raise ValueError("give function or training, one of them")
        if self.function is None and self.arguments:
            raise ValueError("arguments are for a function; put values into the training")
        if self.training is None and self.own_page:
            raise ValueError("own_page is for trainings; remove it")
        return self


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

    @model_validator(mode="after")
    def _hyperband_has_an_end(self) -> Pruner:
        if self.name == "hyperband" and self.max_resource is None:
            raise ValueError("hyperband needs max_resource, the last step of a whole trial")
        if self.max_resource is not None and self.max_resource < self.min_resource:
            raise ValueError("max_resource must not be below min_resource")
        return self


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

    @model_validator(mode="after")
    def _space_is_sound(self) -> ExperimentSpec:
        earlier: set[str] = set()
        for name, parameter in self.parameters.items():
            for other in parameter.when:
                if other not in earlier:
                    raise ValueError(
                        f"parameters.{name}.when names {other!r}, which is not an earlier parameter"
                    )
            earlier.add(name)
        for condition in self.constraints:
            for name in sorted(names_in(condition) - earlier):
                raise ValueError(
                    f"constraints: {condition!r} names {name!r}, which is no parameter"
                )
        if self.sampler.name == "grid":
            for name, parameter in self.parameters.items():
                if parameter.type in ("log_uniform", "int_log_uniform") or (
                    parameter.type == "uniform" and parameter.step is None
                ):
                    raise ValueError(
                        f"sampler grid needs finitely many values; give parameters.{name} a step, "
                        "or make it a choice"
                    )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> ExperimentSpec:
        several = len(self.metrics) > 1
        if several and self.sampler.name == "cmaes":
            raise ValueError("sampler cmaes knows one metric; use tpe, gp or nsga2")
        if several and (self.pruner.name != "none" or self.population is not None):
            raise ValueError("pruner and population need exactly one metric")
        if several and (self.stop.patience is not None or self.stop.target is not None):
            raise ValueError("stop.patience and stop.target need exactly one metric")
        if self.population is not None and self.objective.own_page:
            raise ValueError("a population's trials run in the pool; remove objective.own_page")
        if self.population is not None and self.pruner.name != "none":
            raise ValueError("a population replaces its worst; remove the pruner")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError("metrics has a name twice")
        if self._longest_point * self.most_trials > MOST_BYTES_OF_POINTS:
            raise ValueError(
                f"trials: {self.most_trials} points of this space may have more than "
                f"{MOST_BYTES_OF_POINTS:,} bytes, and all of them travel together; make trials "
                "fewer, or names and values shorter"
            )
        return self

    @property
    def _longest_point(self) -> int:
        """Bytes, as JSON, of a trial's parameters."""
        return sum(
            len(name) + 6 + max((len(json.dumps(v)) for v in parameter.values or ()), default=24)
            for name, parameter in self.parameters.items()
        )

    @model_validator(mode="after")
    def _training_is_whole(self) -> ExperimentSpec:
        template = self.objective.training
        if template is None:
            return self
        for name in sorted(placeholders(template) - self.parameters.keys()):
            raise ValueError(f"objective.training uses {{{{ {name} }}}}, which is no parameter")
        for name in sorted(self.parameters.keys() - placeholders(template)):
            raise ValueError(
                f"parameters.{name} is not used; write {{{{ {name} }}}} in objective.training"
            )
        for name in [*(m.name for m in self.metrics), *(limit.metric for limit in self.limits)]:
            if name not in TRAINING_METRICS:
                raise ValueError(
                    f"a training has no metric {name!r}; it has {', '.join(TRAINING_METRICS)}"
                )
        try:
            spec = self.training_spec({n: p.first for n, p in self.parameters.items()})
        except InvalidManifest as error:
            raise ValueError(f"objective.training: {'; '.join(map(str, error.errors))}") from None
        self._check_training(spec)
        return self

    def _check_training(self, spec: TrainingSpec) -> None:
        if spec.algorithm == "noop" or spec.data is None:
            raise ValueError("objective.training: algorithm noop trains nothing; use sft")
        judged = {metric.name for metric in self.metrics} | {"validation_loss"}
        validates = spec.data.validation_dataset is not None or spec.data.validation_split > 0
        if "validation_loss" in judged and not validates:
            raise ValueError(
                "objective.training: validation_loss needs data.validation_dataset or "
                "data.validation_split"
            )
        if spec.verify is not None or spec.rollout is not None:
            raise ValueError(
                "objective.training: verify and rollout are for the model that you choose in the "
                "end; remove them"
            )
        if not self.objective.own_page and spec.resources.node_range.max > 1:
            raise ValueError(
                "objective.training: a trial in the pool has one node; set objective.own_page: true"
            )
        if self.population is not None:
            model = spec.model
            assert model is not None
            if model.fine_tuning_config.max_steps is None:
                raise ValueError(
                    "objective.training: a population needs model.fine_tuning_config.max_steps, "
                    "the length of a round"
                )
            if model.fine_tuning_config.max_steps * self.population.generations > MOST_STEPS:
                raise ValueError(
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
