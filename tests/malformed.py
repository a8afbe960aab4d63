"""Fifty manifests that are wrong in one place each, and the field that an error must name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.stack import tiny_job


class Malformed(NamedTuple):
    """One wrong manifest."""

    name: str
    document: Any
    field: str


def _with(path: str, value: Any) -> Any:
    document = copy.deepcopy(tiny_job("wrong"))
    *parents, last = path.split(".")
    place = document
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    return document


def _without(path: str) -> Any:
    document = copy.deepcopy(tiny_job("wrong"))
    *parents, last = path.split(".")
    place = document
    for part in parents:
        place = place[part]
    del place[last]
    return document


TUNING = "spec.model.fine_tuning_config"

CHANGED: list[tuple[str, Any]] = [
    ("apiVersion", "loomos.ai/v2"),
    ("apiVersion", 1),
    ("kind", "TrainJob"),
    ("metadata.name", ""),
    ("metadata.name", "Has Capitals"),
    ("metadata.name", "x" * 64),
    ("metadata.name", 7),
    ("metadata.lables", {}),
    ("metadata.labels", ["a"]),
    ("metadata.labels.team", 5),
    ("metadata.project", "-dash"),
    ("spec.algorithm", "magic"),
    ("spec.algorithm", None),
    ("spec.priority", 0),
    ("spec.priority", 6),
    ("spec.priority", False),
    ("spec.priority", "high"),
    ("spec.model.base_model", ""),
    ("spec.model.tokenizer", "bytes"),
    ("spec.model.basemodel", "x"),
    (f"{TUNING}.learning_rate", 0),
    (f"{TUNING}.learning_rate", "fast"),
    (f"{TUNING}.max_steps", 1.5),
    (f"{TUNING}.max_steps", 0),
    (f"{TUNING}.num_epochs", -1),
    (f"{TUNING}.method", "adapter"),
    (f"{TUNING}.scheduler", "step"),
    (f"{TUNING}.precision", "fp8"),
    (f"{TUNING}.lora", {"rank": 8}),
    (f"{TUNING}.lora.dropout", 1.0),
    (f"{TUNING}.betas", [0.9]),
    (f"{TUNING}.sequence_length", 4),
    (f"{TUNING}.seed", -1),
    ("spec.data.training_dataset", "https://example.org/data"),
    ("spec.data.training_dataset", "s3://bucket-only"),
    ("spec.data.validation_split", 1.0),
    ("spec.data.format", "csv"),
    ("spec.data.include", []),
    ("spec.resources.nodes", 0),
    ("spec.resources.nodes", {"min": 3, "max": 2}),
    ("spec.resources.gpu_count", False),
    ("spec.resources.memory", "128Gb"),
    ("spec.resources.memroy", "1Gi"),
    ("spec.resources.min_bandwidth_gbps", 0),
    ("spec.depends_on", [{"job": "a", "on_failure": "ignore"}]),
    ("spec.runtime.deadline", "tomorrow"),
    ("spec.runtime.deadline", "2027-01-31T18:00:00"),
    ("spec.strategy.type", "fsdp3"),
    ("spec.runtime.max_duration", 24),
    ("spec.runtime.max_duration", "a day"),
    ("spec.runtime.checkpoint_steps", 0),
    ("spec.runtime.retries", {"max_attempts": 0}),
    ("spec.runtime.keep_checkpoints", 0),
]


def malformed() -> list[Malformed]:
    """All of them."""
    found = [
        Malformed(f"{path}={value!r}"[:60], _with(path, value), path.removesuffix(".team"))
        for path, value in CHANGED
    ]
    make: Callable[[str], Any] = _without
    found += [Malformed(f"no {p}", make(p), p) for p in ("metadata", "spec", "metadata.name")]
    found += [
        Malformed("no end", _without(f"{TUNING}.max_steps"), "spec"),
        Malformed("batch not divisible", _with(f"{TUNING}.batch_size", 7), "spec"),
        Malformed(
            "no estimate", _with("spec.runtime.deadline", "2027-01-31T18:00:00Z"), "spec.runtime"
        ),
        Malformed("no data", _without("spec.data"), "spec"),
        Malformed("not a mapping", ["apiVersion"], "$"),
        Malformed("empty", {}, "apiVersion"),
    ]
    return found
