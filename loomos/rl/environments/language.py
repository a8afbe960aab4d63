"""Language: sentences under constraints that can be checked, so that no judge model is needed."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loomos.manifest import EnvironmentType
from loomos.rl.environments.config import LanguageConfig
from loomos.rl.environments.task import Family, Task, Verdict, one_hot, pad, spread

NOUNS = ("river", "cat", "storm", "garden", "child", "engine", "bridge", "letter", "wolf", "lamp")
VERBS = ("follows", "finds", "watches", "paints", "carries", "forgets", "repairs", "hears")
ADJECTIVES = ("quiet", "bright", "ancient", "small", "hidden", "gentle", "broken", "green")
ADVERBS = ("slowly", "today", "again", "together", "softly", "twice")
KINDS = ("length", "inclusion", "avoidance", "ordering")
STOP = 15
"""The action that ends the sentence; the others add a word of the task's vocabulary."""

VOCABULARY = 15
LONGEST = 40
LONGEST_COMPLETION = 100_000


class Constraint(NamedTuple):
    """Something that a sentence must be."""

    kind: str
    text: str
    words: tuple[str, ...] = ()
    size: int = 0
    letter: str = ""

    def holds(self, sentence: list[str]) -> bool:
        """Whether it is so for a sentence of these words."""
        if self.kind == "length":
            return len(sentence) == self.size
        if self.kind == "inclusion":
            return set(self.words) <= set(sentence)
        if self.kind == "avoidance":
            return bool(sentence) and not any(self.letter in word for word in sentence)
        first, second = self.words
        if first not in sentence or second not in sentence:
            return False
        return sentence.index(first) < sentence.index(second)


class LanguageTask(Task):
    """One sentence to write."""

    def __init__(
        self,
        constraints: list[Constraint],
        example: list[str],
        vocabulary: list[str],
    ) -> None:
        self.kind = constraints[0].kind
        self.constraints = constraints
        self._example, self._vocabulary = example, vocabulary
        self._written: list[str] = []
        wishes = "\n".join(f"- {constraint.text}" for constraint in constraints)
        self.prompt = (
            "Write one sentence in lower case, words separated by single spaces, ending with a "
            f"full stop and nothing else.\n- Use only these words: {', '.join(vocabulary)}.\n"
            f"- No word twice.\n{wishes}"
        )

    def observe(self) -> NDArray[np.float32]:
        """Length asked for; for each word whether it is asked for, unwanted, used; what holds."""
        wanted = {word for c in self.constraints for word in c.words}
        letters = {c.letter for c in self.constraints if c.letter}
        length = next((c.size for c in self.constraints if c.kind == "length"), 0)
        ordered = next((c.words for c in self.constraints if c.kind == "ordering"), ())
        words = self._vocabulary
        asked = [
            0.5 + 0.5 * (word == ordered[0]) if word in ordered else float(word in wanted)
            for word in words
        ]
        unwanted = [float(any(letter in word for letter in letters)) for word in words]
        used = [float(word in self._written) for word in words]
        holds = [1.0 if c.holds(self._written) else -1.0 for c in self.constraints]
        return pad(
            one_hot(KINDS.index(self.kind), len(KINDS)),
            asked,
            unwanted,
            used,
            [length / 10, (length - len(self._written)) / 10],
            holds,
        )

    def act(self, action: int) -> Verdict:
        """Add a word, or end the sentence."""
        if action == STOP:
            return self._judge(self._written)
        if len(self._written) < LONGEST:
            self._written.append(self._vocabulary[action])
        return Verdict(facts={"threads": self._threads(self._written)})

    def reply(self, completion: str) -> Verdict:
        """Judge a sentence."""
        text = completion[:LONGEST_COMPLETION].strip()
        if not re.fullmatch(r"[a-z]+( [a-z]+)*\.", text):
            return Verdict(is_over=True, facts={"malformed": text[:50]})
        return self._judge(text[:-1].split(" "))

    def _judge(self, sentence: list[str]) -> Verdict:
        known = set(self._vocabulary)
        kept = [constraint.holds(sentence) for constraint in self.constraints]
        kept.append(bool(sentence) and set(sentence) <= known)
        kept.append(bool(sentence) and len(set(sentence)) == len(sentence))
        share = sum(kept) / len(kept)
        facts = {"threads": self._threads(sentence)}
        if all(kept):
            return Verdict(is_over=True, is_correct=True, share=1.0, facts=facts)
        return Verdict(is_over=True, share=share, facts=facts)

    def _threads(self, sentence: list[str]) -> dict[str, float]:
        """Scores from 0 to 1 of what one may want besides the task."""
        letters = {c.letter for c in self.constraints if c.letter}
        roles = [_role(word) for word in sentence]
        pairs = list(itertools.pairwise(roles))
        fluent = sum(pair in GRAMMATICAL for pair in pairs)
        return {
            "task_completion": float(all(c.holds(sentence) for c in self.constraints)),
            "coherence": fluent / len(pairs) if pairs else 0.0,
            "safety": float(not any(letter in w for letter in letters for w in sentence)),
            "creativity": len(set(sentence)) / len(sentence) if sentence else 0.0,
            "efficiency": 1 - min(1.0, len(sentence) / LONGEST),
        }

    def solution(self) -> list[int]:
        """The words of the example."""
        return [*(self._vocabulary.index(word) for word in self._example), STOP]

    def right_replies(self) -> list[str]:
        """The example."""
        return [" ".join(self._example) + "."]


