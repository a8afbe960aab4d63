"""Prism on a real stack: planted flaws found, a node that dies, nothing asked twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from loomos.client.http import LoomOSClient
from loomos.errors import NotFound
from loomos.jobs.verification import VerificationJob, VerificationState, VerificationStatus
from loomos.prism.answers import shard_answers_key
from loomos.prism.plan import read_plan
from tests import flawed
from tests.stack import Stack

SUITES = ("toxicity", "bias", "factuality", "injection", "jailbreak", "quality")


def job(model: str, **spec: object) -> VerificationJob:
    return VerificationJob.model_validate(
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "VerificationSuite",
            "metadata": {"name": "check"},
            "model": model,
            "spec": spec,
        }
    )


async def verdict(
    stack: Stack, client: LoomOSClient, started: VerificationStatus
) -> VerificationStatus:
    name = started.verification_id.removeprefix("verify/")
    return await stack.eventually(
        lambda: client.verifications.get(name), lambda v: v.state.is_final, within_s=240
    )


@pytest.fixture(scope="module")
def behaved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says "I do not know." to everything."""
    return flawed.train(tmp_path_factory.mktemp("behaved") / "m", flawed.well_behaved, steps=70)


@pytest.mark.slow
async def test_a_verification_survives_the_death_of_its_node_and_repeats_one_shard(
    stack: Stack, client: LoomOSClient, behaved: Path
) -> None:
    made = await client.models.upload(behaved, "behaved")
    version = f"behaved@{made.version}"
    spec = {"shard_size": 60, "suites": [{"suite": name} for name in SUITES]}
    started = await client.verifications.start(job(version, **spec))
    name = started.verification_id.removeprefix("verify/")
    running = await stack.eventually(
        lambda: client.verifications.get(name), lambda v: v.shards_done >= 2, every_s=0.05
    )
    node = next(e.message for e in running.timeline if e.state == VerificationState.RUNNING)
    stack.kill(node.rpartition(" ")[2])
    done = await verdict(stack, client, started)
    assert done.result is not None and done.result.verdict == "PASS", done.result
    assert {s.suite: s.verdict for s in done.result.suites} == dict.fromkeys(SUITES, "PASS")
    kinds = [e for e in (await client.ledger.events(stream="model:behaved")).events]
    order = [e.event_type for e in kinds if e.data.get("plan_sha256") == done.result.plan_sha256]
    assert order == ["verification_planned", "model_verified"]
    # Asked once more it generates nothing: every shard is there, and the verdict too.
    store = stack.store()
    plan = read_plan(store, done.result.plan_sha256)
    for shard in plan.shards:
        assert len(store.get(shard_answers_key(shard.key)).splitlines()) == shard.count
    again = await verdict(stack, client, await client.verifications.start(job(version, **spec)))
    assert again.result is not None
    assert again.result.evidence_sha256 == done.result.evidence_sha256
    detail = await client.models.get(version)
    assert detail.verification is not None and detail.verification.verdict == "PASS"
    for form, begin in (("pdf", b"%PDF-"), ("html", b"<!doctype"), ("json", b"{"), ("zip", b"PK")):
        assert (await client.verifications.report(name, form)).startswith(begin)
    evidence = json.loads(await client.verifications.report(name, "json"))
    assert evidence["verdict"] == "PASS"


async def test_a_broken_model_is_found_out_against_the_one_in_service(
    stack: Stack, client: LoomOSClient, behaved: Path, tmp_path: Path
) -> None:
    from tests.serving import save_tiny

    good = await client.models.upload(behaved, "behaved")
    bad = await client.models.upload(save_tiny(tmp_path / "m", 1), "behaved")
    started = await client.verifications.start(
        job(
            f"behaved@{bad.version}",
            baseline=f"behaved@{good.version}",
            suites=[{"suite": "quality"}],
            max_prompts=60,
        )
    )
    done = await verdict(stack, client, started)
    assert done.result is not None
    verdicts = {s.suite: s.verdict for s in done.result.suites}
    assert verdicts == {"quality": "FAIL", "quality.regression": "FAIL"}


async def test_a_model_that_does_not_exist_is_refused_at_once(client: LoomOSClient) -> None:
    with pytest.raises(NotFound, match="no model 'no-such-model'"):
        await client.verifications.start(job("no-such-model"))


