"""Where a language model's tasks come from and who judges its replies: a family, or a dataset.

Which tasks a step has is a function of seed, step and rank, so a resumed run has the same again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from loomos.errors import InvalidData
from loomos.manifest import EnvironmentChoice, FineTuning, RewardFunction
from loomos.rl.environments.curriculum import Curriculum
from loomos.rl.environments.environment import FamilyEnvironment
from loomos.rl.environments.task import Task
from loomos.rl.language.conversations import Conversation, Judges
from loomos.rl.language.prompts import OneReply, PromptTask, columns
from loomos.rl.language.rewards import Rewards
from loomos.rl.pool import episode_seed
from loomos.training.data import DocumentStream
from loomos.training.inputs import InputCache
from loomos.training.setup import Workplace, document_stream

EVALUATION = 1_000_000
"""Seeds of evaluations are numbered from here, so that their tasks are no training's."""


class TaskSource(ABC):
    """One rank's tasks."""

    judges: Judges
    """Who says what single replies are worth."""
    total_steps: int
    """Steps of the whole run."""
    evaluates: bool
    """Whether there are tasks for evaluation."""
    curriculum: Curriculum | None = None
    """How tasks get harder, if they do."""

    @property
    def level(self) -> float | None:
        """How hard tasks are, from 0 to 1, where that is known."""
        return None

    @abstractmethod
    def tasks(self, step: int) -> list[Task]:
        """This rank's tasks of a step."""

    @abstractmethod
    def evaluation(self, numbers: Iterable[int]) -> list[Task]:
        """Tasks of an evaluation, by their numbers; always the same."""

    def judge(self, held: Sequence[Conversation], tokenizer: Any) -> None:
        """Give rewards to conversations that are over, where that waits for the whole batch."""
        return

    def close(self) -> None:
        """Let go of processes."""
        return


class FamilyTasks(TaskSource):
    """Generated tasks of one of the gym's families."""

    evaluates = True

    def __init__(
        self, choice: EnvironmentChoice, tuning: FineTuning, count: int, rank: int
    ) -> None:
        assert tuning.max_steps is not None
        self._environment = self.judges = FamilyEnvironment(choice.name, choice.config)
        self._seed, self._count, self._first = tuning.seed, count, rank * count
        self.total_steps = tuning.max_steps
        self.curriculum = self._environment.curriculum

    @property
    def level(self) -> float | None:
        """See base class."""
        return self._environment.level

    def tasks(self, step: int) -> list[Task]:
        """See base class."""
        numbers = range(self._first, self._first + self._count)
        return [self._environment.make_task(episode_seed(self._seed, n, step)) for n in numbers]

    def evaluation(self, numbers: Iterable[int]) -> list[Task]:
        """See base class."""
        seeds = [episode_seed(self._seed, EVALUATION + number, 0) for number in numbers]
        return [self._environment.make_task(seed) for seed in seeds]


class DatasetTasks(TaskSource):
    """Prompts of a dataset in its shuffled order, judged by functions of the job."""

    judges = OneReply()

    def __init__(self, place: Workplace, cache: InputCache, count: int) -> None:
        spec, inputs = place.job.spec, place.job.inputs
        assert spec.data is not None and spec.model is not None
        data = spec.data.model_copy(update={"format": "prompt"})
        tuning = spec.model.fine_tuning_config
        self._stream = document_stream(data, inputs, cache, tuning.seed, held_out=False)
        self._count, self._rank, self._world = count, place.rank, place.world
        self.evaluates = data.validation_dataset is not None or data.validation_split > 0
        self._held_out = self._stream
        if self.evaluates:
            self._held_out = document_stream(data, inputs, cache, tuning.seed, held_out=True)
        for stream in (self._stream, self._held_out):
            if not stream.documents_per_epoch:
                raise InvalidData("no prompts; check data.include and data.validation_split")
        per_epoch = -(-self._stream.documents_per_epoch // (count * self._world))
        steps = per_epoch * tuning.num_epochs if tuning.num_epochs else None
        self.total_steps = min(n for n in (steps, tuning.max_steps) if n is not None)
        pinned = dict(zip(map(id, spec.rewards), inputs.rewards, strict=True))

        def code_of(function: RewardFunction) -> str:
            reference = pinned[id(function)]
            assert reference is not None
            return cache.blob(reference).decode(errors="replace")

        self._rewards = Rewards(spec.rewards, code_of)

    def tasks(self, step: int) -> list[Task]:
        """See base class."""
        first = (step * self._world + self._rank) * self._count
        return [_task(self._stream, first + n) for n in range(self._count)]

    def evaluation(self, numbers: Iterable[int]) -> list[Task]:
        """See base class."""
        there = self._held_out.documents_per_epoch
        return [_task(self._held_out, number) for number in numbers if number < there]

    def judge(self, held: Sequence[Conversation], tokenizer: Any) -> None:
        """See base class."""
        replies = [
            tokenizer.decode(
                [t for t, own in zip(c.tokens, c.is_own, strict=True) if own],
                skip_special_tokens=True,
            )
            for c in held
        ]
        tasks = [c.task for c in held if isinstance(c.task, PromptTask)]
        for conversation, reward in zip(held, self._rewards(columns(tasks, replies)), strict=True):
            conversation.reward = reward

    def close(self) -> None:
        """See base class."""
        self._rewards.close()


def _task(stream: DocumentStream, number: int) -> Task:
    """The task of a record; a blank line gives way to the next that is not."""
    following = (stream.read(number + n).record for n in range(stream.documents_per_epoch))
    record = next((found for found in following if found is not None), None)
    if record is None:
        raise InvalidData("no record has a prompt; write one JSON object a line with `prompt`")
    return PromptTask(record)
