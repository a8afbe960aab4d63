"""Answers: what a version says to the prompts of a shard, filed under the shard's key.

Who generates is behind `Generator`: an engine in this process, or a server elsewhere. The same
shard twice finds the first answers in the store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from loomos.errors import NotFound
from loomos.jobs.verification import Shard
from loomos.prism.plan import read_suite
from loomos.prism.planned import Plan
from loomos.prism.suites import Prompt
from loomos.storage import Store


class Question(NamedTuple):
    """One thing to generate."""

    system: str
    """System message; empty for none."""
    prompt: str
    """What is asked."""
    seed: int
    """For sampling."""


class Said(NamedTuple):
    """What came of a question."""

    text: str
    """The answer."""
    tokens: int
    """Its length."""
    latency_s: float
    """Time that it took, in its batch."""


class Generator(Protocol):
    """Something that answers."""

    def generate(
        self, questions: Sequence[Question], max_tokens: int, temperature: float
    ) -> list[Said]:
        """Answer every question, in order."""


class Answer(BaseModel):
    """The answer to one unit of a suite."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    id: str
    """Prompt."""
    cluster: str
    """Its cluster."""
    generation: int
    """Counts from 0."""
    prompt: str
    """What was asked."""
    system: str = ""
    """System message."""
    answer: str
    """What was said."""
    twin_answer: str | None = None
    """What was said to the twin."""
    tokens: int
    """Length of the answer."""
    latency_s: float
    """Time that it took."""


def shard_answers_key(key: str) -> str:
    """Where a shard's answers are."""
    return f"verifications/shards/{key}.jsonl"


def generate_shard(store: Store, plan: Plan, shard: Shard, generator: Generator) -> None:
    """Answer the prompts of a shard and file the answers."""
    suite = plan.suite(shard.suite)
    prompts = read_suite(store, suite).prompts
    units = _units(prompts[: suite.prompts], shard)
    questions: list[Question] = []
    for prompt, generation in units:
        seed = plan.seed * 1_000_003 + generation
        questions.append(Question(prompt.system, prompt.prompt, seed))
        if prompt.twin is not None:
            questions.append(Question(prompt.system, prompt.twin, seed))
    said = iter(generator.generate(questions, suite.header.max_tokens, plan.temperature))
    answers: list[Answer] = []
    for prompt, generation in units:
        first = next(said)
        twin = next(said) if prompt.twin is not None else None
        answers.append(
            Answer(
                id=prompt.id,
                cluster=prompt.cluster or prompt.id,
                generation=generation,
                prompt=prompt.prompt,
                system=prompt.system,
                answer=first.text,
                twin_answer=twin.text if twin else None,
                tokens=first.tokens,
                latency_s=round(first.latency_s, 6),
            )
        )
    body = "".join(json.dumps(a.model_dump(exclude_defaults=True)) + "\n" for a in answers)
    store.put(shard_answers_key(shard.key), body.encode())


def _units(prompts: Sequence[Prompt], shard: Shard) -> list[tuple[Prompt, int]]:
    """Prompt and generation of each unit; all first generations come before the second ones."""
    span = range(shard.first, shard.first + shard.count)
    return [(prompts[index % len(prompts)], index // len(prompts)) for index in span]


def read_answers(store: Store, shards: Sequence[Shard]) -> list[Answer]:
    """Answers of shards, in order.

    Raises:
        NotFound: a shard was not generated.
    """
    found: list[Answer] = []
    for shard in shards:
        lines = store.get(shard_answers_key(shard.key)).decode().splitlines()
        found += [Answer.model_validate_json(line) for line in lines]
    return found


def has_answers(store: Store, shard: Shard) -> bool:
    """Whether a shard was generated."""
    try:
        return bool(store.get(shard_answers_key(shard.key)))
    except NotFound:
        return False


def contexts(answers: Sequence[Answer], prompts: dict[str, Prompt]) -> list[dict[str, Any]]:
    """What detectors get besides each answer."""
    found: list[dict[str, Any]] = []
    for answer in answers:
        context = dict(prompts[answer.id].context)
        if answer.twin_answer is not None:
            context["twin_answer"] = answer.twin_answer
        found.append(context)
    return found