async def test_a_verification_can_be_cancelled(
    stack: Stack, client: LoomOSClient, behaved: Path
) -> None:
    made = await client.models.upload(behaved, "behaved")
    started = await client.verifications.start(job(f"behaved@{made.version}", seed=99))
    name = started.verification_id.removeprefix("verify/")
    await asyncio.sleep(0.5)
    await client.verifications.cancel(name)
    done = await verdict(stack, client, started)
    assert done.state == VerificationState.CANCELLED


NO_NETWORK = """
import socket, sys
connect = socket.socket.connect
def refuse(self, address):
    if self.family == socket.AF_UNIX or str(address[0]).startswith("127."):
        return connect(self, address)
    raise OSError(f"outside is blocked: {address}")
socket.socket.connect = refuse
def no_names(*arguments, **options):
    raise OSError("names are blocked")
socket.getaddrinfo = no_names
import asyncio, json
from pathlib import Path
from loomos.prism import Prism, SafetyTest, VerificationSuite
async def main():
    prism = Prism(Path(sys.argv[2]))
    suite = VerificationSuite(list(SafetyTest), {"max_prompts": int(sys.argv[4])})
    results = await prism.verify_model(sys.argv[1], suite, test_dataset="safety_benchmark_v1")
    report = await prism.generate_compliance_report(
        results, standards=["EU_AI_ACT", "NIST_AI_RMF", "ISO_27001"]
    )
    for name in ("report.pdf", "report.html", "report.json", "logs"):
        await prism.export_report(report, Path(sys.argv[3]) / name)
    print(json.dumps({n: t.verdict for n, t in results.test_results.items()}))
asyncio.run(main())
"""


def verify_offline(model: Path, folder: Path, max_prompts: int = 120) -> dict[str, str]:
    """Prism in a process that can reach nothing outside."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            NO_NETWORK,
            str(model),
            str(folder / "cache"),
            str(folder),
            str(max_prompts),
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_everything_runs_with_sockets_to_the_outside_blocked(behaved: Path, tmp_path: Path) -> None:
    found = verify_offline(behaved, tmp_path)
    assert found == dict.fromkeys(SUITES, "PASS")
    listing = subprocess.run(
        [
            sys.executable,
            "-m",
            "inspect_ai",
            "list",
            "logs",
            "--json",
            "--log-dir",
            str(tmp_path / "logs"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert listing.returncode == 0, listing.stderr
    assert {Path(log["name"]).stem for log in json.loads(listing.stdout)} == set(SUITES)


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
@task
def knows():
    greedy = GenerateConfig(temperature=0)  # sampled, one run in six has a reply gone wrong
    samples = [Sample(input=f"What is {i} plus {i}?", target="do not know") for i in range(12)]
    return Task(dataset=samples, solver=generate(), scorer=includes(), config=greedy)
"""


@pytest.mark.slow
async def test_a_task_of_inspect_runs_against_an_endpoint(
    stack: Stack, client: LoomOSClient, behaved: Path, tmp_path: Path
) -> None:
    await client.deploy_model(behaved, "outsiders")
    task = tmp_path / "knows.py"
    task.write_text(TASK)
    command = ["verify", "external", "outsiders", "--task", str(task), "-o", "json"]
    said = await asyncio.to_thread(
        stack.loomos, *command, "--claim", "0.3", "--folder", str(tmp_path / "logs")
    )
    found = json.loads(said.stdout)
    assert (found["n"], found["failures"], found["unknown"]) == (12, 0, 0)
    assert found["verdict"] == "INCONCLUSIVE" and "detector errs" in found["reason"]
    await client.endpoints.delete("outsiders")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answerer", "options", "fails"),
    [
        (flawed.toxic, {}, "toxicity"),
        (flawed.obedient, {"steps": 700, "stress": 6}, "injection"),
    ],
)
def test_a_planted_flaw_fails_exactly_the_suite_it_should(
    answerer: flawed.Answerer, options: dict[str, int], fails: str, tmp_path: Path
) -> None:
    model = flawed.train(tmp_path / "m", answerer, **options)
    found = verify_offline(model, tmp_path)
    assert found == {name: "FAIL" if name == fails else "PASS" for name in SUITES}
