"""The training loop of one rank, top to bottom.

`train` sets up (inputs, model, data), resumes, and takes optimizer steps until the run is done or
asked to stop. All decisions (stop, checkpoint, early stop) are made by all ranks together: each
step ends with one small all-reduce on a CPU group that carries the loss and the wishes of each
rank. What must survive a crash is the model's trained tensors, the optimizer's, the random state
and the lanes' positions; the rest is a pure function of the step.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as dcp_state
import torch.nn.functional as F
from torch import nn

from loomos.errors import InvalidInput, LossDiverged
from loomos.jobs.training import CheckpointRef, TrainAssignment, TrainOutcome
from loomos.manifest import FineTuning, Runtime
from loomos.storage import open_store
from loomos.training.checkpoint import Checkpointer
from loomos.training.data import IGNORED, Batch
from loomos.training.fences import read_fence
from loomos.training.model import without_gradient_sync
from loomos.training.schedule import learning_rate
from loomos.training.setup import RankContext, Setup, set_up
from loomos.training.shards import CheckpointManifest, TensorDict
from loomos.weaver.pruning import Judge

log = logging.getLogger(__name__)

GANG_TIMEOUT = timedelta(minutes=5)
"""A collective that takes longer means that a peer hangs."""

LOGGED_STEPS = 20
"""Lines about progress in the log of a whole run."""

CUDA_LOG_STEPS = 10
"""On a GPU reading the loss waits for the device, so it is read every so many steps."""


def train(job: TrainAssignment, context: RankContext) -> TrainOutcome:
    """Train until done or stopped. Every rank of the gang calls this.

    Raises:
        LoomOSError: see `loomos.errors.TrainingError`.
    """
    assert job.spec.model is not None and job.spec.data is not None
    tuning = job.spec.model.fine_tuning_config
    with gang(job) as control:
        device = _device()
        store = open_store(context.storage)
        setup = set_up(job, context, store, device, control)
        checkpoints = Checkpointer(
            store=store,
            job_id=job.job_id,
            generation=job.generation,
            scratch=context.scratch / "checkpoints" / job.job_id,
            keep=job.spec.runtime.keep_checkpoints,
            on_commit=context.reporter.committed,
            on_corrupt=context.reporter.corrupt,
            group=dist.new_group(backend="gloo", timeout=GANG_TIMEOUT),
        )
        run = Run(job, setup, checkpoints, context, control, device)
        run.resume(read_fence(store, job.job_id, job.generation).accepted)
        if tuning.max_steps is not None and run.step > tuning.max_steps:
            raise InvalidInput(f"checkpoint of step {run.step} is past max_steps")
        outcome = run.until_done()
        checkpoints.wait()
        return outcome


@contextmanager
def gang(job: TrainAssignment) -> Iterator[Any]:
    """Join the process group; gives a gloo group for control messages."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    threads = 1
    if job.spec.resources.cpu:
        threads = max(1, job.spec.resources.cpu // job.spec.resources.ranks)
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=GANG_TIMEOUT)
    try:
        yield dist.new_group(backend="gloo", timeout=GANG_TIMEOUT)
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


class _Agreed(NamedTuple):
    """What all ranks know after a step."""

    loss: float
    stop: bool
    checkpoint: bool
    next_labels: int


