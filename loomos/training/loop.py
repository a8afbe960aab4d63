"""The durable loop of one rank, top to bottom.

`train` joins the gang, makes the algorithm's learner, resumes it, and takes steps until the run is
done or asked to stop. All decisions (stop, checkpoint, early stop) are made by all ranks together:
each step ends with one small all-reduce on a CPU group that carries the learner's numbers and the
wishes of each rank. What must survive a crash is the learner's to say (`loomos.training.learner`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from loomos.errors import InvalidInput
from loomos.jobs.training import CheckpointRef, TrainAssignment, TrainOutcome
from loomos.manifest import Runtime
from loomos.storage import open_store
from loomos.training.checkpoint import Checkpointer
from loomos.training.fences import read_fence
from loomos.training.learner import Learner
from loomos.training.scratch import checkpoint_scratch
from loomos.training.setup import RankContext, Workplace
from loomos.training.shards import CheckpointManifest, TensorDict
from loomos.weaver.pruning import Judge

log = logging.getLogger(__name__)

GANG_TIMEOUT = timedelta(minutes=5)
"""A collective that takes longer means that a peer hangs."""

PATIENCE = timedelta(hours=6)
"""How long ranks wait for one that prepares the run, compiles, or takes its first step, as long as
it says that it works."""

LONGEST_STEPS = 20
"""A step that takes so many times the longest before it is no longer taken for work."""
STEP_S = 900.0
"""Every step may take so long."""

LOGGED_STEPS = 20
"""Lines about progress in the log of a whole run."""


def train(job: TrainAssignment, context: RankContext) -> TrainOutcome:
    """Train until done or stopped. Every rank of the gang calls this.

    Raises:
        LoomOSError: see `loomos.errors.TrainingError`.
    """
    with gang(job) as control:
        store = open_store(context.storage)
        place = Workplace(
            job=job,
            context=context,
            store=store,
            device=_device(),
            control=control,
            patient=dist.new_group(backend="gloo", timeout=PATIENCE),
        )
        with context.reporter.working("prepares model and data", PATIENCE.total_seconds()):
            learner = make_learner(place)
            # Whoever was quicker waits here, and not in a collective of the optimizer's.
            dist.barrier(group=place.patient)
        checkpoints = Checkpointer(
            store=store,
            job_id=job.job_id,
            generation=job.generation,
            scratch=checkpoint_scratch(context.scratch, job.job_id, job.generation),
            keep=job.spec.runtime.keep_checkpoints,
            on_commit=context.reporter.committed,
            on_corrupt=context.reporter.corrupt,
            group=dist.new_group(backend="gloo", timeout=GANG_TIMEOUT),
        )
        try:
            run = Run(job, learner, checkpoints, context, control)
            run.resume(read_fence(store, job.job_id, job.generation).accepted)
            if run.step > learner.total_steps:
                raise InvalidInput(
                    f"checkpoint of step {run.step} is past the run's end ({learner.total_steps})"
                )
            outcome = run.until_done()
            checkpoints.wait()
            return outcome
        finally:
            learner.close()


def make_learner(place: Workplace) -> Learner:
    """The learner of the manifest's algorithm; each has its module, loaded when it is needed."""
    match place.job.spec.algorithm:
        case "ppo" if place.job.spec.model is not None:
            from loomos.rl.language.ppo import PPOLanguageLearner

            return PPOLanguageLearner(place)
        case "ppo":
            from loomos.rl.learner import PolicyLearner

            return PolicyLearner(place)
        case "weave":
            from loomos.rl.learner import WeaveLearner

            return WeaveLearner(place)
        case "grpo":
            from loomos.rl.language.grpo import GRPOLearner

            return GRPOLearner(place)
        case "dpo":
            from loomos.rl.language.dpo import DPOLearner

            return DPOLearner(place)
    from loomos.training.sft import FineTuner

    return FineTuner(place)


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

    totals: list[float]
    stop: bool
    checkpoint: bool


