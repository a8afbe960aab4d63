"""Bounds: every field has them, what is accepted can be decided on, stored and read again."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import pydantic_data_converter

from api.app import create_app
from loomos.continual.memory import over_budget
from loomos.errors import InvalidInput, InvalidManifest
from loomos.jobs.campaigns import Appraisal, CampaignInput, PolicyState, RoundReport
from loomos.jobs.cluster import (
    ClusterState,
    Lease,
    LeaseRequest,
    NodeInfo,
    ReleaseRequest,
    SchedulerConfig,
)
from loomos.jobs.continual import ContinualInput, ContinualJob, ContinualState, UpdateRecord
from loomos.jobs.experiments import (
    ExperimentInput,
    TrialRecord,
    TrialRequest,
    TrialResult,
    TrialState,
)
from loomos.jobs.names import label_list
from loomos.jobs.rollouts import CanaryRollout, RolloutInput, WatchStage, begun
from loomos.jobs.serving import EndpointInput, EndpointSpec, Route, Target
from loomos.jobs.training import Progress, Reference, ResolvedInputs, TrainingRunInput
from loomos.jobs.verification import VerificationInput, VerificationJob
from loomos.limits import LARGEST_INTEGER, backoff, later, plain_json
from loomos.loomdb.events import NewEvent, Service, prepare
from loomos.manifest import (
    Experiment,
    JobManifest,
    Resources,
    RLCampaign,
    TrainingJob,
    TrainingSpec,
    field_errors,
)
from loomos.nexus.advice import advise
from loomos.nexus.allocation import Allocation
from loomos.nexus.forecast import forecast
from loomos.nexus.overview import Overview
from loomos.nexus.packing import pack, unpack
from loomos.nexus.requests import step_seconds, training_request, workload
from loomos.nexus.usage import Waiting
from loomos.quantities import format_duration
from loomos.rl import campaigns
from loomos.rollouts import rows
from loomos.rollouts.judge import StageJudge
from loomos.serving.scaling import Scale
from loomos.weaver import population, pruning
from loomos.weaver.book import TrialBook
from loomos.weaver.results import enough
from loomos.weaver.space import allowed, grid
from tests.manifests import BASES, DATA, HEAD, MODEL, deep, documents

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PINNED = ResolvedInputs(
    model=Reference(uri="init:llama", sha256="a" * 64),
    training=Reference(uri="blobs/b", sha256="b" * 64),
    code="0.1.0",
)
DECIDED: Counter[str] = Counter()
POLICIES = itertools.cycle(
    ["bin-pack", "spread", "priority-first", "performance-weighted", "cost-aware"]
)


# --- every field has bounds ---------------------------------------------------------------------


def unbounded(schema: dict[str, Any], path: str, named: Callable[[str], Any]) -> Iterator[str]:
    """Parts of a JSON Schema that may be as large as one likes."""
    if "enum" in schema or "const" in schema:
        return
    keys = schema.keys()
    kind = schema.get("type")
    if kind in ("integer", "number"):
        if not keys & {"minimum", "exclusiveMinimum"} or not keys & {
            "maximum",
            "exclusiveMaximum",
        }:
            yield path
    elif (
        (kind == "string" and "maxLength" not in schema)
        or (kind == "array" and "maxItems" not in schema)
        or (kind == "object" and "properties" not in schema and "maxProperties" not in schema)
    ):
        yield path
    for branch in schema.get("anyOf", []):
        yield from unbounded(branch, path, named)
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        found = named(name)
        if found is not None:
            yield from unbounded(found, name, named)
    if "items" in schema:
        yield from unbounded(schema["items"], f"{path}[]", named)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from unbounded(schema["additionalProperties"], f"{path}.*", named)
    for name, child in schema.get("properties", {}).items():
        yield from unbounded(child, f"{path}.{name}", named)


def once(definitions: dict[str, Any]) -> Callable[[str], Any]:
    left = dict(definitions)
    return lambda name: left.pop(name, None)


@pytest.mark.parametrize("kind", BASES, ids=lambda kind: kind.__name__)
def test_every_field_of_every_kind_has_bounds(kind: type[BaseModel]) -> None:
    schema = kind.model_json_schema()
    found = list(unbounded(schema, kind.__name__, once(schema.get("$defs", {}))))
    assert not found, "give them a type of loomos.limits"


def test_every_body_that_the_gateway_takes_has_bounds() -> None:
    described = create_app().openapi()
    named = once(described["components"]["schemas"])
    bodies = 0
    found: list[str] = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                found += unbounded(content["schema"], f"{method} {path}", named)
                bodies += 1
    assert bodies > 10
    assert not found, "give them a type of loomos.limits"


# --- what is refused, and in which words ----------------------------------------------------------


def job(**spec: Any) -> dict[str, Any]:
    return {**HEAD, "kind": "TrainingJob", "spec": {"algorithm": "noop", **spec}}


def tuned(**tuning: Any) -> dict[str, Any]:
    model = {**MODEL, "fine_tuning_config": {**MODEL["fine_tuning_config"], **tuning}}
    return job(algorithm="sft", model=model, data=DATA)


def configured(config: Any) -> dict[str, Any]:
    return job(algorithm="sft", model={**MODEL, "config": config}, data=DATA)


@pytest.mark.parametrize(
    ("document", "path", "words"),
    [
        (
            job(runtime={"estimated_duration": "90000000h"}),
            "spec.runtime.estimated_duration",
            "must be from 0s to 87600h, not 90000000h",
        ),
        (tuned(weight_decay=float("inf")), "spec.model.fine_tuning_config.weight_decay", "finite"),
        (tuned(max_grad_norm=float("nan")), "spec.model.fine_tuning_config.max_grad_norm", "fini"),
        (tuned(max_steps=10**4000), "spec.model.fine_tuning_config.max_steps", "digits"),
        (job(resources={"memory": "9" * 5000}), "spec.resources.memory", "not a quantity"),
        (job(resources={"memory": "9Ei"}), "spec.resources.memory", "no machine has more"),
        (job(resources={"max_latency_ms": float("inf")}), "spec.resources.max_latency_ms", "fini"),
        (job(resources={"gpu_type": "\ud800"}), "spec.resources.gpu_type", "half a character"),
        (
            job(resources={"node_labels": {"rack": "7" * 64}}),
            "spec.resources.node_labels.rack",
            "at most 63 characters",
        ),
        (
            job(resources={"node_labels": {f"{n:02}" * 40: "7" for n in range(60)}}),
            "spec.resources.node_labels",
            "has 4,860 bytes, names and values together, and may have 4,096",
        ),
        (configured(deep(200)), "spec.model.config.a.a.a.a.a.a.a.a", "deeper than 32 levels"),
        (configured({"a": [float("inf")]}), "spec.model.config.a.0", "finite"),
        (configured({"a": {"b": 2**60}}), "spec.model.config.a.b", "beyond 2^53"),
        (configured({"a": 10**4000}), "spec.model.config.a", "beyond 2^53"),
        (configured({"a": "\ud800"}), "spec.model.config.a", "U+D800"),
        (configured({"a": b"1"}), "spec.model.config.a", "a bytes is nothing that JSON has"),
        (configured({str(i): "x" * 900 for i in range(70)}), "spec", "goes into the ledger"),
        (configured({"a": list(range(20_000))}), "spec.model.config", "more than 10,000 values"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_path_and_the_reason(
    document: dict[str, Any], path: str, words: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        TrainingJob.model_validate(document)
    found = {e.path: e.message for e in field_errors(refused.value.errors(), TrainingJob)}
    assert path in found, found
    assert words in found[path]
    for message in found.values():
        message.encode()  # can be sent


def test_a_file_says_the_same_of_infinity_depth_and_bombs() -> None:
    head = "apiVersion: loomos.ai/v1\nkind: TrainingJob\nmetadata: {name: x}\nspec: "
    for spec, words in (
        ("{algorithm: noop, resources: {max_latency_ms: .inf}}", "finite"),
        ('{"algorithm": "noop", "resources": {"max_latency_ms": 1e400}}', "finite"),
        ("{a: " * 200 + "1" + "}" * 200, "deeper than 32 levels"),
        ("{a: " * 5000 + "1" + "}" * 5000, "deeper than 32 levels"),
        ("{x: " + "9" * 5000 + "}", "not YAML or JSON"),
    ):
        with pytest.raises(InvalidManifest, match=words):
            _ = JobManifest.from_text(head + spec).job
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    with pytest.raises(InvalidManifest, match="more than 10,000 values"):
        JobManifest.from_text(bomb)


def test_what_was_stored_under_wider_bounds_can_still_be_read() -> None:
    stored = {"node_labels": {"rack": "7" * 8192, "row": "x" * 8192}}
    assert Resources.model_validate_json(json.dumps(stored)).node_labels == stored["node_labels"]


def test_what_is_plain_json_stays_as_it_is() -> None:
    value = {"a": [1, -0.5, True, None, "é💩", {"b": LARGEST_INTEGER}], "c": {}}
    assert plain_json(value) == value
    assert plain_json({"t": (1, 2)}) == {"t": [1, 2]}


def test_time_saturates_and_backs_off_without_overflow() -> None:
    assert later(NOW, timedelta(hours=1)) == NOW + timedelta(hours=1)
    assert later(NOW, timedelta.max).year == 9999
    minute = timedelta(minutes=1)
    waits = [backoff(timedelta(seconds=1), n, minute) for n in (0, 1, 5, 6, 10_000)]
    assert [w.total_seconds() for w in waits] == [1, 2, 32, 60, 60]
    assert backoff(timedelta(days=3650), 9_998, minute) == minute
    assert backoff(timedelta(0), 9_998, minute) == timedelta(0)


def test_a_lease_of_an_older_cluster_that_ends_beyond_the_calendar_is_no_end_of_it() -> None:
    request = LeaseRequest(
        job_id="j", run_id="r", ticket=1, resources=Resources(), submitted_at=NOW,
        estimate=timedelta(hours=90_000_000),
    )  # fmt: skip
    lease = Lease(
        epoch=1, job_id="j", run_id="r", ticket=1, nodes=[], ranks_per_node=1,
        request=request, granted_at=NOW,
    )  # fmt: skip
    assert lease.ends_by is not None and lease.ends_by.year == 9999
    allocation = Allocation()
    allocation.register(node(0), NOW)
    assert forecast(allocation, request, NOW).ends_at == lease.ends_by


# --- nothing that is accepted makes a decision raise ---------------------------------------------


def node(number: int) -> NodeInfo:
    return NodeInfo(
        node_id=f"n{number}",
        incarnation="1",
        address="127.0.0.1",
        max_ranks=(1, 8, 64, 64)[number],
        cpu_count=(2, 64, 4096, 8)[number],
        memory_bytes=2 ** (33, 40, 52, 52)[number],
        storage_bytes=2**52,
        gpus=["A100"] * (0, 8, 64, 1)[number],
        bandwidth_gbps=1e12,
        latency_ms=1e-12,
        region="a",
        node_type="a",
    )


def decodes(message: BaseModel) -> Any:
    """Through the converter with which it travels to a worker."""
    converter = pydantic_data_converter.payload_converter
    payload: Payload = converter.to_payloads([message])[0]
    assert len(payload.data) < 2**20
    [found] = converter.from_payloads([payload], [type(message)])
    assert found == message
    return found


def in_ledger(stream: str, data: dict[str, Any]) -> None:
    prepare([(stream, NewEvent("fuzzed", data))], Service(name="control"), None)


def play(config: SchedulerConfig, requests: list[LeaseRequest]) -> None:
    """A cluster's life with some requests."""
    allocation = Allocation(config=config)
    for number in range(4):
        allocation.register(node(number), NOW)
    now = NOW
    for request in requests:
        allocation.request(request, now)
        forecast(allocation, request, now)
    for _ in range(3):
        given, _ = allocation.decide(now)
        overview = Overview(allocation)
        decodes(overview.status(now))
        for request in requests:
            decodes(overview.place_of(request.job_id, now))
            allocation.round(now).why_never(Waiting(request, now))
        advise(allocation, now)
        for lease in given:
            assert lease.ends_by is None or lease.ends_by.year <= 9999
        now += timedelta(days=400)
        decodes(allocation.to_state())
        allocation = Allocation.from_state(unpack(decodes(pack(allocation.to_state(), now))))
        for lease in list(allocation.leases.values())[:1]:
            allocation.release(
                ReleaseRequest(
                    job_id=lease.job_id, run_id="r", epoch=lease.epoch, workload="w", step_s=1e-9
                ),
                now,
            )
    assert isinstance(allocation.to_state(), ClusterState)