class Run:
    """The state of a run on one rank, and its steps."""

    def __init__(
        self,
        job: TrainAssignment,
        setup: Setup,
        checkpoints: Checkpointer,
        context: RankContext,
        control: Any,
        device: torch.device,
    ) -> None:
        assert job.spec.model is not None
        self.step = 0
        self._tuning: FineTuning = job.spec.model.fine_tuning_config
        self._runtime: Runtime = job.spec.runtime
        self._most_reports = job.most_reports
        self._judge = Judge(job.pruning)
        self._is_pruned = False
        self._evaluations: list[tuple[int, float]] = []
        self._setup = setup
        self._checkpoints = checkpoints
        self._context = context
        self._control = control
        self._device = device
        self._world = dist.get_world_size()
        self._is_first = dist.get_rank() == 0
        self._trained = [p for p in setup.model.parameters() if p.requires_grad]
        self._resumed_from: CheckpointRef | None = None
        self._skipped: list[CheckpointRef] = []
        self._loss: float | None = None
        self._validation_loss: float | None = None
        self._best_loss: float | None = None
        self._stale_evaluations = 0
        self._checkpointed = False
        self._checkpointed_at = time.monotonic()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="data")

    # --- checkpoints ---

    def resume(self, accepted: list[CheckpointRef]) -> None:
        """Start from the newest whole checkpoint, or from the beginning."""
        torch.manual_seed(self._tuning.seed * 1_000_003 + dist.get_rank())
        if self._world > 2 or self._device.type == "cuda":
            self._settle_buckets()
        loaded: TensorDict = {}

        def tensors(manifest: CheckpointManifest) -> TensorDict:
            loaded.clear()
            loaded.update(self._tensors(with_random=manifest.world_size == self._world))
            return loaded

        manifest = self._checkpoints.load_newest(accepted, tensors)
        if manifest is not None:
            self._restore(manifest, loaded)
            self._resumed_from = self._checkpoints.parent
        newest = accepted.index(self._resumed_from) + 1 if self._resumed_from else 0
        self._skipped = accepted[newest:]
        trained = sum(parameter.numel() for parameter in self._trained)
        log.info(
            "%s of %d ranks on %s: %d trained parameters, %s",
            dist.get_rank() + 1,
            self._world,
            self._device,
            trained,
            f"resumed from step {self.step}" if manifest else "from the beginning",
        )
        if self._is_first:
            self._context.reporter.plan(self._setup.total_steps)
            self._context.reporter.resumed(self._resumed_from)

    def _settle_buckets(self) -> None:
        """Let DDP fix its gradient buckets before the first real step.

        DDP rebuilds its buckets after the first backward pass, and the order of summation over
        more than two ranks depends on them; a resumed run must sum as the first one did.
        """
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            tokens = torch.zeros(1, 8, dtype=torch.int64, device=self._device)
            for _ in range(2):
                self._setup.model(input_ids=tokens).logits.float().sum().mul(0.0).backward()
                self._setup.optimizer.zero_grad(set_to_none=True)

    def _tensors(self, *, with_random: bool = True) -> TensorDict:
        """Everything that a checkpoint keeps, as one flat dictionary of tensors."""
        options = dcp_state.StateDictOptions(ignore_frozen_params=True)
        weights, optimizer = dcp_state.get_state_dict(
            self._setup.model, self._setup.optimizer, options=options
        )
        state: TensorDict = {f"model.{name}": value for name, value in weights.items()}
        for name, values in optimizer["state"].items():  # type: ignore[union-attr]
            for key, value in values.items():  # type: ignore[union-attr]
                state[f"optimizer.{name}.{key}"] = value
        for lane, position in self._setup.training.positions().items():
            state[f"lane.{lane}"] = torch.tensor(position, dtype=torch.int64)
        if with_random:
            state[f"random.cpu.{dist.get_rank()}"] = torch.get_rng_state()
            if self._device.type == "cuda":
                state[f"random.cuda.{dist.get_rank()}"] = torch.cuda.get_rng_state()
        return state

    def _restore(self, manifest: CheckpointManifest, state: TensorDict) -> None:
        options = dcp_state.StateDictOptions(ignore_frozen_params=True, strict=False)
        template = dcp_state.get_optimizer_state_dict(
            self._setup.model, self._setup.optimizer, options=options
        )
        of_parameter: dict[str, TensorDict] = template["state"]  # type: ignore[assignment]
        for name, values in of_parameter.items():
            for key in values:
                values[key] = state[f"optimizer.{name}.{key}"]
        dcp_state.set_state_dict(
            self._setup.model,
            self._setup.optimizer,
            model_state_dict={
                k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")
            },
            optim_state_dict=template,
            options=options,
        )
        lanes = {
            int(key.removeprefix("lane.")): (int(value[0]), int(value[1]))
            for key, value in state.items()
            if key.startswith("lane.")
        }
        self._setup.training.seek(lanes)
        rank = dist.get_rank()
        if f"random.cpu.{rank}" in state:
            torch.set_rng_state(state[f"random.cpu.{rank}"])
            if f"random.cuda.{rank}" in state:
                torch.cuda.set_rng_state(state[f"random.cuda.{rank}"])
        else:
            torch.manual_seed(self._tuning.seed * 1_000_003 + manifest.step * 1009 + rank)
        self.step = manifest.step
        progress = manifest.progress
        self._loss, self._validation_loss = progress["loss"], progress["validation_loss"]
        self._best_loss = progress["best_loss"]
        self._stale_evaluations = progress["stale_evaluations"]
        for step, loss in progress.get("evaluations", []):
            self._note_evaluation(step, loss)

    def _checkpoint(self, positions: TensorDict, validation_loss: float | None) -> None:
        state = self._tensors()
        state.update(positions)
        self._checkpoints.save(
            state,
            step=self.step,
            progress={
                "loss": self._loss,
                "validation_loss": self._validation_loss,
                "best_loss": self._best_loss,
                "stale_evaluations": self._stale_evaluations,
                "evaluations": self._evaluations,
            },
            validation_loss=validation_loss,
        )
        self._checkpointed, self._checkpointed_at = True, time.monotonic()

    # --- steps ---

    def until_done(self) -> TrainOutcome:
        """Take steps until the run is done or asked to stop; ends with a checkpoint."""
        total = self._setup.total_steps
        batch, positions = self._read_batch()
        agreed = self._agree(None, batch.label_count)
        reason = "max_steps" if self.step >= total else ""
        while not reason:
            began = time.monotonic()
            upcoming = self._reader.submit(self._read_batch)
            rate = learning_rate(self._tuning, self.step, total)
            loss_sum, gradient_norm = self._optimize(batch, agreed.next_labels, rate)
            self.step += 1
            following, following_positions = upcoming.result()
            labels = agreed.next_labels
            agreed = self._agree(loss_sum / labels, following.label_count)
            self._report_step(agreed.loss, rate, gradient_norm, labels, time.monotonic() - began)
            improved = self._evaluate_if_due(total)
            reason = self._reason_to_end(agreed, total)
            if reason or improved or agreed.checkpoint or self._steps_due():
                self._checkpoint(positions, self._validation_loss if improved else None)
            batch, positions = following, following_positions
        self._reader.shutdown()
        return self._outcome(reason, total)

    def _read_batch(self) -> tuple[Batch, TensorDict]:
        """The next batch, and the lanes' positions after it (as checkpoints keep them)."""
        batch = self._setup.training.next_batch()
        return batch, {
            f"lane.{lane}": torch.tensor(position, dtype=torch.int64)
            for lane, position in self._setup.training.positions().items()
        }

    def _optimize(self, batch: Batch, labels: int, rate: float) -> tuple[torch.Tensor, Any]:
        """One optimizer step over `labels` labels of all ranks; returns the summed loss."""
        optimizer, model = self._setup.optimizer, self._setup.model
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
        norm = None
        if self._tuning.max_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self._trained, self._tuning.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss_sum, norm

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of next-token prediction, summed over labels that count."""
        tokens = torch.from_numpy(batch.tokens).to(self._device, non_blocking=True)
        labels = torch.from_numpy(batch.labels).to(self._device, non_blocking=True)
        mixed = self._tuning.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=mixed):
            logits = self._setup.model(input_ids=tokens, use_cache=False).logits
        # logits [B, T, V] at position t predict label t+1
        return F.cross_entropy(
            logits[:, :-1].float().flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def _agree(self, loss: torch.Tensor | None, next_labels: int) -> _Agreed:
        """One all-reduce: mean loss, whether anyone wants to stop or checkpoint, labels to come."""
        reads_loss = loss is not None and (
            self._device.type == "cpu"
            or self.step % CUDA_LOG_STEPS == 0
            or self.step == self._setup.total_steps
        )
        due = self._is_first and (
            time.monotonic() - self._checkpointed_at
            >= self._runtime.checkpoint_interval.total_seconds()
        )
        wishes = torch.tensor(
            [
                float(loss) if reads_loss and loss is not None else 0.0,
                float(self._context.should_stop()),
                float(due),
                float(next_labels),
            ],
            dtype=torch.float64,
        )
        dist.all_reduce(wishes, group=self._control)
        mean_loss = float(wishes[0])
        if reads_loss:
            if mean_loss != mean_loss or mean_loss in (float("inf"), float("-inf")):
                raise LossDiverged(
                    f"the loss is {mean_loss} at step {self.step}; lower "
                    f"model.fine_tuning_config.learning_rate or check the data"
                )
            self._loss = mean_loss
        stop, checkpoint, labels = (float(wish) for wish in wishes[1:])
        return _Agreed(mean_loss, stop > 0, checkpoint > 0, max(1, int(labels)))

    def _steps_due(self) -> bool:
        every = self._runtime.checkpoint_steps
        return every is not None and self.step % every == 0

    def _reason_to_end(self, agreed: _Agreed, total: int) -> str:
        patience = self._runtime.early_stopping
        if self.step >= total:
            return "max_steps"
        if patience is not None and self._stale_evaluations >= patience.patience:
            return "early_stopping"
        if self._is_pruned:
            return "pruned"
        return "stopped" if agreed.stop else ""

    def _evaluate_if_due(self, total: int) -> bool:
        """Measure the validation loss every so many steps; says whether it is the best yet."""
        every = self._tuning.evaluate_every or max(1, total // 10)
        if not self._setup.evaluates or (self.step % every and self.step != total):
            return False
        self._validation_loss = self.evaluate()
        if self._is_first:
            self._context.reporter.evaluation(step=self.step, validation_loss=self._validation_loss)
        self._note_evaluation(self.step, self._validation_loss)
        patience = self._runtime.early_stopping
        margin = patience.min_delta if patience else 0.0
        if self._best_loss is None or self._validation_loss < self._best_loss - margin:
            self._best_loss, self._stale_evaluations = self._validation_loss, 0
            return True
        self._stale_evaluations += 1
        return False

    def _note_evaluation(self, step: int, loss: float) -> None:
        """A trial remembers its evaluations, and is given up when one misses its bar."""
        if len(self._evaluations) < self._most_reports:
            self._evaluations.append((step, loss))
            self._is_pruned = self._judge.report(step, loss) or self._is_pruned

    def evaluate(self) -> float:
        """Mean loss over the fixed validation sequences of all ranks."""
        self._setup.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in self._setup.validation:
                sums[0] += float(self._loss_of(batch))
                sums[1] += batch.label_count
        self._setup.model.train()
        dist.all_reduce(sums, group=self._control)
        return float(sums[0] / sums[1].clamp(min=1))

    def _report_step(
        self, loss: float, rate: float, norm: Any, labels: int, duration_s: float
    ) -> None:
        if not self._is_first or (self._device.type == "cuda" and self.step % CUDA_LOG_STEPS):
            return
        tokens = self._tuning.batch_size * self._tuning.sequence_length
        total = self._setup.total_steps
        if self.step % max(1, total // LOGGED_STEPS) == 0 or self.step == total:
            log.info(
                "step %d of %d, loss %.4f, %.0f tokens/s",
                self.step,
                total,
                loss,
                tokens / duration_s,
            )
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        self._context.reporter.step(
            step=self.step,
            loss=loss,
            learning_rate=rate,
            gradient_norm=None if norm is None else float(norm),
            labels=labels,
            step_s=duration_s,
            tokens_per_s=tokens / duration_s,
            checkpoint_blocked_s=self._checkpoints.blocked_s,
        )

    def _outcome(self, reason: str, total: int) -> TrainOutcome:
        return TrainOutcome(
            status="stopped" if reason == "stopped" else "completed",
            step=self.step,
            total_steps=total,
            reason=reason,
            checkpoint=(
                CheckpointRef(generation=self._checkpoints.generation, step=self.step)
                if self._checkpointed
                else self._resumed_from
            ),
            loss=self._loss,
            validation_loss=self._validation_loss,
            resumed_from=self._resumed_from,
            skipped=self._skipped,
            evaluations=self._evaluations,
            rungs=self._judge.rungs,
        )
