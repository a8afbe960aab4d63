"""No-op trials a second, beside a bare workflow that fans out no-op activities.

Both on the same Temporal server, as many slots, as many in flight; rounds alternate. A trial goes
through a process that calls its function; a bare activity does nothing. Goal: >= 0.6 of bare.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from benchmarks.raw_temporal import QUEUE, FanOut
from loomos.client.http import LoomOSClient
from loomos.client.temporal import connect
from loomos.manifest import Experiment
from loomos.settings import TemporalSettings
from tests.stack import running_stack

NEEDS_STACK = False
TRIALS = 600
IN_FLIGHT = 32
NODES = 2
SLOTS = 4
"""Of each node."""
ROUNDS = 3


def document(name: str) -> Experiment:
    """A sweep of no-op trials."""
    return Experiment.model_validate(
        {
            "apiVersion": "loomos.ai/v1",
            "kind": "Experiment",
            "metadata": {"name": "noop"},
            "spec": {
                "objective": {"function": "loomos.weaver.functions:noop"},
                "parameters": {"x": {"type": "uniform", "min": 0, "max": 1}},
                "sampler": name,
                "trials": TRIALS,
                "parallelism": IN_FLIGHT,
            },
        }
    )


async def sweep(client: LoomOSClient, name: str) -> float:
    """Trials a second of one experiment, from its start to its end by its own clock."""
    started = await client.experiments.start(document(name))
    while True:
        found = await client.experiments.get(started.experiment_id)
        if found.state.is_final:
            break
        await asyncio.sleep(0.5)
    assert found.counts == {"completed": TRIALS}, found
    assert found.finished_at is not None
    return TRIALS / (found.finished_at - found.started_at).total_seconds()


async def measure(stack: None) -> dict[str, Any]:
    """Alternate bare, random and TPE."""
    os.environ["LOOMOS_NODE__POOL_SLOTS"] = str(SLOTS)
    rates: dict[str, list[float]] = {"bare": [], "random": [], "tpe": []}
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder), NODES) as own:
        temporal = await connect(TemporalSettings.model_validate(own.state.settings["temporal"]))
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.raw_temporal",
            env={**own.environment, "RAW_SLOTS": str(NODES * SLOTS)},
        )

        async def bare() -> float:
            began = time.monotonic()
            await temporal.execute_workflow(
                FanOut.run, [TRIALS, IN_FLIGHT], id=f"fan-{uuid.uuid4()}", task_queue=QUEUE
            )
            return TRIALS / (time.monotonic() - began)

        async with own.client() as client:
            await bare()
            await sweep(client, "random")
            for _ in range(ROUNDS):
                rates["bare"].append(await bare())
                for name in ("random", "tpe"):
                    rates[name].append(await sweep(client, name))
        worker.terminate()
        await worker.wait()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        **{f"{name}_per_s": round(value, 1) for name, value in medians.items()},
        "tpe_of_bare": round(medians["tpe"] / medians["bare"], 2),
        "ratio": round(medians["random"] / medians["bare"], 2),
    }