OTHERS = [
    LeaseRequest(
        job_id=f"other-{n}", run_id="r", ticket=1, submitted_at=NOW, priority=n,
        resources=Resources.model_validate({"nodes": {"min": 1, "max": n}}),
        estimate=timedelta(days=3650), project=f"p{n}",
    )
    for n in (1, 2, 3)
]  # fmt: skip


def decide_on_training(spec: TrainingSpec, job_id: str = "fuzzed-1") -> None:
    run = TrainingRunInput(
        job_id=job_id, name="fuzzed", owner="o" * 200, project="p" * 63, spec=spec
    )
    run = decodes(run)
    request = training_request(run, NOW, PINNED).model_copy(update={"run_id": "r", "ticket": 1})
    decodes(request)
    play(SchedulerConfig(policy=next(POLICIES)), [*OTHERS, request])
    workload(run, PINNED, 64 * 10_000)
    for rate in (1e-300, 1.0, 1e300):
        step_seconds(run, Progress(generation=1, tokens_per_s=rate))
    retries = spec.runtime.retries
    for failures in {0, 1, retries.max_attempts - 2, 46, 47, 10_000}:
        assert backoff(retries.backoff, max(0, failures), timedelta(minutes=1)) <= timedelta(
            minutes=1
        )
    for span in (spec.runtime.max_duration, spec.runtime.checkpoint_interval):
        format_duration(span or timedelta(0))
    data = {"job_id": job_id, "labels": {}, "name": "n", "project": "p"}
    in_ledger("job/x", {**data, "spec": spec.model_dump(mode="json")})


