"""Conversations of a language model with tasks: a reply, what the task says to it, and so on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from loomos.errors import InvalidModel
from loomos.manifest import Completions
from loomos.rl.environments.task import Task, Verdict
from loomos.rl.language.sampling import Row, Samples, padded, sample
from loomos.training.fitting import refusing

MARK = "<reply-of-the-model>"
"""Stands for a reply while a chat template is looked at."""


@dataclass
class Conversation:
    """One episode, as it goes on."""

    task: Task
    """What is replied to."""
    prompt: list[int]
    """Tokens that it began with."""
    messages: list[dict[str, str]]
    """What was said, for chat templates."""
    tokens: list[int] = field(default_factory=list)
    """All that came after the prompt."""
    is_own: list[bool] = field(default_factory=list)
    """Which of those the model wrote."""
    reward: float = 0.0
    """Sum over its replies."""
    is_correct: bool = False
    """Whether the task was done as asked."""
    is_cut: bool = False
    """Whether it came to no end: a reply or the conversation was too long."""
    is_over: bool = False
    """Whether nothing more is said."""
    turns: int = 0
    """Replies so far."""


class Judges(Protocol):
    """What a talker asks of what it talks with."""

    @property
    def turns(self) -> int:
        """Replies that a conversation may have."""

    def reward(self, verdict: Verdict) -> float:
        """What a verdict is worth."""


def opening(task: Task) -> list[dict[str, str]]:
    """The messages that a conversation begins with."""
    return list(task.messages or [{"role": "user", "content": task.prompt}])


class Talker:
    """Has a model talk with tasks."""

    def __init__(
        self, tokenizer: Any, environment: Judges, config: Completions, longest: int
    ) -> None:
        """Make one.

        Args:
            tokenizer: of transformers.
            environment: tells what replies are worth, and how many there may be.
            config: how replies are written.
            longest: tokens that a conversation may have, its prompt included.
        """
        self._tokenizer, self._environment, self._config = tokenizer, environment, config
        self._longest = longest
        self._end: int = tokenizer.eos_token_id
        self.pad: int = self._end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        """Fills up what is shorter."""

    def talk(
        self, model: Any, tasks: list[list[Task]], *, temperature: float
    ) -> list[Conversation]:
        """Conversations about these tasks; copies of one task stand side by side.

        Args:
            model: a causal language model of transformers.
            tasks: groups of as many copies of one task; first replies to a group are written from
                one reading of the prompt.
            temperature: of sampling; 0 takes the likeliest token.
        """
        prompts = [self._prompt(group[0]) for group in tasks]
        held = [
            Conversation(task, prompt, opening(task))
            for group, prompt in zip(tasks, prompts, strict=True)
            for task in group
        ]
        self._take(held, self._sample(model, prompts, len(tasks[0]), temperature))
        while going := [conversation for conversation in held if not conversation.is_over]:
            transcripts = [[*c.prompt, *c.tokens] for c in going]
            self._take(going, self._sample(model, transcripts, 1, temperature))
        return held

    def _sample(
        self, model: Any, prompts: list[list[int]], copies: int, temperature: float
    ) -> Samples:
        return sample(
            model,
            prompts,
            copies=copies,
            longest=self._config.max_completion_tokens,
            temperature=temperature,
            end=self._end,
            pad=self.pad,
        )

    def _take(self, going: list[Conversation], written: Samples) -> None:
        """Have the tasks judge the next replies, and say what they have to say."""
        texts = self._tokenizer.batch_decode(written.completions, skip_special_tokens=True)
        lengths = written.mask.sum(-1).long().tolist()
        cut = written.is_cut.tolist()
        for number, (conversation, text) in enumerate(zip(going, texts, strict=True)):
            reply = written.completions[number, : lengths[number]].tolist()
            conversation.tokens += reply
            conversation.is_own += [True] * len(reply)
            conversation.turns += 1
            verdict = conversation.task.reply(text)
            conversation.reward += self._environment.reward(verdict)
            conversation.is_correct = verdict.is_correct
            conversation.is_over = verdict.is_over
            if verdict.is_over:
                conversation.is_cut = cut[number]
            else:
                self._answer(conversation, text, verdict.message, ended=not cut[number])

    def _answer(self, conversation: Conversation, reply: str, message: str, *, ended: bool) -> None:
        """Let the conversation go on with what the task says, if it may."""
        said = self._told(conversation.messages, message, ended=ended)
        room = self._longest - len(conversation.prompt) - len(conversation.tokens) - len(said)
        turns = min(self._config.max_turns, self._environment.turns)
        if conversation.turns >= turns or room < self._config.max_completion_tokens:
            conversation.is_over = conversation.is_cut = True
            return
        conversation.messages += [
            {"role": "assistant", "content": reply},
            {"role": "user", "content": message},
        ]
        conversation.tokens += said
        conversation.is_own += [False] * len(said)

    # --- text ---

    @property
    def _chats(self) -> bool:
        return bool(self._config.chat and self._tokenizer.chat_template)

    def _prompt(self, task: Task) -> list[int]:
        room = self._longest - self._config.max_completion_tokens if task.may_be_cut else 1 << 30
        if self._chats or (task.messages and self._tokenizer.chat_template):
            text = self._rendered(opening(task))
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])[-room:]
        if task.messages:
            raise InvalidModel(
                "prompts are lists of messages, and the tokenizer has no chat template; write them "
                "as texts, or use a tokenizer that has one"
            )
        return list(self._tokenizer(task.prompt)["input_ids"])[-room:]

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        with refusing("model.tokenizer: its chat template fails"):
            text: str = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        return text

    def _told(self, messages: list[dict[str, str]], message: str, *, ended: bool) -> list[int]:
        """Tokens between a reply and the next: by the template all that follows a reply in it.

        Raises:
            InvalidModel: the template does not show replies as they are.
        """
        if not self._chats:
            text = f"\n{message}\n"
        else:
            conversation = [
                *messages,
                {"role": "assistant", "content": MARK},
                {"role": "user", "content": message},
            ]
            _, found, text = self._rendered(conversation).rpartition(MARK)
            if not found:
                raise InvalidModel(
                    "the tokenizer's chat template changes what assistants said; set chat: false"
                )
            if ended:  # the reply brought its end itself
                text = text.removeprefix(self._tokenizer.eos_token)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def as_samples(held: list[Conversation], pad: int, device: torch.device) -> Samples:
    """Conversations as one batch; what the tasks said is read but not the model's own."""
    return padded([Row(c.prompt, c.tokens, c.is_own, c.is_cut) for c in held], pad, device)
