"""What checkpoints cost training: a run that checkpoints every 20 steps over one that does not.

Both on the stack, with S3. `blocked` is the time in which the loop itself waits for a checkpoint
(copying tensors aside); `total` also holds what the background work takes from the same cores.
Goal: total <= 5 % of the step time.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.throughput import job, loomos_steps
from loomos.jobs.states import JobState
from tests.stack import Stack, manifest

STEPS = 130
EVERY = 20
ROUNDS = 2


async def measure(stack: Stack) -> dict[str, Any]:
    """Alternate runs with and without checkpoints; compare mean step times."""
    plain: list[float] = []
    saving: list[float] = []
    blocked: list[float] = []
    for number in range(ROUNDS):
        plain += await loomos_steps(stack, job(f"plain-{number}", STEPS))
        async with stack.client() as client:
            document = job(f"saving-{number}", STEPS, checkpoint_steps=EVERY)
            submitted = await client.submit_job_from_manifest(manifest(document))
            await stack.until(client, submitted.job_id, JobState.COMPLETED, within_s=600, every_s=5)
            records = (await client.get_job_metrics(submitted.job_id)).records
        steps = [r for r in records if r["kind"] == "step"]
        saving += [r["step_s"] for r in steps[10:]]
        blocked.append(steps[-1]["checkpoint_blocked_s"] / (STEPS // EVERY))
    # The step clock stops before the copy, so the copy is added to the mean.
    blocked_s = statistics.mean(blocked)
    base, with_saves = statistics.mean(plain), statistics.mean(saving) + blocked_s / EVERY
    return {
        "step_ms": round(base * 1000, 1),
        "step_with_checkpoints_ms": round(with_saves * 1000, 1),
        "blocked_ms_per_checkpoint": round(blocked_s * 1000, 1),
        "blocked_share": round(blocked_s / (EVERY * base), 4),
        "total_share": round(with_saves / base - 1, 4),
        "goal": "<= 0.05",
    }
