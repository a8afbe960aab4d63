"""Supervised fine-tuning of a causal language model: next-token prediction on packed documents.

What must survive a crash is the model's trained tensors, the optimizer's, the random state and the
lanes' positions; the rest is a pure function of the step.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from loomos.errors import LossDiverged
from loomos.manifest import FineTuning
from loomos.training.data import IGNORED, Batch
from loomos.training.learner import Learner
from loomos.training.model import without_gradient_sync
from loomos.training.model_state import (
    load_model_state,
    load_random_state,
    model_state,
    random_state,
)
from loomos.training.schedule import learning_rate
from loomos.training.setup import Workplace, set_up
from loomos.training.shards import CheckpointManifest, TensorDict

CUDA_LOG_STEPS = 10
"""On a GPU reading the loss waits for the device, so it is read every so many steps."""


class FineTuner(Learner):
    """Cross-entropy, a mean over all ranks' labels of a step."""

    def __init__(self, place: Workplace) -> None:
        spec = place.job.spec
        assert spec.model is not None and spec.data is not None
        self._tuning: FineTuning = spec.model.fine_tuning_config
        self._device, self._control, self._world = place.device, place.control, place.world
        setup = set_up(place)
        self._model, self._optimizer = setup.model, setup.optimizer
        self._training, self._validation = setup.training, setup.validation
        self.evaluates = setup.evaluates
        self.total_steps = setup.total_steps
        self.evaluate_every = self._tuning.evaluate_every or max(1, self.total_steps // 10)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._positions: TensorDict = {}
        self._gradient_norm: Any = None
        self._rate = 0.0
        self._labels = 0

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown()

    # --- state ---

    def prepare(self) -> str:
        """Seed the dropout, and fix what DDP would fix after the first step."""
        torch.manual_seed(self._tuning.seed * 1_000_003 + dist.get_rank())
        if self._world > 2 or self._device.type == "cuda":
            self._settle_buckets()
        trained = sum(parameter.numel() for parameter in self._trained)
        return f"{trained} trained parameters on {self._device}"

    def _settle_buckets(self) -> None:
        """Let DDP fix its gradient buckets before the first real step.

        DDP rebuilds its buckets after the first backward pass, and the order of summation over
        more than two ranks depends on them; a resumed run must sum as the first one did.
        """
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            tokens = torch.zeros(1, 8, dtype=torch.int64, device=self._device)
            for _ in range(2):
                self._model(input_ids=tokens).logits.float().sum().mul(0.0).backward()
                self._optimizer.zero_grad(set_to_none=True)

    def tensors(self, *, with_random: bool = True) -> TensorDict:
        """Trained weights, optimizer, lanes; and this rank's random state."""
        state = model_state(self._model, self._optimizer)
        state.update(self._positions or self._lanes())
        if with_random:
            state.update(random_state(self._device))
        return state

    def _lanes(self) -> TensorDict:
        return {
            f"lane.{lane}": torch.tensor(position, dtype=torch.int64)
            for lane, position in self._training.positions().items()
        }

    def restore(self, manifest: CheckpointManifest, state: TensorDict) -> None:
        """See base class. With other ranks than before, their random states begin anew."""
        load_model_state(self._model, self._optimizer, state)
        lanes = {
            int(key.removeprefix("lane.")): (int(value[0]), int(value[1]))
            for key, value in state.items()
            if key.startswith("lane.")
        }
        self._training.seek(lanes)
        if not load_random_state(state):
            seed = self._tuning.seed * 1_000_003 + manifest.step * 1009
            torch.manual_seed(seed + dist.get_rank())

    # --- steps ---

    def begin(self) -> list[float]:
        """Read the first batch; its labels."""
        self._batch, self._following_positions = self._read_batch()
        return [0.0, float(self._batch.label_count)]

    def _read_batch(self) -> tuple[Batch, TensorDict]:
        """The next batch, and the lanes' positions after it (as checkpoints keep them)."""
        return self._training.next_batch(), self._lanes()

    def step(self, step: int, totals: list[float]) -> list[float]:
        """Optimize over one batch while the next is read; (its loss, the next one's labels)."""
        self._labels = max(1, int(totals[1]))
        upcoming = self._reader.submit(self._read_batch)
        self._rate = learning_rate(self._tuning, step, self.total_steps)
        loss_sum = self._optimize(self._batch, self._labels, self._rate)
        self._positions = self._following_positions
        self._batch, self._following_positions = upcoming.result()
        loss = float(loss_sum) / self._labels if self._reads_loss(step + 1) else 0.0
        return [loss, float(self._batch.label_count)]

    def _reads_loss(self, step: int) -> bool:
        return self._device.type == "cpu" or step % CUDA_LOG_STEPS == 0 or step == self.total_steps

    def measure(self, step: int, totals: list[float]) -> dict[str, float | int | None] | None:
        """See base class."""
        if not self._reads_loss(step):
            return None
        loss, norm = totals[0], self._gradient_norm
        if not math.isfinite(loss):
            raise LossDiverged(
                f"the loss is {loss} at step {step}; lower "
                f"model.fine_tuning_config.learning_rate or check the data"
            )
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        return {
            "loss": loss,
            "learning_rate": self._rate,
            "gradient_norm": None if norm is None else float(norm),
            "labels": self._labels,
            "tokens": self._tuning.batch_size * self._tuning.sequence_length,
        }

    def _optimize(self, batch: Batch, labels: int, rate: float) -> torch.Tensor:
        """One optimizer step over `labels` labels of all ranks; returns the summed loss."""
        optimizer, model = self._optimizer, self._model
        size = self._tuning.micro_batch_size or len(batch.tokens)
        loss_sum = torch.zeros((), device=self._device)
        for start in range(0, len(batch.tokens), size):
            is_last = start + size >= len(batch.tokens)
            with without_gradient_sync(model, is_last=is_last):
                part = self._loss_of(
                    Batch(batch.tokens[start : start + size], batch.labels[start : start + size])
                )
                # DDP and FSDP average over ranks; the loss is a mean over all ranks' labels.
                torch.autograd.backward(part * (self._world / labels))
            loss_sum += part.detach()
        if self._tuning.max_grad_norm is not None:
            self._gradient_norm = nn.utils.clip_grad_norm_(
                self._trained, self._tuning.max_grad_norm
            )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss_sum

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of next-token prediction, summed over labels that count."""
        tokens = torch.from_numpy(batch.tokens).to(self._device, non_blocking=True)
        labels = torch.from_numpy(batch.labels).to(self._device, non_blocking=True)
        mixed = self._tuning.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=mixed):
            logits = self._model(input_ids=tokens, use_cache=False).logits
        # logits [B, T, V] at position t predict label t+1
        return F.cross_entropy(
            logits[:, :-1].float().flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def evaluate(self) -> float:
        """Mean loss over the fixed validation sequences of all ranks."""
        self._model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in self._validation:
                sums[0] += float(self._loss_of(batch))
                sums[1] += batch.label_count
        self._model.train()
        dist.all_reduce(sums, group=self._control)
        return float(sums[0] / sums[1].clamp(min=1))
