"""What the durable loop trains: the one interface that every algorithm implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from loomos.training.shards import CheckpointManifest, TensorDict


class Learner(ABC):
    """One rank's part of a training, taken step by step by `loomos.training.loop`.

    After each step the loop checkpoints, evaluates or ends, so everything that the rest of the
    training depends on must be in `tensors` and `progress`; what is a function of the step need
    not be.
    """

    total_steps: int
    """Steps of the whole run."""
    evaluates: bool
    """Whether `evaluate` can be asked."""
    evaluate_every: int
    """Steps between evaluations."""

    @abstractmethod
    def prepare(self) -> str:
        """Come to the state before the first step; says in a few words what is trained."""

    @abstractmethod
    def tensors(self, *, with_random: bool = True) -> TensorDict:
        """What a checkpoint keeps, after a step; before loading, tensors to load into.

        Args:
            with_random: with this rank's random state and whatever else only as many ranks as
                saved it can use.
        """

    @abstractmethod
    def restore(self, manifest: CheckpointManifest, state: TensorDict) -> None:
        """Come to the state of a checkpoint that `tensors` gave."""

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps besides, as JSON."""
        return {}

    @abstractmethod
    def begin(self) -> list[float]:
        """This rank's part of the numbers that the first step needs summed over all ranks."""

    @abstractmethod
    def step(self, step: int, totals: list[float]) -> list[float]:
        """Take a step.

        Args:
            step: steps taken so far.
            totals: what `begin` or the last step returned, summed over all ranks.

        Returns:
            This rank's part of the numbers that `measure` and the next step need.
        """

    @abstractmethod
    def measure(self, step: int, totals: list[float]) -> dict[str, float | int | None] | None:
        """Metrics of the step just taken, `loss` among them; None when the loss was not read.

        Raises:
            LossDiverged: there is no point in going on.
        """

    @abstractmethod
    def evaluate(self) -> float:
        """The validation loss, the same on all ranks."""

    def close(self) -> None:
        """Let go of threads and processes."""
        return
