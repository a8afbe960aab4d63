"""Training throughput through LoomOS over the same rank script under bare `torchrun`.

Two ranks each time, the same model, data and steps, no checkpoint but the last; runs alternate.
The figure is the median time of an optimizer step, which excludes start-up. Goal: ratio >= 0.98.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from loomos.jobs.cluster import NodeInfo
from loomos.jobs.states import JobState
from loomos.jobs.training import TrainAssignment
from loomos.manifest import TrainingSpec
from loomos.settings import StorageSettings
from loomos.storage import open_store
from loomos.training.fences import open_generation
from loomos.training.requests import RankRequest
from loomos.training.resolve import resolve
from tests.stack import Stack, manifest, tiny_job

STEPS = 100
ROUNDS = 3


def job(name: str, steps: int = STEPS, **runtime: Any) -> dict[str, Any]:
    """A model of 0.8 M parameters; a step is about a third of a second on two cores."""
    document = tiny_job(
        name, max_steps=steps, batch_size=16, sequence_length=256, learning_rate=1e-3
    )
    document["spec"]["model"]["config"] = {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    document["spec"]["runtime"] = {"checkpoint_interval": "24h", **runtime}
    return document


async def loomos_steps(stack: Stack, document: dict[str, Any]) -> list[float]:
    """Step times of a job on the stack, the first ten left out."""
    async with stack.client() as client:
        submitted = await client.submit_job_from_manifest(manifest(document))
        await stack.until(client, submitted.job_id, JobState.COMPLETED, within_s=600, every_s=5)
        records = (await client.get_job_metrics(submitted.job_id)).records
    return [r["step_s"] for r in records if r["kind"] == "step"][10:]


async def torchrun_steps(document: dict[str, Any]) -> list[float]:
    """Step times of the same rank script under `torchrun`, with a folder for a store."""
    spec = TrainingSpec.model_validate(document["spec"])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        storage = StorageSettings(url=f"file://{root}/store")
        job_id = f"bare-{uuid.uuid4().hex[:6]}"
        inputs = await asyncio.to_thread(resolve, spec, storage, lambda _: None)
        plan = open_generation(open_store(storage), job_id, "bare", from_scratch=False)
        node = NodeInfo(
            node_id="bare",
            incarnation="0",
            address="127.0.0.1",
            max_ranks=2,
            cpu_count=2,
            memory_bytes=1,
            storage_bytes=1,
        )
        reports = root / "reports"
        reports.touch()
        RankRequest(
            assignment=TrainAssignment(
                job_id=job_id,
                generation=plan.generation,
                lease_epoch=0,
                node_rank=0,
                nodes=[node],
                ranks_per_node=2,
                spec=spec,
                inputs=inputs,
            ),
            storage=storage,
            scratch=root / "scratch",
            pipe=reports,
        ).write(root / "request.json")
        command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            "loomos.training.rank",
            str(root / "request.json"),
            env={**_environment(), "OMP_NUM_THREADS": "1"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0
        lines = [json.loads(line) for line in reports.read_text().splitlines()]
    return [line["step_s"] for line in lines if line["kind"] == "step"][10:]


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


async def measure(stack: Stack) -> dict[str, Any]:
    """Alternate, and compare medians over all rounds."""
    ours: list[float] = []
    bare: list[float] = []
    for number in range(ROUNDS):
        bare += await torchrun_steps(job("bare"))
        ours += await loomos_steps(stack, job(f"ours-{number}"))
    median_bare, median_ours = statistics.median(bare), statistics.median(ours)
    tokens = 16 * 256
    return {
        "torchrun_tokens_per_s": round(tokens / median_bare),
        "loomos_tokens_per_s": round(tokens / median_ours),
        "ratio": round(median_bare / median_ours, 4),
        "goal": ">= 0.98",
    }
