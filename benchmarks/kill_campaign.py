"""Random kill campaigns: jobs run while members are killed, stopped, and the disk fills up.

    python -m benchmarks.kill_campaign --seed 1 --seed 2

Each campaign starts a stack on a disk of its own (a tmpfs, so it needs root), trains two jobs
undisturbed, submits them again and disturbs the stack three to six times, as its seed says:
`kill -9` of a member, a rank or everything; SIGSTOP of a member, the supervisor or a rank for 3 to
40 s; a full disk for 4 to 25 s. Then the weights must be those of the undisturbed runs, bit for
bit, every entry of the ledger must hash to what was signed, and the stack must be healthy. It
prints one JSON line per campaign, and exits with 1 if one failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loomos.client.http import LoomOSClient
from loomos.jobs.states import JobState
from loomos.runtime import leave
from tests.stack import Stack, manifest, running_stack, tiny_job

DISK = "1g"
STEPS = 80
MEMBERS = ("temporal", "s3", "ledger", "gateway", "control", "node-1", "node-2", "serve-1")
PATIENCE_S = 600.0

Kind = Literal["kill", "stop", "full"]


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """One thing that is done to the stack."""

    kind: Kind
    """What."""
    victim: str
    """Member, `rank`, `supervisor`, `everything`, or `disk`."""
    after_s: float
    """Seconds after the one before."""
    lasts_s: float = 0.0
    """Seconds until it is over."""

    def __str__(self) -> str:
        lasting = f" {self.lasts_s:.0f}s" if self.lasts_s else ""
        return f"+{self.after_s:.1f}s {self.kind} {self.victim}{lasting}"


def plan(seed: int) -> list[Disturbance]:
    """The disturbances of a seed."""
    dice = random.Random(seed)
    chosen: list[Disturbance] = []
    for _ in range(dice.randint(3, 6)):
        kind: Kind = dice.choices(("kill", "stop", "full"), (4, 4, 2))[0]  # type: ignore[assignment]
        victims = {
            "kill": (*MEMBERS, "rank", "everything"),
            "stop": (*MEMBERS, "rank", "supervisor"),
            "full": ("disk",),
        }[kind]
        lasts_s = {"kill": 0.0, "stop": dice.uniform(3, 40), "full": dice.uniform(4, 25)}[kind]
        chosen.append(
            Disturbance(
                kind=kind,
                victim=dice.choice(victims),
                after_s=dice.uniform(0.5, 10),
                lasts_s=lasts_s,
            )
        )
    if all(d.kind == "kill" for d in chosen):
        chosen[-1] = Disturbance(kind="full", victim="disk", after_s=2, lasts_s=10)
    return chosen


def jobs(suffix: str) -> list[dict[str, Any]]:
    """A gang of two nodes, and a job of one."""
    made = []
    for name, nodes, rate in (("gang", 2, 2e-3), ("single", 1, 1e-3)):
        job = tiny_job(
            f"{name}-{suffix}",
            max_steps=STEPS,
            sequence_length=256,
            batch_size=16,
            learning_rate=rate,
        )
        job["spec"]["resources"]["nodes"] = nodes
        job["spec"]["runtime"]["checkpoint_steps"] = STEPS // 10
        made.append(job)
    return made


async def train(client: LoomOSClient, suffix: str) -> list[str]:
    """Submit both jobs; gives their ids."""
    ids = []
    for job in jobs(suffix):
        submitted = await client.submit_job_from_manifest(manifest(job))
        ids.append(submitted.job_id)
    return ids


async def weights(stack: Stack, client: LoomOSClient, ids: list[str]) -> list[str]:
    """Digests of what the jobs published.

    Raises:
        AssertionError: a job did not complete.
    """
    found = []
    for job_id in ids:
        ends = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)
        done = await stack.until(client, job_id, *ends, within_s=PATIENCE_S, every_s=0.5)
        assert done.state == JobState.COMPLETED, f"{job_id} {done.state}: {done.message}"
        assert done.published is not None
        found.append(done.published.weights_sha256)
    return found


async def disturb(stack: Stack, disk: Path, what: Disturbance) -> None:
    """Do it, and end it when its time is over."""
    if what.kind == "full":
        await fill(disk, what.lasts_s)
    elif what.kind == "stop":
        await pause(victim_pid(stack, what.victim), what.lasts_s)
    else:
        with contextlib.suppress(Exception):  # the victim may be away already
            stack.kill(what.victim)
        if what.victim == "everything":
            await asyncio.to_thread(up_again, stack)


def up_again(stack: Stack) -> None:
    """`loomos up`, also on a disk that is full just now."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            stack.up()
            return
        except (AssertionError, subprocess.TimeoutExpired):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def victim_pid(stack: Stack, victim: str) -> int | None:
    """The process to stop; None if it is not there."""
    with contextlib.suppress(Exception):
        if victim == "supervisor":
            return stack.state.supervisor_pid
        if victim == "rank":
            hosted = [p for node in ("node-1", "node-2") for p in stack.hosted(node)]
            return [p.pid for p in hosted if not p.children()][-1]
        return stack.pid(victim)
    return None


