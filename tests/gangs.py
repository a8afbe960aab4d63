"""Real gangs of real ranks, without Temporal: forked from a rank host, on a local store."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from activities.attempt_reports import AttemptReports
from activities.rank_host import HostedProcess, RankHost
from loomos.jobs.cluster import NodeInfo
from loomos.jobs.training import (
    AttemptPlan,
    CheckpointRef,
    ResolvedInputs,
    TrainAssignment,
    TrainOutcome,
)
from loomos.manifest import TrainingSpec
from loomos.settings import StorageSettings
from loomos.storage import open_store
from loomos.training.fences import open_generation
from loomos.training.requests import RankRequest
from loomos.training.resolve import resolve
from tests.stack import tiny_job


def tiny_spec(**changes: Any) -> TrainingSpec:
    """A tiny training; `tuning`, `data`, `runtime` and others are merged into the manifest's."""
    spec = tiny_job("tiny")["spec"]
    spec["model"]["fine_tuning_config"] |= changes.pop("tuning", {})
    for name, value in changes.items():
        spec[name] = {**spec.get(name, {}), **value} if isinstance(value, dict) else value
    return TrainingSpec.model_validate(spec)


@dataclass
class Attempt:
    """What came of one gang."""

    plan: AttemptPlan
    reports: list[AttemptReports]
    codes: list[int]

    @property
    def outcome(self) -> TrainOutcome:
        outcome = self.reports[0].outcome
        assert outcome is not None, [r.failures for r in self.reports]
        return outcome

    @property
    def failures(self) -> list[dict[str, Any]]:
        return [failure for r in self.reports for failure in r.failures]


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@dataclass
class Lab:
    """One job on one local store."""

    root: Path
    host: RankHost
    spec: TrainingSpec
    job_id: str = field(default_factory=lambda: f"job-{uuid.uuid4().hex[:6]}")

    def __post_init__(self) -> None:
        self.storage = StorageSettings(url=f"file://{self.root}/store")
        self.store = open_store(self.storage)
        self.inputs: ResolvedInputs = resolve(self.spec, self.storage, lambda _: None)
        self._folders = itertools.count()

    async def run(
        self,
        nodes: int = 1,
        ranks: int = 2,
        *,
        at_step: int | None = None,
        then: Callable[[HostedProcess], None] = HostedProcess.kill,
        spec: TrainingSpec | None = None,
    ) -> Attempt:
        """Run one generation; when the first rank reports `at_step`, do `then` to every node."""
        plan = open_generation(self.store, self.job_id, uuid.uuid4().hex, from_scratch=False)
        members = [
            NodeInfo(
                node_id=f"node-{n}",
                incarnation="test",
                address="127.0.0.1",
                max_ranks=ranks,
                cpu_count=2,
                memory_bytes=2**30,
                storage_bytes=2**30,
            )
            for n in range(nodes)
        ]
        reports: list[AttemptReports] = []
        processes: list[HostedProcess] = []
        async with AsyncExitStack() as stack:
            for rank in range(nodes):
                job = TrainAssignment(
                    job_id=self.job_id,
                    generation=plan.generation,
                    lease_epoch=1,
                    node_rank=rank,
                    nodes=members,
                    ranks_per_node=ranks,
                    spec=spec or self.spec,
                    inputs=self.inputs,
                )
                folder = self.root / f"{self.job_id}-attempt-{next(self._folders)}"
                folder.mkdir()
                report = AttemptReports(job, self.store, folder)
                RankRequest(
                    assignment=job,
                    storage=self.storage,
                    scratch=self.root / f"scratch-{rank}",
                    pipe=report.pipe,
                ).write(folder / "request.json")
                follow = asyncio.create_task(report.follow())
                stack.push_async_callback(_ended, follow)
                reports.append(report)
                processes.append(await self.host.run("train", folder / "request.json", folder))
            if at_step is not None:
                reached = asyncio.Event()

                def note(kind: str) -> None:
                    if kind == "step" and reports[0].progress.step >= at_step:
                        reached.set()

                reports[0].listen(note)
                async with asyncio.timeout(60):
                    await reached.wait()
                for process in processes:
                    then(process)
            async with asyncio.timeout(120):
                codes = [await asyncio.shield(p.exit_code) for p in processes]
        for report in reports:
            report.finish()
        return Attempt(plan, reports, codes)

    def weights(self, ref: CheckpointRef | None) -> str:
        """Digest of the trained tensors of a checkpoint."""
        from loomos.training.shards import read_tensors

        assert ref is not None
        scratch = self.root / f"read-{uuid.uuid4().hex[:6]}"
        tensors = read_tensors(self.store, self.job_id, ref, scratch)
        digest = hashlib.sha256()
        for name in sorted(tensors):
            if name.startswith(("model.", "optimizer.", "rank.")):
                digest.update(name.encode())
                digest.update(tensors[name].numpy().tobytes())
        return digest.hexdigest()

    def losses(self) -> dict[int, dict[int, float]]:
        """Loss by generation and step."""
        from loomos.storage.chunks import read_chunks
        from loomos.storage.layout import metrics_prefix

        found: dict[int, dict[int, float]] = {}
        for chunk in read_chunks(self.store, metrics_prefix(self.job_id)):
            for record in chunk.records:
                if record["kind"] == "step":
                    found.setdefault(record["generation"], {})[record["step"]] = record["loss"]
        return found

    def committed(self) -> list[tuple[int, int]]:
        """(generation, step) of every checkpoint that exists."""
        from loomos.storage.layout import checkpoints_prefix, parse_checkpoint_manifest

        keys = (item.key for item in self.store.objects(checkpoints_prefix(self.job_id)))
        return sorted(ref for ref in map(parse_checkpoint_manifest, keys) if ref)


async def resumes_to_the_same_bits(
    undisturbed: Lab, disturbed: Lab, nodes: int = 1, ranks: int = 1
) -> None:
    """Kill all ranks of a run of 30 steps that checkpoints every 10; it ends as if nothing was."""
    whole = await undisturbed.run(nodes, ranks)
    killed = await disturbed.run(nodes, ranks, at_step=17)
    resumed = await disturbed.run(nodes, ranks)

    assert killed.codes == [-9] * nodes
    assert resumed.outcome.resumed_from == CheckpointRef(generation=1, step=10)
    assert resumed.outcome.step == whole.outcome.step == 30
    assert disturbed.weights(resumed.outcome.checkpoint) == undisturbed.weights(
        whole.outcome.checkpoint
    )
    assert resumed.outcome.loss == whole.outcome.loss
    assert resumed.outcome.validation_loss == whole.outcome.validation_loss
    assert resumed.outcome.episode_return == whole.outcome.episode_return
