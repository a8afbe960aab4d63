"""The SDK's short way to describe a job, for programs; a manifest says more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loomos.manifest import Document, DPOConfig, GRPOConfig, JobManifest


@dataclass(frozen=True, kw_only=True)
class ResourceRequirements:
    """What each node of a job must have."""

    gpu_count: int = 0
    """GPUs."""
    memory_gb: int | None = None
    """Main memory in GiB."""
    max_runtime_hours: float | None = None
    """Wall time with nodes after which the job is stopped."""
    nodes: int = 1
    """Nodes of the gang."""


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A job in a few words.

    `config` takes `model_name`, `dataset`, `validation_dataset`, `tokenizer`, `model_config`, and
    every field of `FineTuning`; of `ppo`, `weave`, `grpo` and `dpo` the fields of their settings.
    """

    name: str
    """Name of the job."""
    algorithm: str = "sft"
    """What to do."""
    environment: str | dict[str, Any] | None = None
    """Where a policy or a language model learns from rewards; a name, or name and config."""
    resources: ResourceRequirements = field(default_factory=ResourceRequirements)
    """With what."""
    config: dict[str, Any] = field(default_factory=dict)
    """Model, data and optimisation."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels."""
    priority: int = 3
    """1 is served first."""

    def to_manifest(self) -> JobManifest:
        """The manifest that says the same; unknown keys of `config` surface when it is checked."""
        rest = dict(self.config)
        learning = self._learning(rest)
        model: dict[str, Any] = {}
        for ours, theirs in (
            ("model_name", "base_model"),
            ("tokenizer", "tokenizer"),
            ("model_config", "config"),
        ):
            if ours in rest:
                model[theirs] = rest.pop(ours)
        data: dict[str, Any] = {}
        for ours, theirs in (
            ("dataset", "training_dataset"),
            ("validation_dataset", "validation_dataset"),
        ):
            if ours in rest:
                data[theirs] = rest.pop(ours)
        resources: dict[str, Any] = {
            "gpu_count": self.resources.gpu_count,
            "nodes": self.resources.nodes,
        }
        if self.resources.memory_gb is not None:
            resources["memory_gb"] = self.resources.memory_gb
        spec: dict[str, Any] = {
            "algorithm": self.algorithm,
            "priority": self.priority,
            "resources": resources,
        }
        if self.environment is not None:
            spec["environment"] = self.environment
        if learning:
            spec[self.algorithm] = learning
        if model or (rest and not learning):
            spec["model"] = {**model, "fine_tuning_config": rest}
        if data:
            spec["data"] = data
        if self.resources.max_runtime_hours is not None:
            spec["runtime"] = {"max_duration": f"{self.resources.max_runtime_hours}h"}
        return JobManifest.from_dict(
            {
                "apiVersion": "loomos.ai/v1",
                "kind": "TrainingJob",
                "metadata": {"name": self.name, "labels": self.labels},
                "spec": spec,
            }
        )

    def _learning(self, config: dict[str, Any]) -> dict[str, Any]:
        """Take the settings of the algorithm out of `config`; a policy's are all that there are."""
        if self.algorithm in ("ppo", "weave"):
            found = dict(config)
            config.clear()
            if "num_epochs" in found:
                found["n_epochs"] = found.pop("num_epochs")
            return found
        kinds: dict[str, type[Document]] = {"grpo": GRPOConfig, "dpo": DPOConfig}
        if self.algorithm not in kinds:
            return {}
        names = set(kinds[self.algorithm].model_fields) & set(config)
        return {name: config.pop(name) for name in sorted(names)}