async def pause(pid: int | None, lasts_s: float) -> None:
    """Stop a process for a while, if it lives."""
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(lasts_s)
        os.kill(pid, signal.SIGCONT)


async def fill(disk: Path, lasts_s: float) -> None:
    """Let nothing be written for a while."""
    ballast = disk / f"ballast-{time.monotonic_ns()}"
    deadline = time.monotonic() + lasts_s
    piece = b"\0" * (1 << 20)
    try:
        with ballast.open("ab", buffering=0) as file:
            while time.monotonic() < deadline:
                try:
                    file.write(piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    await asyncio.sleep(0.05)
    finally:
        ballast.unlink()


@contextmanager
def own_disk() -> Iterator[Path]:
    """A small disk that can be filled without harm to others."""
    folder = Path(tempfile.mkdtemp(prefix="loomos-campaign-"))
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)]
    subprocess.run(mounted, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


async def undisturbed(stack: Stack, client: LoomOSClient, known: Path | None) -> list[str]:
    """Weights of runs that nobody touched; read from a file, if they are known there."""
    if known is not None and known.exists():
        return list(json.loads(known.read_text()))
    found = await weights(stack, client, await train(client, "undisturbed"))
    if known is not None:
        known.write_text(json.dumps(found))
    return found


async def campaign(seed: int, known: Path | None = None) -> dict[str, Any]:
    """One campaign; says how it went.

    Args:
        seed: chooses the disturbances.
        known: file with the undisturbed weights of this machine and code, or for them.
    """
    began = time.monotonic()
    planned = plan(seed)
    result: dict[str, Any] = {"seed": seed, "disturbances": [str(d) for d in planned]}
    with own_disk() as disk, running_stack(disk / ".loomos") as stack:
        async with stack.client() as client:
            expected = await undisturbed(stack, client, known)
            ids = await train(client, "disturbed")
            running = []
            for what in planned:
                await asyncio.sleep(what.after_s)
                running.append(asyncio.create_task(disturb(stack, disk, what)))
            await asyncio.gather(*running)
            found = await weights(stack, client, ids)
            result["identical"] = found == expected
            result["alive"] = await is_alive(stack)
            audit = stack.loomos("ledger", "audit", check=False)
            result["ledger"] = audit.returncode == 0
            if audit.returncode:
                result["audit"] = (audit.stdout + audit.stderr)[-500:]
            state = stack.state
            result["restarts"] = {m.name: m.restarts for m in state.members if m.restarts}
            for job_id in ids:
                detail = await client.get_job_status(job_id)
                result.setdefault("attempts", []).append(len(detail.attempts))
    result["seconds"] = round(time.monotonic() - began)
    result["passed"] = result["identical"] and result["alive"] and result["ledger"]
    return result


async def is_alive(stack: Stack) -> bool:
    """Whether every member is healthy in the end."""

    async def status() -> int:
        return (await asyncio.to_thread(stack.loomos, "status", check=False)).returncode

    try:
        return await stack.eventually(status, lambda code: code == 0, within_s=180) == 0
    except AssertionError:
        return False


def main() -> int:
    """Run the campaigns of the seeds on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kill_campaign", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--seed", type=int, action="append", help="may be given again; default 1")
    parser.add_argument("--known", type=Path, help="file for the undisturbed weights")
    arguments = parser.parse_args()
    failed = 0
    for seed in arguments.seed or [1]:
        try:
            result = asyncio.run(campaign(seed, arguments.known))
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            planned = [str(d) for d in plan(seed)]
            failure = f"{type(error).__name__}: {error}"[:1500]
            result = {"seed": seed, "disturbances": planned, "passed": False, "failure": failure}
        failed += not result["passed"]
        print(json.dumps(result), flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.stdout.flush()
    leave(main())
