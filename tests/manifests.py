"""Documents of every kind with hostile values in them, for Hypothesis.

A document starts as one that is valid; some of its fields, which are found in the JSON Schema of
its kind, get values from the ends of what they may have, or from beyond.
"""

from __future__ import annotations

import copy
import itertools
from functools import cache
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

from loomos.jobs.cluster import SchedulerConfig
from loomos.jobs.continual import ContinualJob
from loomos.jobs.rollouts import CanaryRollout
from loomos.jobs.serving import EndpointSpec
from loomos.jobs.verification import VerificationJob
from loomos.manifest import Experiment, RLCampaign, TrainingJob

HEAD = {"apiVersion": "loomos.ai/v1", "metadata": {"name": "fuzzed"}}
MODEL = {
    "base_model": "init:llama",
    "tokenizer": "byte",
    "config": {"hidden_size": 64},
    "fine_tuning_config": {"max_steps": 3, "batch_size": 8},
}
DATA = {"training_dataset": "s3://nowhere/data"}
SFT = {"model": MODEL, "data": DATA}


def deep(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


NUMBERS = [
    *(0, 1, 2, 3, 7, 8, 48, 49, 50, 64, 100, 1000, 10_000, -1, 2**31 - 1, 2**31, 2**53 - 1, 2**53),
    *(2**63, 2**64, 10**12, 10**13, 10**30, 10**400, 10**4000, -(2**63)),
]
REALS = [
    *(0.0, -0.0, 1e-320, 5e-324, 1e-12, 1e-9, 1e-4, 0.05, 0.5, 1 - 1e-12, 1.0, 2.5, 1e6, 1e12),
    *(1e15, 1e100, 1.7e308, -1e12, -1.7e308, float("inf"), float("-inf"), float("nan")),
]
TEXTS = [
    *(
        "",
        "a",
        "x" * 64,
        "x" * 1025,
        "x" * 70_000,
        "\ud800",
        "\udcff/x",
        "\0",
        "é" * 63,
        "💩",
        "\n",
    ),
    *("model:m@v", "init:llama", "s3://b/p", "../..", "{{ x }}", "a|b", "'; --", "\u202e", "1e400"),
    *("grid", "hyperband", "population", "byte", "bpe:999", "game", "code", "CartPole-v1"),
]
SPANS = [
    *("0", "0s", "1ns", "1us", "1ms", "100ms", "59.9999999s", "1h", "24h", "87600h", "87601h"),
    *("90000000h", "9999999999999999h", "1e400h", "0.1h0.1h", "9" * 5000 + "h", "٣h", "1.7s"),
]
SIZES = ["0", "1", "128Gi", "4Pi", "8Ei", "9" * 20, "9" * 5000, "1.5Gi", "0.1", "-1"]
MOMENTS = [
    *("2027-01-31T18:00:00Z", "2199-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00"),
    *("0001-01-01T00:00:00+14:00", "2030-01-01", "1969-01-01T00:00:00Z"),
]
FREE = [
    *({}, {"a": 1}, {"hidden_size": 2**40}, {"a": {"b": [1, {"c": None}]}}, deep(20), deep(40)),
    *({"x": float("inf")}, {"x": [float("nan")]}, {"\ud800": 1}, {"x": "\ud800"}, {"x": 2**60}),
    *({"x": 10**4000}, {"x": "é" * 8000}, {str(i): "y" * 900 for i in range(100)}, deep(200)),
    *({"x": list(range(9000))}, {"x": list(range(20_000))}, {"difficulty": 3}, {"": 0}),
    *({"x": 1e308}, {"x": 5e-324}, {"x": -0.0}, {"x": (1, 2)}, {"x": b"1"}, {"x": {1: 2}}),
]

PARAMETERS: dict[str, Any] = {
    "x": {"type": "uniform", "min": -5, "max": 10},
    "n": {"type": "int_log_uniform", "min": 1, "max": 1000},
    "c": {"type": "choice", "values": ["a", 1, 0.5, True]},
}
BASES: dict[type[BaseModel], list[dict[str, Any]]] = {
    TrainingJob: [
        {**HEAD, "kind": "TrainingJob", "spec": spec}
        for spec in (
            {"algorithm": "noop"},
            SFT,
            {**SFT, "resources": {"nodes": {"min": 1, "max": 4}, "memory": "1Gi"}},
            {**SFT, "data": {**DATA, "validation_split": 0.1}, "verify": {}},
            {**SFT, "verify": {}, "rollout": {"endpoint": "chat"}},
            {**SFT, "algorithm": "dpo"},
            {"algorithm": "grpo", "model": MODEL, "environment": "math"},
            {"algorithm": "ppo", "model": MODEL, "environment": "game"},
            {"algorithm": "ppo", "environment": "CartPole-v1"},
            {"algorithm": "weave", "environment": {"name": "math", "config": {}}},
        )
    ],
    Experiment: [
        {**HEAD, "kind": "Experiment", "spec": {"parameters": PARAMETERS, **spec}}
        for spec in (
            {"objective": {"function": "a:b"}},
            {
                "objective": {"function": "a:b"},
                "sampler": "grid",
                "parameters": {"x": {"type": "uniform", "min": 0, "max": 1, "step": 0.1}},
            },
            {
                "objective": {"function": "a:b"},
                "pruner": {"name": "hyperband", "max_resource": 100},
                "limits": [{"metric": "m", "max": 3}],
                "constraints": ["x * 2 <= n + 10"],
                "stop": {"patience": 3, "target": 0.1},
                "budget": {"max_cost": 3, "max_duration": "1h"},
            },
            {"objective": {"function": "a:b"}, "population": {"size": 4, "generations": 3}},
            {
                "objective": {
                    "training": {
                        "model": {
                            **MODEL,
                            "fine_tuning_config": {"max_steps": 3, "learning_rate": "{{ x }}"},
                        },
                        "data": {**DATA, "validation_split": 0.5},
                    }
                },
                "parameters": {"x": {"type": "log_uniform", "min": 1e-5, "max": 1e-2}},
            },
        )
    ],
    RLCampaign: [
        {**HEAD, "kind": "RLCampaign", "spec": spec}
        for spec in (
            {"members": [{"name": "a", "environment": "CartPole-v1"}]},
            {
                "members": [
                    {"name": "a", "environment": "math", "copies": 4, "threads": {"safety": 1.0}},
                    {"name": "b", "environment": "math", "threads": {"safety": 2.0}},
                ],
                "phases": [{"rounds": 2, "weights": {"a": 1, "b": 3}, "adapts": True, "until": 1}],
                "curriculum": {},
            },
        )
    ],
    VerificationJob: [{**HEAD, "kind": "VerificationSuite", "model": "m@v", "spec": {}}],
    CanaryRollout: [
        {
            **HEAD,
            "kind": "CanaryRollout",
            "spec": {
                "endpoint": "chat",
                "model": "m@v",
                "stages": [{"name": "one", "canary_percent": 5.0}],
                "guardrails": [{"event": "error"}, {"event": "latency"}],
            },
        }
    ],
    ContinualJob: [
        {
            **HEAD,
            "kind": "ContinualLearning",
            "spec": {"cron": "0 3 * * *", "endpoint": "chat"},
        }
    ],
    SchedulerConfig: [{"weights": {"a": 2.0}, "quotas": {"a": {"nodes": 1}}}],
    EndpointSpec: [{"model": "m@v", "remote": {"base_url": "http://x/v1", "model": "m"}}],
}
"""Documents that are valid, by their kind."""

Path = tuple[str | int, ...]


@cache
def fields(kind: type[BaseModel]) -> list[tuple[Path, Any]]:
    """Every field of a kind, with a strategy for what to write there."""
    schema = kind.model_json_schema()
    found: list[tuple[Path, Any]] = []
    _walk(schema, schema.get("$defs", {}), (), found)
    return [(path, values) for path, values in found if path and path[-1] not in ("kind",)]


def _walk(
    schema: dict[str, Any], defs: dict[str, Any], path: Path, found: list[tuple[Path, Any]]
) -> None:
    if len(path) > 9:
        return
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    for branch in schema.get("anyOf", []):
        _walk(branch, defs, path, found)
    kind = schema.get("type")
    if "enum" in schema:
        found.append((path, st.sampled_from([*schema["enum"], "nope"])))
    elif kind in ("integer", "number"):
        ends = [schema.get(key) for key in ("minimum", "maximum", "exclusiveMinimum")]
        inside = [end for end in ends if end is not None]
        half = (lambda end: end // 2) if kind == "integer" else (lambda end: end / 2)
        near = [value for end in inside for value in (end, end + 1, end - 1, half(end))]
        found.append((path, _mostly([*inside, *inside, *near], [*NUMBERS, *REALS])))
    elif kind == "boolean":
        found.append((path, st.sampled_from([True, False, False, 0, "yes"])))
    elif kind == "string":
        found.append((path, _texts(schema)))
    elif kind == "array":
        found.append((path, st.sampled_from([[], [1], ["a"], ["a"] * 2000, [None]])))
        _walk(schema.get("items", {}), defs, (*path, 0), found)
    elif kind == "object" and "properties" in schema:
        for name, child in schema["properties"].items():
            _walk(child, defs, (*path, name), found)
    elif kind == "object":
        found.append((path, st.sampled_from(FREE)))
        if isinstance(schema.get("additionalProperties"), dict):
            _walk(schema["additionalProperties"], defs, (*path, "a"), found)


def _texts(schema: dict[str, Any]) -> Any:
    pattern = schema.get("pattern", "")
    if "ns|us" in pattern:
        return _mostly(SPANS[:10], SPANS)
    if "KMGTPE" in pattern:
        return _mostly(SIZES[:3], SIZES)
    if schema.get("format") == "date-time":
        return _mostly(MOMENTS[:2], MOMENTS)
    length = min(schema.get("maxLength", 9), 200)
    return _mostly(["a", "abc", "x" * length], TEXTS) | st.text(max_size=length)


def _mostly(usual: list[Any], odd: list[Any]) -> Any:
    return st.one_of(
        st.sampled_from(usual or odd), st.sampled_from(usual or odd), st.sampled_from(odd)
    )


def write(document: Any, path: Path, value: Any) -> None:
    """Put a value into a document, making the way to it where there is none."""
    here = document
    for part, following in itertools.pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(here, list):
            if not here:
                here.append(empty)
            if not isinstance(here[0], dict | list):
                here[0] = empty
            here = here[0]
        else:
            if not isinstance(here.get(part), dict | list) or (
                isinstance(here[part], list) != isinstance(following, int)
            ):
                here[part] = empty
            here = here[part]
    if isinstance(here, list):
        here[:1] = [value]
    else:
        here[path[-1]] = value


@st.composite
def documents(draw: st.DrawFn) -> tuple[type[BaseModel], dict[str, Any]]:
    """A kind, and a document of it that may or may not be right."""
    kind = draw(st.sampled_from([TrainingJob, TrainingJob, TrainingJob, *BASES]))
    document = copy.deepcopy(draw(st.sampled_from(BASES[kind])))
    for path, values in draw(st.lists(st.sampled_from(fields(kind)), min_size=1, max_size=4)):
        write(document, path, draw(values))
    return kind, document