def training(document: TrainingJob) -> None:
    assert all(len(label.encode()) < 200 for label in label_list(document.metadata.labels))
    decide_on_training(document.spec)


def experiment(document: Experiment) -> None:
    spec = document.spec
    spec = decodes(ExperimentInput(experiment_id="e", name="fuzzed", owner="o", spec=spec)).spec
    in_ledger("experiment/x", {"spec": spec.model_dump(mode="json")})
    book = TrialBook(spec, [], [])
    chance = random.Random(1)
    for number in range(min(4, spec.most_trials)):
        params = {name: population.draw(p, chance) for name, p in spec.parameters.items()}
        book.add(params)
        rule = pruning.rule_for(spec, number, book.trials)
        judge = pruning.Judge(rule)
        judge.report(1, 1.0), judge.report(10**9, -1e300)
        values = [1e308 * (-1) ** number] * len(spec.metrics)
        book.settle(number, TrialResult(state=TrialState.COMPLETED, values=values, cost=1e300), NOW)
        if spec.objective.training is not None:
            trained = spec.training_spec(params)
            decodes(
                TrialRequest(
                    experiment_id="e", number=number, params=params, seed=spec.seed, metrics=[],
                    training=trained, pruning=rule, most_reports=1, timeout=spec.trial_timeout,
                )
            )  # fmt: skip
        try:
            allowed(spec, params)
        except InvalidInput:
            break
    book.choosable(0, 100), book.best(), enough(spec, book.trials)
    if spec.population is not None and len(book) >= spec.population.size:
        with_constraints_met(lambda: population.offspring(spec, spec.population.size, book.trials))
    if spec.sampler.name == "grid":
        with_constraints_met(lambda: grid(spec))
    assert all(isinstance(trial, TrialRecord) for trial in book.trials)


