"""One rank in the test's own process, without gangs, hosts or Temporal: quick, for tiny models."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loomos.jobs.cluster import NodeInfo
from loomos.jobs.training import ModelVersion, PublishRequest, TrainAssignment, TrainOutcome
from loomos.manifest import TrainingSpec
from loomos.registry import Registry
from loomos.settings import StorageSettings
from loomos.storage import Store, open_store
from loomos.training.export import fill, publish
from loomos.training.fences import open_generation
from loomos.training.loop import train
from loomos.training.model import add_adapters, build_model
from loomos.training.report import Reporter
from loomos.training.requests import ExportRequest
from loomos.training.resolve import resolve
from loomos.training.setup import RankContext
from loomos.training.shards import read_tensors
from loomos.training.tokenizer import byte_tokenizer


class Alone:
    """One rank in this process, on a store in a folder."""

    def __init__(self, root: Path, spec: TrainingSpec) -> None:
        self.root, self.spec = root, spec
        self.storage = StorageSettings(url=f"file://{root}/store")
        self.store: Store = open_store(self.storage)
        self.inputs = resolve(spec, self.storage, lambda _: None)
        self.outcome: TrainOutcome | None = None

    def train(self, pipe: Path | None = None) -> TrainOutcome:
        """Train to the end; with a pipe, report there."""
        plan = open_generation(self.store, "job-1", uuid.uuid4().hex, from_scratch=False)
        here = NodeInfo(
            node_id="n",
            incarnation="test",
            address="127.0.0.1",
            max_ranks=1,
            cpu_count=1,
            memory_bytes=2**30,
            storage_bytes=2**30,
        )
        assignment = TrainAssignment(
            job_id="job-1",
            generation=plan.generation,
            lease_epoch=1,
            node_rank=0,
            nodes=[here],
            ranks_per_node=1,
            spec=self.spec,
            inputs=self.inputs,
        )
        context = RankContext(
            storage=self.storage,
            scratch=self.root / "scratch",
            reporter=Reporter(pipe, 0),
            should_stop=lambda: False,
        )
        self.outcome = train(assignment, context)
        return self.outcome

    def publish(self) -> ModelVersion:
        outcome = self.outcome
        assert outcome is not None and outcome.checkpoint is not None
        request = PublishRequest(
            job_id="job-1",
            name="made",
            generation=outcome.checkpoint.generation,
            step=outcome.checkpoint.step,
            spec=self.spec,
            inputs=self.inputs,
            outcome=outcome,
        )
        version = publish(
            ExportRequest(
                storage=self.storage,
                scratch=self.root / "scratch",
                result=self.root / "result.json",
                publish=request,
            )
        )
        # The control worker does this, once it has signed the version.
        registry = Registry(self.store)
        registry.commit(version.key_prefix, registry.unsigned(version.key_prefix))
        return version

    def download(self, version: ModelVersion) -> Path:
        folder = self.root / "downloaded"
        for file in Registry(self.store).manifest(f"made@{version.version}").files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            self.store.get_file(version.key_prefix + file, folder / file)
        return folder

    def trained(self) -> Any:
        """The model with its adapters beside the weights, from the checkpoint."""
        assert self.spec.model is not None and self.outcome is not None
        ref = self.outcome.checkpoint
        assert ref is not None
        base = build_model(self.spec.model, None, byte_tokenizer())
        model = add_adapters(base, self.spec.model.fine_tuning_config)
        tensors = read_tensors(self.store, "job-1", ref, self.root / "read")
        weights = {k: v for k, v in tensors.items() if k.startswith("model.")}
        fill(model, {k.removeprefix("model."): v for k, v in weights.items()}, ref.step)
        return model.eval()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A gang of one."""
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
