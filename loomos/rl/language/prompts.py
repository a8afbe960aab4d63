"""Prompts of one's own as tasks: a record of a dataset, replied to once, judged by functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loomos.rl.environments.task import Task, Verdict

RESERVED = ("prompt", "prompts", "completions")
"""Names of columns that functions get otherwise."""


class PromptTask(Task):
    """A prompt. What its replies are worth is known when all of a batch have been written."""

    kind = "prompt"
    may_be_cut = True

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        prompt = record["prompt"]
        self.messages = prompt if isinstance(prompt, list) else None
        self.prompt = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])

    def reply(self, completion: str) -> Verdict:
        """Take the one reply."""
        return Verdict(is_over=True)

    def observe(self) -> NDArray[np.float32]:
        """No policy network acts here."""
        raise NotImplementedError

    def act(self, action: int) -> Verdict:
        """No policy network acts here."""
        raise NotImplementedError

    def solution(self) -> list[int]:
        """No policy network acts here."""
        raise NotImplementedError

    def right_replies(self) -> list[str]:
        """Nobody knows them."""
        return []


@dataclass(frozen=True, kw_only=True)
class OneReply:
    """What a `Talker` asks of an environment, for prompts."""

    turns: int = 1
    """Replies to a prompt."""

    def reward(self, verdict: Verdict) -> float:
        """Nothing yet."""
        return 0.0


def columns(tasks: list[PromptTask], replies: list[str]) -> dict[str, list[Any]]:
    """What reward functions get of a batch: prompts, completions and the records' other fields.

    As in TRL: replies to conversations are lists of one message.
    """
    names = sorted({name for task in tasks for name in task.record} - set(RESERVED))
    completions = [
        [{"role": "assistant", "content": reply}] if task.messages else reply
        for task, reply in zip(tasks, replies, strict=True)
    ]
    return {
        "prompts": [task.record["prompt"] for task in tasks],
        "completions": completions,
        **{name: [task.record.get(name) for task in tasks] for name in names},
    }
