"""Mathematics: procedural problems whose answer is a number.

Most are made and worded by reasoning-gym (arXiv:2505.24760); calculus and statistics, whose
answers it gives as formulas or not at all, are made here. A policy network types the answer.
"""

from __future__ import annotations

import functools
import re
import statistics
import warnings
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loomos.manifest import EnvironmentType
from loomos.rl.environments.config import MathConfig
from loomos.rl.environments.task import Family, Task, Verdict, one_hot, pad, spread

SYMBOLS = "0123456789-/."
"""What is typed, by action; then a step back, and the submission."""
BACK, SUBMIT = len(SYMBOLS), len(SYMBOLS) + 1

LONGEST_ANSWER = 10
LONGEST_COMPLETION = 100_000
SHOWN_NUMBERS = 5
KINDS = ("arithmetic", "algebra", "calculus", "statistics", "geometry", "number_theory", "logic")


class Problem(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str
    shape: int
    """Which kind of question within its type, so that a policy network can tell."""


class MathTask(Task):
    """One problem."""

    def __init__(self, kind: str, problem: Problem, *, terse: bool = False) -> None:
        self.kind = kind
        self.problem = problem
        self.prompt = (
            f"{problem.question}\n\nAnswer with the number only, as an integer, a fraction a/b or "
            "a decimal, on the last line after 'Answer:'."
        )
        if terse:
            self.prompt = problem.question.rpartition(": ")[2]
        self._wanted = read_number(problem.answer)
        assert self._wanted is not None, problem
        self._typed = ""
        self._shown = _features(kind, problem)

    def observe(self) -> NDArray[np.float32]:
        """Type, numbers of the question, and what has been typed."""
        typed = [0.0] * LONGEST_ANSWER
        for place, symbol in enumerate(reversed(self._typed)):
            typed[place] = (SYMBOLS.index(symbol) + 1) / len(SYMBOLS)
        return pad(self._shown, typed, [len(self._typed) / LONGEST_ANSWER])

    def act(self, action: int) -> Verdict:
        """Type a symbol, go back, or submit."""
        if action == SUBMIT:
            return self._judge(self._typed)
        if action == BACK:
            self._typed = self._typed[:-1]
        elif action < len(SYMBOLS) and len(self._typed) < LONGEST_ANSWER:
            self._typed += SYMBOLS[action]
        return Verdict()

    def reply(self, completion: str) -> Verdict:
        """Judge the last number after `Answer:`, or a reply that is a number."""
        return self._judge(answer_of(completion))

    def _judge(self, text: str) -> Verdict:
        found, wanted = read_number(text), self._wanted
        assert wanted is not None
        if found is None:
            return Verdict(is_over=True, facts={"answer": text[:50]})
        if found == wanted:
            return Verdict(is_over=True, is_correct=True, share=1.0)
        away = min(1.0, float(abs(found - wanted) / max(Fraction(1), abs(wanted))))
        return Verdict(is_over=True, share=0.5 * (1 - away), facts={"answer": text[:50]})

    def solution(self) -> list[int]:
        """Type the answer."""
        return [*(SYMBOLS.index(symbol) for symbol in _typable(self._wanted)), SUBMIT]

    def right_replies(self) -> list[str]:
        """The answer."""
        return [f"Answer: {self.problem.answer}"]


def answer_of(completion: str) -> str:
    """What a completion gives as its answer: after the last `Answer:`, else all of it."""
    text = completion[-LONGEST_COMPLETION:]
    _, found, after = text.rpartition("Answer:")
    return (after if found else text).strip().rstrip(".").strip()


def read_number(text: str) -> Fraction | None:
    """An integer, fraction or decimal exactly; None if the text is not one."""
    text = text.strip()
    if len(text) > 40 or not re.fullmatch(r"[-+]?\d+(\.\d+)?|[-+]?\d+/\d+", text, re.ASCII):
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None


def _typable(wanted: Fraction | None) -> str:
    assert wanted is not None
    text = str(wanted)
    if len(text) > LONGEST_ANSWER:
        decimal = f"{float(wanted):.8f}".rstrip("0")
        text = decimal if Fraction(decimal) == wanted else text
    return text


def _features(kind: str, problem: Problem) -> NDArray[np.float32]:
    """Type, shape, and of each of the first numbers its sign, digits and size."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", problem.question)[:SHOWN_NUMBERS]
    shown: list[float] = []
    for number in numbers:
        whole = abs(int(float(number)))
        digits = [(whole // 10**place) % 10 / 10 for place in range(4)]
        shown += [-1.0 if number.startswith("-") else 1.0, *digits, float(np.tanh(whole / 100))]
    signs = [1.0 if sign == "+" else -1.0 for sign in re.findall(r" ([-+]) ", problem.question)]
    return np.concatenate(
        [
            one_hot(KINDS.index(kind), len(KINDS)),
            one_hot(problem.shape % 4, 4),
            np.asarray((signs + [0.0] * 4)[:4], np.float32),
            np.asarray((shown + [0.0] * 6 * SHOWN_NUMBERS)[: 6 * SHOWN_NUMBERS], np.float32),
        ]
    )


# --- making problems ----------------------------------------------------------------------------


class MathFamily(Family[MathConfig]):
    """See module."""

    name = EnvironmentType.MATH
    summary = "Solve problems whose answer is a number."
    config_type = MathConfig

    def make(self, level: float, random: np.random.Generator) -> MathTask:
        """See base class."""
        kind = str(random.choice(self.config.problem_types))
        for _ in range(100):
            problem = _MAKERS[kind](level, random)
            wanted = read_number(problem.answer)
            if wanted is not None and len(_typable(wanted)) <= LONGEST_ANSWER:
                return MathTask(kind, problem, terse=self.config.terse)
        raise AssertionError(f"no {kind} problem has an answer that can be typed")


@functools.cache
def _reasoning_gym() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a dependency's old syntax
        import reasoning_gym
    return reasoning_gym


def _ask(dataset: str, shape: int, random: np.random.Generator, **config: Any) -> Problem:
    """One item of a dataset of reasoning-gym."""
    seed = int(random.integers(2**31))
    item = _reasoning_gym().create_dataset(dataset, size=1, seed=seed, **config)[0]
    return Problem(item["question"], str(item["answer"]), shape)


def _arithmetic(level: float, random: np.random.Generator) -> Problem:
    if level == 0 or random.random() < 0.6:
        terms, digits = spread(2, 5, level), spread(1, 4, level)
        return _ask(
            "chain_sum",
            0,
            random,
            min_terms=2,
            max_terms=terms,
            min_digits=1,
            max_digits=digits,
            allow_negation=level > 0.5,
        )
    digits = spread(1, 3, level)
    return _ask("products", 1, random, min_digits=1, max_digits=digits)


def _algebra(level: float, random: np.random.Generator) -> Problem:
    limit = spread(9, 99, level)
    return _ask(
        "simple_equations",
        0,
        random,
        min_terms=2,
        max_terms=spread(2, 4, level),
        min_value=1,
        max_value=limit,
    )


def _polynomial(coefficients: list[int]) -> str:
    """In words of a textbook: 3x^2 - x + 4."""
    text = ""
    for power in range(len(coefficients) - 1, -1, -1):
        factor = coefficients[power]
        if factor == 0:
            continue
        sign = ("-" if factor < 0 else "") if not text else (" - " if factor < 0 else " + ")
        size = "" if abs(factor) == 1 and power else str(abs(factor))
        text += sign + size + ("" if power == 0 else "x" if power == 1 else f"x^{power}")
    return text or "0"


def _calculus(level: float, random: np.random.Generator) -> Problem:
    """A derivative at a point, or an integral between two, of a polynomial."""
    degree = spread(1, 3, level)
    size = spread(5, 12, level)
    factors = [int(n) for n in random.integers(-size, size + 1, degree + 1)]
    factors[-1] = int(random.integers(1, size))
    if random.random() < 0.5:
        at = int(random.integers(-3, 4))
        value = sum(power * factors[power] * at ** (power - 1) for power in range(1, degree + 1))
        return Problem(
            f"What is the derivative of {_polynomial(factors)} at x = {at}?", str(value), 0
        )
    low, high = 0, int(random.integers(1, 4))
    area = sum(Fraction(f * high ** (p + 1), p + 1) for p, f in enumerate(factors))
    return Problem(
        f"What is the integral of {_polynomial(factors)} from x = {low} to x = {high}?",
        str(area),
        1,
    )


def _statistics(level: float, random: np.random.Generator) -> Problem:
    """A mean, median, mode or range of whole numbers."""
    values = [int(v) for v in random.integers(0, spread(10, 100, level), spread(3, 7, level))]
    if random.random() < 0.25:
        values.append(values[0])  # so that there is a mode
        return Problem(
            f"What is the smallest mode of {_listed(values)}?",
            str(min(statistics.multimode(values))),
            2,
        )
    shape = int(random.choice([0, 1, 3]))
    name = {0: "mean", 1: "median", 3: "range (largest minus smallest)"}[shape]
    answers = {
        0: Fraction(sum(values), len(values)),
        1: Fraction(statistics.median(values)),
        3: Fraction(max(values) - min(values)),
    }
    return Problem(f"What is the {name} of {_listed(values)}?", str(answers[shape]), shape)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _geometry(level: float, random: np.random.Generator) -> Problem:
    return _ask("simple_geometry", 0, random, min_sides=3, max_sides=spread(3, 6, level))


def _number_theory(level: float, random: np.random.Generator) -> Problem:
    shape = int(random.integers(3))
    if shape == 0:
        return _ask("gcd", 0, random, min_value=1, max_value=spread(20, 1000, level))
    if shape == 1:
        return _ask("lcm", 1, random, min_value=1, max_value=spread(10, 100, level))
    return _ask("count_bits", 2, random, min_n=1, max_n=spread(31, 10**6, level))


def _logic(level: float, random: np.random.Generator) -> Problem:
    return _ask("self_reference", 0, random, difficulty=spread(1, 10, level))


_MAKERS = {
    "arithmetic": _arithmetic,
    "algebra": _algebra,
    "calculus": _calculus,
    "statistics": _statistics,
    "geometry": _geometry,
    "number_theory": _number_theory,
    "logic": _logic,
}