class Run:
    """The state of a run on one rank, and its steps."""

    def __init__(
        self,
        job: TrainAssignment,
        learner: Learner,
        checkpoints: Checkpointer,
        context: RankContext,
        control: Any,
    ) -> None:
        self.step = 0
        self._learner = learner
        self._runtime: Runtime = job.spec.runtime
        self._most_reports = job.most_reports
        self._judge = Judge(job.pruning)
        self._is_pruned = False
        self._longest_step_s: float | None = None
        self._evaluations: list[tuple[int, float]] = []
        self._checkpoints = checkpoints
        self._context = context
        self._control = control
        self._world = dist.get_world_size()
        self._is_first = dist.get_rank() == 0
        self._resumed_from: CheckpointRef | None = None
        self._skipped: list[CheckpointRef] = []
        self._loss: float | None = None
        self._episode_return: float | None = None
        self._validation_loss: float | None = None
        self._best_loss: float | None = None
        self._stale_evaluations = 0
        self._checkpointed = False
        self._checkpointed_at = time.monotonic()

    # --- checkpoints ---

    def resume(self, accepted: list[CheckpointRef]) -> None:
        """Start from the newest whole checkpoint, or from the beginning."""
        trained = self._learner.prepare()
        loaded: TensorDict = {}

        def tensors(manifest: CheckpointManifest) -> TensorDict:
            loaded.clear()
            with_random = manifest.world_size == self._world
            loaded.update(self._learner.tensors(with_random=with_random))
            return loaded

        manifest = self._checkpoints.load_newest(accepted, tensors)
        if manifest is not None:
            self._learner.restore(manifest, loaded)
            self._restore(manifest)
            self._resumed_from = self._checkpoints.parent
        newest = accepted.index(self._resumed_from) + 1 if self._resumed_from else 0
        self._skipped = accepted[newest:]
        log.info(
            "%s of %d ranks: %s, %s",
            dist.get_rank() + 1,
            self._world,
            trained,
            f"resumed from step {self.step}" if manifest else "from the beginning",
        )
        if self._is_first:
            self._context.reporter.plan(self._learner.total_steps)
            self._context.reporter.resumed(self._resumed_from)

    def _restore(self, manifest: CheckpointManifest) -> None:
        self.step = manifest.step
        progress = manifest.progress
        self._loss, self._validation_loss = progress["loss"], progress["validation_loss"]
        self._episode_return = progress.get("episode_return")
        self._best_loss = progress["best_loss"]
        self._stale_evaluations = progress["stale_evaluations"]
        for step, loss in progress.get("evaluations", []):
            self._note_evaluation(step, loss)

    def _checkpoint(self, validation_loss: float | None) -> None:
        self._checkpoints.save(
            self._learner.tensors(),
            step=self.step,
            progress={
                "loss": self._loss,
                "episode_return": self._episode_return,
                "validation_loss": self._validation_loss,
                "best_loss": self._best_loss,
                "stale_evaluations": self._stale_evaluations,
                "evaluations": self._evaluations,
                **self._learner.progress(),
            },
            validation_loss=validation_loss,
        )
        self._checkpointed, self._checkpointed_at = True, time.monotonic()

    # --- steps ---

    def until_done(self) -> TrainOutcome:
        """Take steps until the run is done or asked to stop; ends with a checkpoint."""
        agreed = self._agree(self._learner.begin())
        reason = "max_steps" if self.step >= self._learner.total_steps else ""
        while not reason:
            began = time.monotonic()
            with self._step_working():
                parts = self._learner.step(self.step, agreed.totals)
            self.step += 1
            agreed = self._agree(parts)
            metrics = self._learner.measure(self.step, agreed.totals)
            self._report_step(metrics, time.monotonic() - began)
            improved = self._evaluate_if_due()
            reason = self._reason_to_end(agreed)
            if reason or improved or agreed.checkpoint or self._steps_due():
                self._checkpoint(self._validation_loss if improved else None)
        return self._outcome(reason)

    @contextmanager
    def _step_working(self) -> Iterator[None]:
        """Say that a step goes on: the first may compile, later ones are measured by it."""
        first = self._longest_step_s is None
        limit_s = max(STEP_S, LONGEST_STEPS * (self._longest_step_s or 0.0))
        limit_s = PATIENCE.total_seconds() if first else limit_s
        doing = "takes its first step" if first else f"takes step {self.step + 1}"
        began = time.monotonic()
        with self._context.reporter.working(doing, limit_s):
            yield
        took_s = time.monotonic() - began
        self._longest_step_s = 0.0 if first else max(self._longest_step_s or 0.0, took_s)

    def _agree(self, parts: list[float]) -> _Agreed:
        """One all-reduce: the learner's numbers, whether anyone wants to stop or checkpoint."""
        due = self._is_first and (
            time.monotonic() - self._checkpointed_at
            >= self._runtime.checkpoint_interval.total_seconds()
        )
        wishes = torch.tensor(
            [float(self._context.should_stop()), float(due), *parts], dtype=torch.float64
        )
        dist.all_reduce(wishes, group=self._control)
        stop, checkpoint, *totals = wishes.tolist()
        return _Agreed(totals, stop > 0, checkpoint > 0)

    def _steps_due(self) -> bool:
        every = self._runtime.checkpoint_steps
        return every is not None and self.step % every == 0

    def _reason_to_end(self, agreed: _Agreed) -> str:
        patience = self._runtime.early_stopping
        if self.step >= self._learner.total_steps:
            return "max_steps"
        if patience is not None and self._stale_evaluations >= patience.patience:
            return "early_stopping"
        if self._is_pruned:
            return "pruned"
        return "stopped" if agreed.stop else ""

    def _evaluate_if_due(self) -> bool:
        """Measure the validation loss every so many steps; says whether it is the best yet."""
        learner = self._learner
        is_last = self.step == learner.total_steps
        if not learner.evaluates or (self.step % learner.evaluate_every and not is_last):
            return False
        with self._context.reporter.working("evaluates", PATIENCE.total_seconds()):
            self._validation_loss = learner.evaluate()
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

    def _report_step(
        self, metrics: dict[str, float | int | None] | None, duration_s: float
    ) -> None:
        if metrics is None:
            return
        self._loss = metrics["loss"]
        if not self._is_first:
            return
        for work in ("tokens", "environment_steps"):
            if (amount := metrics.pop(work, None)) is not None:
                metrics[f"{work}_per_s"] = amount / duration_s
        self._episode_return = metrics.get("episode_return")
        total = self._learner.total_steps
        if self.step % max(1, total // LOGGED_STEPS) == 0 or self.step == total:
            said = {"loss": "loss %.4f", "episode_return": "return %.2f"}
            said |= {"tokens_per_s": "%.0f tokens/s", "environment_steps_per_s": "%.0f steps/s"}
            found = [text % metrics[name] for name, text in said.items() if metrics.get(name)]
            log.info("step %d of %d, %s", self.step, total, ", ".join(found))
        self._context.reporter.step(
            step=self.step,
            **metrics,
            step_s=duration_s,
            checkpoint_blocked_s=self._checkpoints.blocked_s,
        )

    def _outcome(self, reason: str) -> TrainOutcome:
        return TrainOutcome(
            status="stopped" if reason == "stopped" else "completed",
            step=self.step,
            total_steps=self._learner.total_steps,
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
            episode_return=self._episode_return,
        )