def with_constraints_met(call: Callable[[], Any]) -> None:
    try:
        call()
    except InvalidInput as error:  # a constraint that cannot be computed, a grid that is too large
        assert str(error).startswith(("spec.constraints", "spec.sampler"))


def campaign(document: RLCampaign) -> None:
    spec = document.spec
    decodes(CampaignInput(campaign_id="c", name="fuzzed", owner="o", spec=spec))
    in_ledger("campaign/x", {"spec": spec.model_dump(mode="json")})
    weights: dict[str, float] = {}
    policies = {
        label: PolicyState(
            version="m@v",
            environment=campaigns.at_start(spec, members[0].environment),
            appraisal=Appraisal(
                episodes=1,
                mean_return=1e300,
                success_rate=1.0,
                threads=dict.fromkeys(members[0].threads, 1e300),
            ),
        )
        for label, members in spec.policies.items()
    }
    report = RoundReport(number=0, scores=campaigns.scores(spec, policies))
    for phase in spec.phases:
        weights = campaigns.phase_weights(spec, phase, weights)
        weights = campaigns.adapted(spec, weights, [report])
        campaigns.is_reached(phase, weights, report)
    campaigns.moved_on(spec, policies)
    first = spec.members[0]
    made = spec.training(first, policy="model:m@v", environment=first.environment, seed=2**40)
    decide_on_training(made)


