"""From weights to production: verify, put on trial over real requests, promote; then roll back.

The second part of `make demo`. A first version of a chat model serves. A second one is verified
against it by Prism and goes through a canary while clients keep asking; it ends as stable. Then a
version with damaged weights is put on trial, and is rolled back by itself.
"""

from __future__ import annotations

import asyncio
import collections
import json
import shutil
import time
from pathlib import Path

import openai
from make_chat import USES, write
from rich.console import Console
from safetensors.torch import load_file, save_file

from loomos.client.http import LoomOSClient
from loomos.client.models import JobDetail
from loomos.jobs.rollouts import CanaryRollout, RolloutStatus
from loomos.manifest import JobManifest
from loomos.settings import load_settings

MANIFEST = Path(__file__).with_name("chat.yaml")
ENDPOINT = "helper"
FIRST_STEPS, SECOND_STEPS = 120, 160
CLIENTS = 4
PAUSE_S = 0.15

GUARDRAILS = [
    {"event": "error", "margin": 0.2},
    {"event": "empty", "margin": 0.2},
    {"event": "looping", "margin": 0.2},
    {"event": "latency", "margin": 0.3},
    {"event": "detector", "name": "toxicity", "margin": 0.2},
]
STAGES = [
    {"name": "shadow", "shadow_percent": 50, "requests": 25},
    {"name": "canary-25", "canary_percent": 25, "requests": 40},
    {"name": "canary-50", "canary_percent": 50, "requests": 40},
]

console = Console(markup=False, highlight=False)


class Traffic:
    """Clients that keep asking, each time as another user, and count what they get."""

    def __init__(self) -> None:
        settings = load_settings()
        self._client = openai.AsyncOpenAI(
            base_url=f"{settings.cluster.endpoint}/v1", api_key=settings.token(), max_retries=0
        )
        self.answers: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(CLIENTS)]
        return self

    async def __aexit__(self, *exit: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    async def _ask(self, number: int) -> None:
        things = list(USES)
        asked = 0
        while True:
            asked += 1
            thing = things[(asked + number) % len(things)]
            try:
                answer = await self._client.chat.completions.create(
                    model=ENDPOINT,
                    messages=[{"role": "user", "content": f"What is a {thing} used for?"}],
                    max_tokens=64,
                    temperature=0,
                    user=f"user-{number}-{asked}",
                )
                self.answers[answer.system_fingerprint or "?"] += 1
            except openai.APIError as error:
                self.failures.append(str(error))
            await asyncio.sleep(PAUSE_S)


async def train(client: LoomOSClient, folder: Path, steps: int, seed: int) -> JobDetail:
    """Train and verify a version of the chat model."""
    data = folder / "conversations.jsonl"
    await asyncio.to_thread(write, data)
    manifest = JobManifest.from_template(
        MANIFEST, {"steps": steps, "seed": seed, "conversations": str(data)}
    )
    submitted = await client.submit_job_from_manifest(manifest)
    said = ""
    async for job in client.stream_job_status(submitted.job_id):
        if job.current_stage != said:
            said = job.current_stage
            console.print(f"  {said}")
    return await client.get_job_status(submitted.job_id)


async def try_out(client: LoomOSClient, version: str, *, verified: bool) -> RolloutStatus:
    """Put a version on trial and follow it to its end."""
    rollout = CanaryRollout.model_validate(
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "CanaryRollout",
            "metadata": {"name": ENDPOINT},
            "spec": {
                "endpoint": ENDPOINT,
                "model": version,
                "stages": STAGES,
                "guardrails": GUARDRAILS,
                "bake": "3s",
                "require_verification": verified,
            },
        }
    )
    await client.rollouts.start(rollout)
    shown = 0
    while True:
        status = await client.rollouts.get(ENDPOINT)
        for event in status.timeline[shown:]:
            console.print(
                f"  {event.at.strftime('%H:%M:%S')}  {event.state:<12} {event.stage:<10} "
                f"{event.message}"
            )
        shown = len(status.timeline)
        if status.state.is_final:
            return status
        await asyncio.sleep(0.3)


def damage(source: Path, target: Path) -> None:
    """Copy a model and overwrite what its output layer knows of ending a turn."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    tokens = json.loads((target / "tokenizer.json").read_text())["added_tokens"]
    ends = [t["id"] for t in tokens if t["content"] in ("<|im_end|>", "<|endoftext|>")]
    weights = load_file(target / "model.safetensors")
    name = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    for end in ends:
        weights[name][end] = -weights[name][end]
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


async def deliver(folder: Path) -> list[str]:
    """Run the second part of the demo; returns what went wrong."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async with LoomOSClient() as client:
        console.rule("7. a first version of a chat model, trained, verified, served")
        first = await train(client, folder, FIRST_STEPS, seed=0)
        if first.model is None:
            return [f"the first version was not published: {first.message}"]
        await client.deploy_model(first.model, ENDPOINT)
        answer = await client.inference(
            ENDPOINT, {"messages": [{"role": "user", "content": "What is a lamp used for?"}]}
        )
        console.print(f"  {answer.version}: {answer.output['text']!r}")

        console.rule("8. a second version: trained, verified, on trial over real requests")
        second = await train(client, folder, SECOND_STEPS, seed=1)
        if second.model is None:
            return [f"the second version was not published: {second.message}"]
        async with Traffic() as traffic:
            status = await try_out(client, second.model, verified=True)
        wrong = _check(traffic, status, "promoted")

        console.rule("9. a third version, with damaged weights, on trial")
        good, broken = folder / "good", folder / "broken"
        await client.download_job_artifact(second.job_id, "trained_model", good)
        await asyncio.to_thread(damage, good, broken)
        third = await client.models.upload(broken, "helper")
        began = time.monotonic()
        async with Traffic() as traffic:
            status = await try_out(client, f"helper@{third.version}", verified=False)
        console.print(
            f"  rolled back {time.monotonic() - began:.1f} s after the start; from the judge's "
            f"verdict to the route row without it {status.verdict_to_traffic_ms} ms"
        )
        wrong += _check(traffic, status, "rolled_back")
    return wrong


def _check(traffic: Traffic, status: RolloutStatus, wanted: str) -> list[str]:
    total = sum(traffic.answers.values())
    shares = ", ".join(f"{version} {count}" for version, count in traffic.answers.most_common())
    console.print(f"  {total} answers ({shares}), {len(traffic.failures)} failures")
    wrong = [f"a request failed: {failure}" for failure in traffic.failures[:1]]
    if status.state != wanted:
        wrong.append(f"the rollout is {status.state}, not {wanted}: {status.message}")
    return wrong