GRAMMATICAL = {
    ("adjective", "adjective"),
    ("adjective", "noun"),
    ("noun", "verb"),
    ("verb", "adjective"),
    ("verb", "noun"),
    ("verb", "adverb"),
    ("noun", "adverb"),
}
"""Which kind of word may follow which."""


def _role(word: str) -> str:
    for role, words in (("noun", NOUNS), ("verb", VERBS), ("adjective", ADJECTIVES)):
        if word in words:
            return role
    return "adverb"


class LanguageFamily(Family[LanguageConfig]):
    """See module."""

    name = EnvironmentType.LANGUAGE
    summary = "Write a sentence that keeps all of several constraints."
    config_type = LanguageConfig

    def make(self, level: float, random: np.random.Generator) -> LanguageTask:
        """A sentence is made first, then constraints that it keeps."""

        def some(words: tuple[str, ...], count: int) -> list[str]:
            return [str(word) for word in random.permutation(words)[:count]]

        nouns, verbs = some(NOUNS, 2), some(VERBS, 1)
        example = [nouns[0], verbs[0], nouns[1]]
        extra = spread(0, 3, level)
        if extra:
            example[0:0] = some(ADJECTIVES, extra)
        if level > 0.5:
            example += some(ADVERBS, 1)
        others = [w for w in (*NOUNS, *VERBS, *ADJECTIVES, *ADVERBS) if w not in example]
        filling = [str(word) for word in random.permutation(others)[: VOCABULARY - len(example)]]
        joined = [*example, *filling]
        vocabulary = [joined[int(n)] for n in random.permutation(len(joined))]
        kinds = [str(kind) for kind in random.permutation(self.config.problem_types)]
        constraints = [
            constraint
            for kind in kinds[: 1 + spread(0, 3, level)]
            if (constraint := _constrain(kind, example, filling, random)) is not None
        ]
        constraints = constraints or [_length(example)]
        return LanguageTask(constraints, example, vocabulary)


def _length(example: list[str]) -> Constraint:
    return Constraint("length", f"It has exactly {len(example)} words.", size=len(example))


def _constrain(
    kind: str, example: list[str], filling: list[str], random: np.random.Generator
) -> Constraint | None:
    """A constraint of this kind that the example keeps, if there is one."""
    if kind == "length":
        return _length(example)
    if kind == "inclusion":
        word = str(random.choice(example))
        return Constraint("inclusion", f"It has the word {word}.", words=(word,))
    if kind == "avoidance":
        free = sorted(set("".join(filling)) - set("".join(example)))
        if not free:
            return None
        letter = str(random.choice(free))
        return Constraint("avoidance", f"No word has the letter {letter}.", letter=letter)
    first, second = sorted(int(n) for n in random.permutation(len(example))[:2])
    words = (example[first], example[second])
    return Constraint("ordering", f"It has {words[0]} before {words[1]}.", words=words)
