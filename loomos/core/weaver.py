"""Weaver for programs: experiments over the settings of trainings, or over any function.

A thin face over the gateway; what is tried next is decided by the `ExperimentSweep` workflow.

Example:
    >>> weaver = Weaver()
    >>> experiment = await weaver.create_experiment(                       # doctest: +SKIP
    ...     name="first", base_config=ExperimentConfig(dataset="corpus"),
    ...     search_space=HyperparameterSpace(
    ...         {"learning_rate": {"type": "log_uniform", "min": 1e-5, "max": 1e-2}}))
    >>> await weaver.run_experiment(experiment.id)                         # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loomos.client.http import LoomOSClient, opened
from loomos.errors import InvalidInput, NotFound
from loomos.jobs.experiments import ExperimentStatus, TrialRecord, TrialState
from loomos.jobs.names import new_identifier, run_id
from loomos.manifest import Experiment as ExperimentDocument
from loomos.manifest import FineTuning, LoRA, validate_as

__all__ = [
    "BestTrial",
    "Experiment",
    "ExperimentConfig",
    "HyperparameterSpace",
    "TrialUpdate",
    "Weaver",
]

STRATEGIES = {"bayesian": "tpe", "gaussian_process": "gp", "evolutionary": "cmaes"}
"""Names of samplers beside Optuna's own."""

_MODEL_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}


@dataclass(frozen=True)
class HyperparameterSpace:
    """What is searched: for each parameter a type and its range, as in a `kind: Experiment`."""

    parameters: Mapping[str, Mapping[str, Any]]
    """By name: `uniform`, `log_uniform`, `int_uniform`, `int_log_uniform` with `min` and `max`, or
    `choice` with `values`; `when` makes one conditional on earlier ones."""
    constraints: list[str] = field(default_factory=list)
    """Conditions that every point keeps."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What every trial has in common."""

    model_type: str = "transformer"
    """`transformer` (a llama with random weights), another transformers model type, or a base
    model as a manifest names it (a path, `s3://`, `model:NAME`)."""
    model_config: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the model's config, where it starts from random weights."""
    dataset: str = ""
    """A file or folder that the workers can read, or `s3://bucket/prefix`."""
    max_epochs: int = 1
    """Passes over the data."""
    early_stopping_patience: int | None = None
    """Evaluations without improvement after which a trial ends."""
    fine_tuning: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of `fine_tuning_config`, the same in every trial."""
    function: str | None = None
    """Instead of a training: `package.module:name` of a function of a `loomos.weaver.Trial`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """For the function."""
    metric: str = ""
    """What trials are judged by. Default: `validation_loss`, or `value` of a function."""
    direction: str = "minimize"
    """Which way is better."""

    def objective(self, names: list[str]) -> dict[str, Any]:
        """The document's `objective`, with a place for each parameter.

        Raises:
            InvalidInput: the data is not there, or no training has a parameter of that name.
        """
        if self.function is not None:
            return {"function": self.function, "arguments": dict(self.arguments)}
        return {"training": self._training(names)}

    def _training(self, names: list[str]) -> dict[str, Any]:
        tuning: dict[str, Any] = {"num_epochs": self.max_epochs, **self.fine_tuning}
        config: dict[str, Any] = dict(self.model_config)
        for name in names:
            place = f"{{{{ {name} }}}}"
            if name in _MODEL_FIELDS:
                config[_MODEL_FIELDS[name]] = place
            elif name in FineTuning.model_fields:
                tuning[name] = place
            elif name.removeprefix("lora_") in LoRA.model_fields and name.startswith("lora_"):
                tuning.setdefault("lora", {})[name.removeprefix("lora_")] = place
            else:
                known = sorted({*_MODEL_FIELDS, *FineTuning.model_fields} - {"lora"})
                raise InvalidInput(
                    f"search_space: a training has no {name!r}; known: {', '.join(known)}, "
                    "lora_r, lora_alpha, lora_dropout"
                )
        base = self.model_type
        if base == "transformer":
            base = "init:llama"
        elif not any(mark in base for mark in ":/"):
            base = f"init:{base}"
        model: dict[str, Any] = {"base_model": base, "fine_tuning_config": tuning}
        if base.startswith("init:"):
            model |= {"tokenizer": "byte", "config": config}
        elif config:
            raise InvalidInput(
                "search_space: the shape of a trained model is fixed; remove "
                + ", ".join(sorted(config))
            )
        runtime: dict[str, Any] = {}
        if self.early_stopping_patience is not None:
            runtime["early_stopping"] = {"patience": self.early_stopping_patience}
        return {
            "model": model,
            "data": {"training_dataset": _dataset(self.dataset), "validation_split": 0.1},
            "runtime": runtime,
        }


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment that can be run."""

    id: str
    """Its id, by which the CLI knows it too once it runs."""
    document: ExperimentDocument
    """What it does, as a `kind: Experiment`."""


@dataclass(frozen=True, kw_only=True)
class TrialUpdate:
    """A trial has ended."""

    trial_id: int
    """Its number, from 0."""
    state: TrialState
    """How."""
    metric_name: str
    """What it was judged by."""
    metric_value: float
    """Its value; the last one reported if it was pruned, NaN if it failed."""
    hyperparameters: Mapping[str, Any]
    """Its point."""


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The best so far."""

    trial_id: int
    """Its number."""
    hyperparameters: Mapping[str, Any]
    """Its point."""
    score: float
    """Its value."""


