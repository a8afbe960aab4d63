"""What learners share that have a language model act in an environment: episodes and rewards.

A step of the run has a batch of conversations and learns from them; so every checkpoint stands
between batches, and a resumed run has the same conversations again.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from loomos.manifest import Completions
from loomos.rl.environments.task import Task
from loomos.rl.language.conversations import Conversation, Talker, as_samples
from loomos.rl.language.learner import LanguageLearner
from loomos.rl.language.sampling import Samples, completion_log_probs
from loomos.rl.language.sources import DatasetTasks, FamilyTasks, TaskSource
from loomos.training.setup import Workplace
from loomos.training.shards import CheckpointManifest, TensorDict


class RewardedLearner(LanguageLearner):
    """One rank's share of the conversations."""

    def __init__(self, place: Workplace, config: Completions, copies: int) -> None:
        """Make one.

        Args:
            place: where.
            config: how replies are written.
            copies: conversations about each task.
        """
        super().__init__(place)
        spec = self._job.spec
        self._completions, self._copies = config, copies
        self._tasks = self._tuning.batch_size // copies // self._world
        self._source: TaskSource
        if spec.environment is not None:
            self._source = FamilyTasks(spec.environment, self._tuning, self._tasks, self._rank)
        else:
            self._source = DatasetTasks(place, self._cache, self._tasks)
        self._talker = Talker(
            self._tokenizer, self._source.judges, config, self._tuning.sequence_length
        )
        self.total_steps = self._source.total_steps
        self.evaluates = self._source.evaluates
        self.evaluate_every = self._tuning.evaluate_every or max(1, self.total_steps // 10)

    def close(self) -> None:
        """Let go of reward functions' processes."""
        self._source.close()

    # --- state ---

    def progress(self) -> dict[str, Any]:
        """Where the curriculum stands."""
        ladder = self._source.curriculum
        return {"curriculum": None if ladder is None else ladder.state().tolist()}

    def restore(self, manifest: CheckpointManifest, state: TensorDict) -> None:
        """See base class."""
        super().restore(manifest, state)
        if self._source.curriculum is not None:
            self._source.curriculum.load(np.asarray(manifest.progress["curriculum"]))

    # --- steps ---

    def begin(self) -> list[float]:
        """Nothing is needed of other ranks."""
        return []

    def step(self, step: int, totals: list[float]) -> list[float]:
        """Talk, be judged, learn; sums over this rank's conversations."""
        self._seed(step)
        held = self._talk(self._source.tasks(step), self._copies, self._completions.temperature)
        samples = as_samples(held, self._talker.pad, self._device)
        rewards = torch.tensor([conversation.reward for conversation in held])
        learned = self._learn(step, samples, rewards)
        self._learned = list(learned)
        spread = rewards.view(self._tasks, -1).std(dim=1, correction=0)
        return [
            *(value / self._world for value in learned.values()),
            float(rewards.sum()),
            float(sum(conversation.is_correct for conversation in held)),
            float(len(rewards)),
            float(samples.mask.sum()),
            float(samples.is_cut.sum()),
            float(sum(conversation.turns for conversation in held)),
            float((spread == 0).sum()),
        ]

    @abstractmethod
    def _learn(self, step: int, samples: Samples, rewards: torch.Tensor) -> Mapping[str, float]:
        """Update on conversations and their rewards [B]; means over the updates, `loss` first."""

    def _talk(self, made: list[Task], copies: int, temperature: float) -> list[Conversation]:
        tasks: list[list[Task]] = [
            [task, *(copy.deepcopy(task) if task.has_turns else task for _ in range(copies - 1))]
            for task in made
        ]
        self._bare.eval()
        held = self._talker.talk(self._bare, tasks, temperature=temperature)
        self._bare.train()
        self._source.judge(held, self._tokenizer)
        return held

    def _log_probs(self, samples: Samples) -> torch.Tensor:
        mixed = self._tuning.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=mixed):
            return completion_log_probs(self._model, samples, self._completions.temperature)

    def _reference_log_probs(self, samples: Samples) -> torch.Tensor | None:
        if not self._completions.beta:
            return None
        with self._as_reference() as model:
            return completion_log_probs(model, samples, self._completions.temperature)

    def measure(self, step: int, totals: list[float]) -> dict[str, float | int | None] | None:
        """See base class."""
        *learned, reward, solved, count, tokens, cut, turns, flat = totals
        if self._source.curriculum is not None:
            for number in range(int(count)):
                self._source.curriculum.note(number < solved)
        found = dict(zip(self._learned, learned, strict=True))
        metrics: dict[str, float | int | None] = {
            **found,
            **self._checked(step, found["loss"]),
            "episode_return": reward / count,
            "completion_tokens": tokens / count,
            "turns": turns / count,
            "cut": cut / count,
            "tokens": int(tokens),
        }
        if self._source.level is not None:
            metrics |= {"solved": solved / count, "level": self._source.level}
        if self._copies > 1:
            metrics["flat_groups"] = flat * self._copies / count
        return metrics

    @torch.no_grad()
    def evaluate(self) -> float:
        """Minus the mean reward of the likeliest replies to tasks that are always the same."""
        numbers = range(self._rank, self._tuning.evaluate_sequences, self._world)
        tasks = self._source.evaluation(numbers)
        sums = torch.zeros(2, dtype=torch.float64)
        if tasks:
            held = self._talk(tasks, 1, 0.0)
            sums[0] = sum(conversation.reward for conversation in held)
            sums[1] = len(held)
        dist.all_reduce(sums, group=self._control)
        return -float(sums[0] / sums[1].clamp(min=1))
