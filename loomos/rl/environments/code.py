"""Code: mend a program, make it fast, or write its tests. Judged by running it in the sandbox.

Nothing that is expected enters the sandbox; outputs are compared outside, by value and type. An
attempt to get out ends the run, scores nothing, and is reported.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loomos.manifest import EnvironmentType
from loomos.rl.environments.config import CodeConfig
from loomos.rl.environments.programs import PROGRAMS, Program, telling_inputs
from loomos.rl.environments.task import ACTIONS, Family, Task, Verdict, one_hot, pad, spread
from loomos.rl.sandbox import Limits, Outputs, run_function, run_query

KINDS = ("debugging", "optimization", "testing")
SUBMIT = ACTIONS - 1
"""The action that hands in the candidate that was run last; the others run one."""

TESTS = 8
LARGE = 20_000
"""Numbers that a fast program must get through; a slow one takes 10,000 times as many steps."""

LONGEST_PROGRAM = 50_000
LONGEST_LINE = 100


class CodeTask(Task):
    """One program to write."""

    def __init__(
        self,
        kind: str,
        program: Program,
        config: CodeConfig,
        size: int,
        random: np.random.Generator,
    ) -> None:
        self.kind, self.program, self._config = kind, program, config
        drawn = [program.inputs(random, 1 + (size * n) // TESTS) for n in range(TESTS)]
        self._inputs = [*telling_inputs(program), *drawn]
        if kind == "optimization":
            self._inputs.append(program.inputs(random, LARGE))
        self._candidates = self._make_candidates(random)
        self._shift = int(random.integers(SUBMIT))
        self._results = np.zeros(ACTIONS, np.float32)
        self._tried = -1
        shown = self._candidates[1] if kind == "debugging" else program.slow or program.source
        self.prompt = (
            f"{_WISH[kind].format(program=program)}\n\n```{program.language}\n{shown}```\n"
        )

    def _make_candidates(self, random: np.random.Generator) -> list[str]:
        """The right program first, then different wrong ones."""
        program = self.program
        if self.kind == "testing":
            return _candidate_tests(self._inputs, self._expected())
        wrong = [program.source.replace(a, b, 1) for a, b in program.faults]
        wrong = [str(source) for source in random.permutation(wrong)]
        if self.kind == "optimization":
            wrong = [program.slow, *wrong]
        return [program.source, *wrong]

    # --- the policy's face ---

    def observe(self) -> NDArray[np.float32]:
        """The kind, and of each candidate the share of tests that it passed when it was run."""
        last = one_hot(self._tried, ACTIONS) if self._tried >= 0 else np.zeros(ACTIONS, np.float32)
        there = [float(self._place(action) < len(self._candidates)) for action in range(SUBMIT)]
        return pad(one_hot(KINDS.index(self.kind), 3), there, self._results, last)

    def _place(self, action: int) -> int:
        """Which candidate an action runs; they are in another order in each task."""
        return (action + self._shift) % SUBMIT

    def act(self, action: int) -> Verdict:
        """Run a candidate, or hand in the one run last."""
        if action == SUBMIT:
            if self._tried < 0:
                return Verdict(is_over=True, facts={"handed_in": None})
            return self._judge(self._candidates[self._place(self._tried)])
        place = self._place(action)
        if place < len(self._candidates):
            self._tried = action
            self._results[action] = 2 * self._judge(self._candidates[place]).share - 1
        return Verdict()

    def solution(self) -> list[int]:
        """Run the right one, hand it in."""
        right = next(action for action in range(SUBMIT) if self._place(action) == 0)
        return [right, SUBMIT]

    # --- the language model's face ---

    def reply(self, completion: str) -> Verdict:
        """Judge the last fenced block, or the whole reply."""
        blocks = re.findall(r"```[a-z]*\n(.*?)```", completion[: 4 * LONGEST_PROGRAM], re.DOTALL)
        return self._judge(blocks[-1] if blocks else completion)

    def right_replies(self) -> list[str]:
        """The right program, or tests that find every planted fault."""
        return [f"```\n{self._candidates[0]}```"]

    # --- judging ---

    def _judge(self, text: str) -> Verdict:
        if len(text) > LONGEST_PROGRAM or "\x00" in text:
            return Verdict(is_over=True, facts={"refused": "too long, or not text"})
        if self.kind == "testing":
            return self._judge_tests(text)
        if self._config.code_style_requirements and (problem := style_problem(self.program, text)):
            return Verdict(is_over=True, facts={"style": problem})
        outputs = self._run(text, self._inputs)
        facts = {"stopped": outputs.stopped, "detail": outputs.detail} if outputs.stopped else {}
        right = sum(
            _same(found, wanted)
            for found, wanted in zip(outputs.values, self._expected(), strict=False)
        )
        if outputs.stopped == "forbidden call":
            return Verdict(is_over=True, facts={**facts, "escape": outputs.detail})
        if right == len(self._inputs):
            return Verdict(is_over=True, is_correct=True, share=1.0)
        return Verdict(is_over=True, share=right / len(self._inputs), facts=facts)

    def _expected(self) -> list[dict[str, Any]]:
        return self._run(self.program.source, self._inputs).values

    def _run(self, source: str, inputs: list[list[Any]]) -> Outputs:
        seconds = self._config.execution_timeout
        return run(self.program.language, self.program.name, source, json.dumps(inputs), seconds)

    def _judge_tests(self, text: str) -> Verdict:
        """Tests are right if the program passes them all and enough broken ones do not."""
        cases = read_cases(text)
        if not cases:
            return Verdict(is_over=True, facts={"malformed": text[:50]})
        inputs = [case[0] for case in cases]
        wanted = [{"value": case[1]} for case in cases]
        found = self._run(self.program.source, inputs).values
        if len(found) < len(wanted) or not all(map(_same, found, wanted)):
            return Verdict(is_over=True, facts={"wrong": "the right program does not pass"})
        killed = 0
        for before, after in self.program.faults:
            broken = self._run(self.program.source.replace(before, after, 1), inputs).values
            killed += len(broken) < len(wanted) or not all(map(_same, broken, wanted))
        share = killed / len(self.program.faults)
        if share >= self._config.test_suite_coverage:
            return Verdict(is_over=True, is_correct=True, share=1.0)
        return Verdict(is_over=True, share=share, facts={"killed": killed})


_WISH = {
    "debugging": (
        "This {program.language} program should be one that {program.purpose}. It has a fault. "
        "Answer with the whole mended program in a fenced block."
    ),
    "optimization": (
        "This {program.language} program {program.purpose}. It is too slow. Answer with a faster "
        "program of the same name in a fenced block."
    ),
    "testing": (
        "This {program.language} program {program.purpose}. Write tests that find faults in it: "
        "answer with a JSON list of [arguments, result] in a fenced block, at most 50, where "
        "arguments is the list of a call's arguments."
    ),
}


@functools.lru_cache(maxsize=20_000)
def run(language: str, name: str, source: str, inputs: str, seconds: float) -> Outputs:
    """Outputs of a program; the same program on the same inputs is run once."""
    limits = Limits(wall_s=seconds, cpu_s=max(1, round(seconds)))
    given = json.loads(inputs)
    if language == "sql":
        return run_query(source, given, limits=limits)
    return run_function(language, source, name, given, limits=limits)


def _same(found: Any, wanted: Any) -> bool:
    """Equal by value and type: true is not 1, and a float is no integer."""
    return json.dumps(found, sort_keys=True) == json.dumps(wanted, sort_keys=True)


def read_cases(text: str) -> list[list[Any]]:
    """The [arguments, result] pairs of a JSON list; none if it is anything else."""
    try:
        cases = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(cases, list) or not 0 < len(cases) <= 50:
        return []
    fits = all(isinstance(c, list) and len(c) == 2 and isinstance(c[0], list) for c in cases)
    return cases if fits else []


def _candidate_tests(inputs: list[list[Any]], expected: list[dict[str, Any]]) -> list[str]:
    """Tests that find the faults, then sets of one test, some of them wrong."""
    pairs = [[i, e["value"]] for i, e in zip(inputs, expected, strict=True) if "value" in e]
    few = [json.dumps([[arguments, None]]) for arguments, _ in pairs[:4]]
    return [json.dumps(pairs), json.dumps(pairs[:1]), *few, "[]"]


def style_problem(program: Program, text: str) -> str:
    """What is against the style in a Python program; empty if nothing is."""
    if program.language != "python":
        return ""
    if any(len(line) > LONGEST_LINE or "\t" in line for line in text.splitlines()):
        return f"a line has a tab or more than {LONGEST_LINE} columns"
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "it is not Python"
    bare = any(isinstance(n, ast.ExceptHandler) and n.type is None for n in ast.walk(tree))
    return "a bare except" if bare else ""


class CodeFamily(Family[CodeConfig]):
    """See module."""

    name = EnvironmentType.CODE
    summary = "Mend small programs, make them fast, or write their tests."
    config_type = CodeConfig

    def make(self, level: float, random: np.random.Generator) -> CodeTask:
        """Tests and speed are asked of Python only; where it is not wanted, programs are mended."""
        language = str(random.choice(self.config.languages))
        kind = str(random.choice(self.config.task_types))
        if language == "sql" or (kind == "optimization" and language != "python"):
            kind = "debugging"
        fitting = [
            program
            for program in PROGRAMS
            if program.language == language and (kind != "optimization" or program.slow)
        ]
        program = fitting[int(random.integers(len(fitting)))]
        return CodeTask(kind, program, self.config, spread(4, 16, level), random)