class Weaver:
    """Makes, runs and follows experiments.

    Args:
        client: an open client. Default: one per call, from the settings.
    """

    def __init__(self, client: LoomOSClient | None = None) -> None:
        self._client = client
        self._made: dict[str, tuple[ExperimentDocument, str]] = {}

    async def create_experiment(
        self,
        *,
        name: str,
        base_config: ExperimentConfig,
        search_space: HyperparameterSpace,
        optimization_strategy: str = "bayesian",
        max_trials: int = 100,
        parallelism: int = 1,
        seed: int = 0,
        **more: Any,
    ) -> Experiment:
        """Check an experiment and give it an id; nothing runs yet.

        Args:
            name: a name; lower case, other characters become hyphens.
            base_config: what trials have in common.
            search_space: what differs.
            optimization_strategy: `bayesian`, or a sampler's name.
            max_trials: most trials.
            parallelism: most at a time.
            seed: of all choices.
            more: further fields of the document's spec, such as `pruner` or `budget`.

        Raises:
            InvalidInput: something of it is wrong.
        """
        slug = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
        spec: dict[str, Any] = {
            "objective": base_config.objective(list(search_space.parameters)),
            "parameters": {key: dict(value) for key, value in search_space.parameters.items()},
            "constraints": search_space.constraints,
            "sampler": STRATEGIES.get(optimization_strategy, optimization_strategy),
            "trials": max_trials,
            "parallelism": parallelism,
            "seed": seed,
            **more,
        }
        if base_config.metric or base_config.direction != "minimize":
            metric = base_config.metric or ("value" if base_config.function else "validation_loss")
            spec["metrics"] = [{"name": metric, "direction": base_config.direction}]
        document = validate_as(
            ExperimentDocument,
            {
                "apiVersion": "loomos.ai/v1",
                "kind": "Experiment",
                "metadata": {"name": slug},
                "spec": spec,
            },
            "experiment",
        )
        key = new_identifier()
        experiment_id = run_id(slug, key)
        self._made[experiment_id] = (document, key)
        return Experiment(id=experiment_id, document=document)

    async def run_experiment(self, experiment_id: str) -> ExperimentStatus:
        """Start an experiment that this object made; started already, it goes on."""
        async with opened(self._client) as client:
            if experiment_id not in self._made:
                return await client.experiments.get(experiment_id)
            document, key = self._made[experiment_id]
            return await client.experiments.start(document, idempotency_key=key)

    async def stream_experiment_progress(self, experiment_id: str) -> AsyncIterator[TrialUpdate]:
        """Each trial as it ends, those that ended before first, until the experiment is over."""
        async with opened(self._client) as client:
            spec = (await client.experiments.get(experiment_id)).known_spec
            async for trial in client.experiments.follow(experiment_id):
                yield TrialUpdate(
                    trial_id=trial.number,
                    state=trial.state,
                    metric_name=spec.metrics[0].name,
                    metric_value=_value(trial),
                    hyperparameters=trial.params,
                )

    async def get_best_trial(self, experiment_id: str) -> BestTrial:
        """The best trial so far; of several metrics, the front's best by the first.

        Raises:
            NotFound: none is complete and feasible.
        """
        async with opened(self._client) as client:
            found = await client.experiments.get(experiment_id)
        if not found.best:
            raise NotFound(f"no trial of {experiment_id} is complete and feasible yet")
        sign = 1 if found.known_spec.metrics[0].direction == "minimize" else -1
        best = min(found.best, key=lambda trial: sign * trial.values[0])
        return BestTrial(trial_id=best.number, hyperparameters=best.params, score=best.values[0])


def _value(trial: TrialRecord) -> float:
    if trial.values:
        return trial.values[0]
    return trial.reports[-1][1] if trial.reports else math.nan


def _dataset(name: str) -> str:
    if "://" in name:
        return name
    if not name or not Path(name).exists():
        raise InvalidInput(f"dataset: there is no file or folder {name!r}; give a path or s3://")
    return str(Path(name).resolve())
