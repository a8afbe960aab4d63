"""What a rank makes before its first step: model, optimizer, data, the length of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from loomos.errors import NotFound
from loomos.jobs.training import ResolvedInputs, TrainAssignment
from loomos.manifest import Data, FineTuning
from loomos.settings import StorageSettings
from loomos.storage import Store
from loomos.storage.layout import plan_key, tokenizer_key
from loomos.training.data import (
    Batch,
    DocumentStream,
    Encode,
    PackedLanes,
    Split,
    count_tokens,
)
from loomos.training.fitting import try_out
from loomos.training.inputs import InputCache, load_tokenizer, model_source, train_tokenizer
from loomos.training.model import add_adapters, build_model, parallelize
from loomos.training.report import Reporter


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """What a rank needs besides its assignment."""

    storage: StorageSettings
    """How to reach the store."""
    scratch: Path
    """Folder for this machine's temporary files."""
    reporter: Reporter
    """Where events go."""
    should_stop: Callable[[], bool]
    """Whether this rank was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """One rank's place in its gang: what a learner is made from."""

    job: TrainAssignment
    context: RankContext
    store: Store
    device: torch.device
    control: Any
    """A gloo group for control messages."""
    patient: Any
    """Likewise, for waiting on a rank that prepares something for hours."""

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return dist.get_rank()

    @property
    def world(self) -> int:
        """Ranks of the gang."""
        return dist.get_world_size()


class Setup(NamedTuple):
    """Everything that a run computes from its inputs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    training: PackedLanes
    validation: list[Batch]
    evaluates: bool
    total_steps: int


def set_up(place: Workplace) -> Setup:
    """Load inputs, build the model and position the data at its beginning."""
    job, context, store = place.job, place.context, place.store
    spec = job.spec
    assert spec.model is not None and spec.data is not None
    wanted, tuning = spec.model, spec.model.fine_tuning_config
    cache = InputCache(store, context.storage, context.scratch / "inputs")
    stream = document_stream(spec.data, job.inputs, cache, tuning.seed, held_out=False)
    tokenizer_json = None
    if spec.model.tokenizer.startswith("bpe:"):
        tokenizer_json = _agree_once(
            store,
            tokenizer_key(job.job_id),
            lambda: train_tokenizer(wanted, stream),
            place,
        )
    tokenizer = load_tokenizer(spec.model, job.inputs, cache, tokenizer_json)
    model, optimizer = trained_model(job, cache, tokenizer, place.device)
    encode = Encode(tokenizer)
    rank, world = place.rank, place.world
    training = PackedLanes(
        stream,
        encode,
        lanes=range(rank, tuning.batch_size, world),
        stride=tuning.batch_size,
        sequence_length=tuning.sequence_length,
    )
    steps = _steps(place, tuning, stream, encode)
    return Setup(
        model,
        optimizer,
        training,
        _validation_batches(job, cache, encode, tuning, world, rank),
        spec.data.validation_dataset is not None or spec.data.validation_split > 0,
        steps,
    )


def trained_model(
    job: TrainAssignment, cache: InputCache, tokenizer: Any, device: torch.device
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model with its adapters, wrapped for the strategy, and its optimizer."""
    spec = job.spec
    assert spec.model is not None
    tuning = spec.model.fine_tuning_config
    quantize = tuning.method == "qlora"
    source = model_source(spec.model, job.inputs, cache)
    base = build_model(spec.model, source, tokenizer, quantize=quantize)
    model = add_adapters(base, tuning, quantized=quantize)
    if not quantize:
        model = model.to(device)
    model.train()
    try_out(model, spec.model, device)
    model = parallelize(model, spec, device)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=tuning.learning_rate,
        betas=(tuning.betas[0], tuning.betas[1]),
        weight_decay=tuning.weight_decay,
    )
    return model, optimizer


def document_stream(
    data: Data, inputs: ResolvedInputs, cache: InputCache, seed: int, *, held_out: bool
) -> DocumentStream:
    """The stream of training documents, or of those held out for validation."""
    separate = held_out and inputs.validation is not None
    reference = inputs.validation if separate and inputs.validation else inputs.training
    split = Split(share=data.validation_split, held_out=held_out, seed=seed)
    if separate or data.validation_dataset is not None:
        split = Split()
    return DocumentStream(
        cache.dataset(reference),
        cache.data_file,
        data_format=data.format,
        text_field=data.text_field,
        split=split,
        seed=seed,
    )


def _agree_once(store: Store, key: str, make: Callable[[], str], place: Workplace) -> str:
    """A text that the first attempt's rank 0 computes and all later ones read.

    It may take hours; the others wait.
    """
    found: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            found[0] = store.get(key).decode()
        except NotFound:
            text = make()
            store.put_if_absent(key, text.encode())
            found[0] = store.get(key).decode()
    dist.broadcast_object_list(found, src=0, group=place.patient)
    assert found[0] is not None
    return found[0]


def _steps(place: Workplace, tuning: FineTuning, stream: DocumentStream, encode: Encode) -> int:
    """The length of the run; the first attempt counts an epoch's tokens, a share on each rank."""
    if tuning.num_epochs is None:
        assert tuning.max_steps is not None
        return tuning.max_steps
    key = plan_key(place.job.job_id)
    is_counted = _agree(place, lambda: place.store.exists(key))
    tokens = 0
    if not is_counted:
        share = range(place.rank, stream.documents_per_epoch, place.world)
        tokens = _sum(place, count_tokens(stream, encode, share))

    def plan() -> str:
        assert tuning.num_epochs is not None
        per_step = tuning.batch_size * tuning.sequence_length
        steps = max(1, -(-tokens * tuning.num_epochs // per_step))
        return str(min(steps, tuning.max_steps or steps))

    return int(_agree_once(place.store, key, plan, place))


def _agree(place: Workplace, ask: Callable[[], bool]) -> bool:
    """What rank 0 finds, on all ranks."""
    return _sum(place, int(place.rank == 0 and ask())) > 0


def _sum(place: Workplace, number: int) -> int:
    """A sum over the ranks; whoever is done first waits for the others."""
    total = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(total, group=place.patient)
    return int(total)


def _validation_batches(
    job: TrainAssignment,
    cache: InputCache,
    encode: Encode,
    tuning: FineTuning,
    world: int,
    rank: int,
) -> list[Batch]:
    """This rank's share of the fixed validation sequences, in micro-batches."""
    data = job.spec.data
    assert data is not None
    if data.validation_dataset is None and data.validation_split == 0:
        return []
    stream = document_stream(data, job.inputs, cache, tuning.seed, held_out=True)
    lanes = PackedLanes(
        stream,
        encode,
        lanes=range(rank, tuning.evaluate_sequences, world),
        stride=tuning.evaluate_sequences,
        sequence_length=tuning.sequence_length,
    )
    if not lanes.lanes:
        return []
    whole = lanes.next_batch()
    size = tuning.micro_batch_size or max(1, tuning.batch_size // world)
    return [
        Batch(whole.tokens[i : i + size], whole.labels[i : i + size])
        for i in range(0, len(whole.tokens), size)
    ]
