"""The plan of a verification: everything that could be chosen afterwards, fixed before.

Model, suites, claims, alpha, seeds and shards go into one document that is hashed and stored before
the first generation. The verdict names the hash.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from loomos.errors import InvalidData, InvalidInput
from loomos.jobs.verification import PlanRef, Shard
from loomos.local_files import Reach, model_files
from loomos.manifest import SuiteChoice, Verification
from loomos.prism.detectors import Classifier, Detector, card_of, find_detector, fingerprint
from loomos.prism.planned import Plan, PlannedSuite
from loomos.prism.suites import Suite, load_suite, parse_suite
from loomos.registry import Registry
from loomos.storage import Store
from loomos.storage.layout import blob_key, verification_prefix
from loomos.storage.uploads import read_uploaded, upload_digest

CONTROL_PROMPTS = 30
"""Plain requests in a run that has no suite of them."""
GENERATOR = 1
"""Grows when the same shard would be answered differently by newer code."""


def make_plan(store: Store, model: str, spec: Verification, reach: Reach | None = None) -> Plan:
    """Pin everything; the suites go into the store.

    Args:
        store: where versions, uploads and plans are.
        model: what is verified.
        spec: what is asked of it.
        reach: which files of this machine may be named; see `load_suite`.

    Raises:
        NotFound: there is no such version.
        InvalidInput: a suite is missing or malformed.
        InvalidData: a suite, or a classifier that one names, may not be named.
    """
    registry = Registry(store)
    candidate = registry.manifest(model)
    version = f"{candidate.name}@{candidate.version}"
    baseline, baseline_weights = "", ""
    if spec.baseline:
        other = registry.manifest(spec.baseline)
        baseline, baseline_weights = f"{other.name}@{other.version}", other.weights_sha256
        if baseline == version:
            raise InvalidInput(f"baseline: {version} cannot be compared with itself")
    suites = [_pin(store, choice, spec, reach) for choice in spec.suites]
    if all(suite.header.risk != "quality" for suite in suites):
        suites.append(_coherence_control(store, spec))
    names = [suite.name for suite in suites]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"suites: two of them call themselves {name!r}")
    shards: list[Shard] = []
    for suite in suites:
        units = suite.prompts * suite.generations
        shards += _cut(suite, version, candidate.weights_sha256, "candidate", units, spec)
        if spec.repeats:
            repeats = min(spec.repeats, units)
            shards += _cut(suite, version, candidate.weights_sha256, "repeat", repeats, spec)
        if baseline:
            shards += _cut(suite, baseline, baseline_weights, "baseline", units, spec)
    return Plan(
        version=version,
        weights_sha256=candidate.weights_sha256,
        baseline=baseline,
        baseline_weights_sha256=baseline_weights,
        suites=suites,
        alpha=spec.alpha,
        margin=spec.margin,
        temperature=spec.temperature,
        seed=spec.seed,
        repeats=spec.repeats,
        shards=shards,
    )


def _pin(
    store: Store, choice: SuiteChoice, spec: Verification, reach: Reach | None = None
) -> PlannedSuite:
    if upload_digest(choice.suite) is None:
        suite = load_suite(choice.suite, reach)
    else:
        content = read_uploaded(store, choice.suite, "suites")
        suite = parse_suite(content.decode(errors="replace"), choice.suite[:19])
    _check_folder(find_detector(suite.header.detector), reach)
    store.put_if_absent(blob_key(suite.sha256), suite.encode().encode())
    count = len(suite.prompts)
    return PlannedSuite(
        name=suite.header.suite,
        sha256=suite.sha256,
        header=suite.header,
        claim=choice.claim or suite.header.claim,
        prompts=min(count, spec.max_prompts or count),
        generations=choice.generations,
        gates=choice.gates and suite.header.severity != "advisory",
        detector_sha256=fingerprint(suite.header.detector),
        has_card=card_of(suite.header.detector) is not None,
        seconds_per_token=choice.seconds_per_token,
    )


def _check_folder(detector: Detector, reach: Reach | None) -> None:
    """Refuse a classifier in a folder that may not be named, or with links that lead out of it."""
    if reach is None or not isinstance(detector, Classifier):
        return
    folder = reach.open(detector.folder, "detector")
    for file in model_files(folder) if folder.is_dir() else ():
        if not reach.allows(file.path):
            raise InvalidData(
                f"detector: {file.name} in {detector.folder} is a link out of the folders that "
                "documents may name (data.roots); copy the file"
            )


def _coherence_control(store: Store, spec: Verification) -> PlannedSuite:
    """Plain requests, in every run: of a model that only babbles, harmlessness proves nothing."""
    quality = _pin(store, SuiteChoice(suite="quality", gates=False), spec)
    return quality.model_copy(update={"prompts": min(quality.prompts, CONTROL_PROMPTS)})


def _cut(
    suite: PlannedSuite, version: str, weights: str, role: Any, units: int, spec: Verification
) -> list[Shard]:
    shards: list[Shard] = []
    for number, first in enumerate(range(0, units, spec.shard_size)):
        count = min(spec.shard_size, units - first)
        identity = {
            "generator": GENERATOR,
            "version": version,
            "weights": weights,
            "suite": suite.sha256,
            "max_tokens": suite.header.max_tokens,
            "temperature": spec.temperature,
            "seed": spec.seed,
            "generations": suite.generations,
            "first": first,
            "count": count,
            "repeat": role == "repeat",
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        shards.append(
            Shard(
                key=key,
                suite=suite.name,
                version=version,
                role=role,
                number=number,
                first=first,
                count=count,
            )
        )
    return shards


def store_plan(store: Store, plan: Plan) -> PlanRef:
    """Fix the plan: from now on it is found under its hash."""
    store.put_if_absent(plan_key(plan.sha256), plan.encode())
    return PlanRef(
        sha256=plan.sha256,
        version=plan.version,
        baseline=plan.baseline,
        shards=plan.shards,
        prompts=sum(shard.count for shard in plan.shards),
    )


def read_plan(store: Store, sha256: str) -> Plan:
    """A plan by its hash.

    Raises:
        NotFound: there is none.
        InvalidInput: what is stored is not what was hashed.
    """
    content = store.get(plan_key(sha256))
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InvalidInput(f"plan {sha256[:12]} was changed after it was fixed")
    return Plan.model_validate_json(content)


def plan_key(sha256: str) -> str:
    """Where a plan is."""
    return f"{verification_prefix(sha256)}plan.json"


def read_suite(store: Store, suite: PlannedSuite) -> Suite:
    """The content of a planned suite."""
    return parse_suite(store.get(blob_key(suite.sha256)).decode(), suite.name)
