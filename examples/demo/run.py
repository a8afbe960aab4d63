"""The main job on real parts: train on two nodes, kill -9 one of them midway, watch it recover.

The process of the ledger is killed too. Then `deliver.py` takes a chat model from weights to
production. Run by `make demo`. Ends with exit code 0 only if the run recovered from a checkpoint,
the loss fell, the published model could be loaded and sampled, its lineage verifies, a verified
version was promoted over real requests, and a damaged one was rolled back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from deliver import deliver
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loomos.client.http import LoomOSClient
from loomos.client.models import JobDetail
from loomos.manifest import JobManifest
from loomos.runtime import leave
from loomos.settings import STATE_DIR
from loomos.stack.state import StateDir

ROOT = Path(__file__).parents[2]
MANIFEST = Path(__file__).with_name("job.yaml")
STEPS = 200
KILL_AT_STEP = 70
VICTIMS = ("node-2", "ledger")
"""A machine that trains, and the process that writes down what happened."""
PROMPT = "def "

console = Console(markup=False, highlight=False)


def start_stack() -> StateDir:
    """Start the stack, or use the one that runs."""
    console.rule("1. start the stack")
    subprocess.run([sys.executable, "-m", "loomos", "up"], cwd=ROOT, check=True)
    os.chdir(ROOT)
    return StateDir(ROOT / STATE_DIR)


async def train(stack: StateDir) -> JobDetail:
    """Submit, follow, kill a worker, follow to the end."""
    console.rule("2. submit examples/demo/job.yaml")
    corpus = sysconfig.get_path("stdlib")
    manifest = JobManifest.from_template(MANIFEST, {"steps": STEPS, "corpus": corpus})
    async with LoomOSClient() as client:
        submitted = await client.submit_job_from_manifest(manifest)
        console.print(f"job {submitted.job_id}\n{submitted.temporal_url}")
        console.rule(f"3. train; at step {KILL_AT_STEP} {' and the '.join(VICTIMS)} get kill -9")
        await follow(client, submitted.job_id, stack)
        return await client.get_job_status(submitted.job_id)


async def follow(client: LoomOSClient, job_id: str, stack: StateDir) -> None:
    """Show progress until the job has ended; kill the victims once on the way."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
    )
    killed_at: float | None = None
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("queued", total=STEPS, facts="")
        async for kind, data in client.stream_job_events(job_id):
            if kind == "state":
                console.print(f"  {data['at'][11:19]}  {data['state']:<10}  {data['message']}")
                if killed_at and data["message"].startswith("resumed"):
                    console.print(f"  {time.time() - killed_at:.1f} s after the kill")
            if kind != "job" or not data.get("training"):
                continue
            training = data["training"]
            loss = f"loss {training['loss']:.3f}" if training["loss"] is not None else ""
            facts = f"step {training['step']}/{STEPS} {loss}"
            progress.update(bar, completed=training["step"], description=data["state"], facts=facts)
            if killed_at is None and training["step"] >= KILL_AT_STEP:
                killed_at = time.time()
                for victim in VICTIMS:
                    kill(stack, victim)


def kill(stack: StateDir, member: str) -> None:
    """Kill -9 a member of the stack."""
    state = stack.read()
    assert state is not None
    pid = next(m.pid for m in state.members if m.name == member)
    assert pid is not None
    console.print(f"  kill -9 {pid} ({member})", style="bold")
    os.kill(pid, signal.SIGKILL)


async def judge(job: JobDetail) -> list[str]:
    """What went wrong, if anything; prints what happened when."""
    console.rule("4. what happened")
    for attempt in job.attempts:
        console.print(
            f"  attempt {attempt.generation} on {', '.join(attempt.nodes)}: from step "
            f"{attempt.from_step} to {attempt.to_step}: {attempt.outcome}"
        )
    async with LoomOSClient() as client:
        records = (await client.get_job_metrics(job.job_id)).records
    steps = [r for r in records if r["kind"] == "step"]
    wrong: list[str] = []
    if job.state != "completed":
        return [f"the job is {job.state}: {job.message}"]
    first = sum(r["loss"] for r in steps[:5]) / 5
    last = sum(r["loss"] for r in steps[-5:]) / 5
    console.print(f"  loss {first:.3f} -> {last:.3f} nats a byte over {STEPS} steps")
    if not last < 0.75 * first:
        wrong.append(f"the loss fell too little: {first:.3f} -> {last:.3f}")
    resumed = [a for a in job.attempts if a.from_step > 0]
    if not resumed:
        wrong.append("no attempt resumed from a checkpoint")
    return wrong


async def sample(job: JobDetail) -> None:
    """Download the published model and let it write a line."""
    console.rule("5. sample from the published model")
    folder = ROOT / STATE_DIR / "demo" / job.job_id
    async with LoomOSClient() as client:
        await client.download_job_artifact(job.job_id, "trained_model", folder)
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "torch.manual_seed(0)\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "prompt = tokenizer(sys.argv[2], return_tensors='pt')\n"
        "ids = model.generate(**prompt, max_new_tokens=60, do_sample=True, top_k=20)\n"
        "print(repr(tokenizer.decode(ids[0])))\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(folder), PROMPT],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"the model cannot be sampled:\n{done.stderr}")
    console.print(f"  {job.model}\n  {done.stdout.strip()}")


def prove(job: JobDetail) -> list[str]:
    """Print where the model comes from, then check it offline from its bytes up."""
    console.rule("6. where the model comes from, provably")
    folder = ROOT / STATE_DIR / "demo" / f"{job.job_id}-provenance"
    for arguments in (
        ["show", str(job.model)],
        ["export", str(job.model), str(folder)],
        ["verify", str(folder)],
    ):
        console.print(f"  $ loomos provenance {' '.join(arguments)}", style="bold")
        done = subprocess.run(
            [sys.executable, "-m", "loomos", "provenance", *arguments], check=False, cwd=ROOT
        )
        if done.returncode:
            return [f"`loomos provenance {arguments[0]}` failed"]
    return []


def main() -> int:
    """Run the demo; returns the exit code."""
    began = time.monotonic()
    job = asyncio.run(train(start_stack()))
    wrong = asyncio.run(judge(job))
    if job.state == "completed":
        asyncio.run(sample(job))
        wrong += prove(job)
        wrong += asyncio.run(deliver(ROOT / STATE_DIR / "demo" / "chat"))
    console.rule("done" if not wrong else "failed")
    console.print(
        f"{time.monotonic() - began:.0f} s. Temporal's page of the run:\n{job.temporal_url}"
    )
    console.print(
        "`loomos jobs describe` and `loomos status` show more; `make down` stops the stack."
    )
    for reason in wrong:
        print(f"error: {reason}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    leave(main())