def verification(document: VerificationJob) -> None:
    decodes(
        VerificationInput(verification_id="v", owner="o", model=document.model, spec=document.spec)
    )
    in_ledger("verification/x", {"spec": document.spec.model_dump(mode="json")})


def rollout(document: CanaryRollout) -> None:
    spec = document.spec
    decodes(RolloutInput(name="fuzzed", owner="o", spec=spec))
    in_ledger("rollout/x", {"spec": spec.model_dump(mode="json")})
    first = Target(version="m@a")
    route = Route(
        endpoint="chat", generation=1, spec=EndpointSpec(model="m@a"), stable=first, issued_at=NOW
    )
    rows.opened(route, Target(version="m@v"), "h", spec.lease, NOW)
    for stage in spec.stages:
        for is_bake in (False, True):
            watch = WatchStage(spec=spec, holder="h", version="m@v", stage=stage, is_bake=is_bake)
            judge = StageJudge(decodes(watch), begun(None, "k", NOW))
            for later_s in (0, 1, 10**9):
                judge.verdict(NOW + timedelta(seconds=later_s))


def continual(document: ContinualJob) -> None:
    spec = document.spec
    decodes(ContinualInput(name="fuzzed", owner="o", spec=spec))
    record = UpdateRecord(update_id="u", at=NOW, decision="promoted", reason="", training_s=1e300)
    over_budget(ContinualState(updates=[record]), spec.budget, NOW + timedelta(days=10))


def scheduler(config: SchedulerConfig) -> None:
    decodes(config)
    try:
        Allocation().configure(config)
    except InvalidInput:
        return
    play(config, OTHERS)


def endpoint(spec: EndpointSpec) -> None:
    decodes(EndpointInput(name="chat", owner="o", spec=spec))
    route = Route(
        endpoint="chat", generation=1, spec=spec, stable=Target(version="m@v"), issued_at=NOW
    )
    Scale(lambda: 0.0).decide(route, [])


DECISIONS: dict[type[BaseModel], Callable[[Any], None]] = {
    TrainingJob: training,
    Experiment: experiment,
    RLCampaign: campaign,
    VerificationJob: verification,
    CanaryRollout: rollout,
    ContinualJob: continual,
    SchedulerConfig: scheduler,
    EndpointSpec: endpoint,
}


def judge(kind: type[BaseModel], document: dict[str, Any]) -> None:
    """Refused with words that can be sent, or decided on."""
    try:
        accepted = kind.model_validate(document)
    except ValidationError as error:
        for fault in field_errors(error.errors(), kind):
            str(fault).encode()
        DECIDED["refused"] += 1
        return
    DECISIONS[kind](accepted)
    DECIDED[kind.__name__] += 1


@pytest.mark.parametrize(
    ("kind", "document"),
    [(kind, document) for kind, found in BASES.items() for document in found],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_plain_document_of_every_kind_is_decided_on(
    kind: type[BaseModel], document: dict[str, Any]
) -> None:
    DECIDED.clear()
    judge(kind, document)
    assert {kind.__name__: 1} == DECIDED


@seed(16)
@settings(max_examples=200, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents())
def test_no_document_that_is_accepted_makes_a_decision_raise(
    made: tuple[type[BaseModel], dict[str, Any]],
) -> None:
    judge(*made)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_none_of_20_000_documents_makes_a_decision_raise() -> None:
    DECIDED.clear()

    @seed(20_000)
    @settings(
        max_examples=20_000, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(documents())
    def fuzz(made: tuple[type[BaseModel], dict[str, Any]]) -> None:
        judge(*made)

    fuzz()
    print(dict(DECIDED))
    assert sum(DECIDED.values()) >= 20_000
    assert all(DECIDED[kind.__name__] > 50 for kind in BASES)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
@settings(max_examples=50, database=None, deadline=None)
def test_plain_json_is_exactly_what_the_ledger_takes(value: Any) -> None:
    try:
        plain_json({"x": value})
    except ValidationError:
        return
    in_ledger("x", {"x": value})
