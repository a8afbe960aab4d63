"""Rewards by functions of one's own, with the signature that TRL's `reward_funcs` have.

    def reward(prompts, completions, **columns) -> list[float | None]

`prompts` and `completions` are as many strings, or lists of messages (`role`, `content`) where the
prompts are conversations; every other field of the dataset comes as a list under its name. None
means that the function has nothing to say of a completion. Rewards of several functions are
weighed and added.

A function comes from an entry point of an installed package, which is called in the rank, or from
a file that was pinned with the job's inputs. The file runs in the sandbox of `loomos.rl.sandbox`,
or, if the manifest says `sandbox: false`, in a process of its own without the worker's secrets,
where installed packages can be imported. The functions must give the same for the same, or a
resumed run is another one.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import json
import math
import os
import select
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from loomos.errors import InvalidInput
from loomos.manifest import RewardFunction
from loomos.rl.sandbox import Limits, run_function

ENTRY_POINTS = "loomos.rewards"
"""Group of entry points that name reward functions."""
SECRETS = ("LOOMOS_", "AWS_")
"""Beginnings of names of variables that a file's process does not get to see."""
CALL = "_loomos_call"
_WRAPPER = """

def {call}(given):
    import inspect as _inspect
    function = {name}
    parameters = _inspect.signature(function).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = {{p.name for p in parameters}}
        given = {{n: v for n, v in given.items() if n in names}}
    return [None if value is None else float(value) for value in function(**given)]
"""

Columns = dict[str, list[Any]]


class Reward(ABC):
    """One function, wherever it runs."""

    def __init__(self, config: RewardFunction, place: str) -> None:
        self.config, self._place = config, place

    def __call__(self, given: Columns) -> list[float | None]:
        """Rewards of completions.

        Args:
            given: `prompts`, `completions` and the other columns, all of the same length.

        Raises:
            InvalidInput: the function failed, or gave something else than as many numbers.
        """
        found = self._call(given)
        count = len(given["completions"])
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != count:
            size = len(found) if hasattr(found, "__len__") else type(found).__name__
            raise self._failed(f"gave {size} instead of {count} rewards, one to each completion")
        return [self._number(value) for value in found]

    def _number(self, value: Any) -> float | None:
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self._failed(f"gave {value!r:.80}, which is no number") from None
        if not math.isfinite(number):
            raise self._failed(f"gave {number}; give finite numbers, or None for no opinion")
        return number

    def _failed(self, what: str) -> InvalidInput:
        return InvalidInput(f"{self._place} ({self.config.function}) {what}")

    @abstractmethod
    def _call(self, given: Columns) -> Any:
        """Call the function."""

    def close(self) -> None:
        """Let go of processes."""
        return


class InstalledReward(Reward):
    """A function of an installed package, named by an entry point."""

    def __init__(self, config: RewardFunction, place: str) -> None:
        super().__init__(config, place)
        known = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
        if config.function not in known:
            names = ", ".join(sorted(known)) or "none"
            raise InvalidInput(
                f"{place}.function {config.function!r} is no entry point of the group "
                f"{ENTRY_POINTS!r} on this node (there are: {names}); install the package that has "
                "it, or name a file"
            )
        try:
            self._function: Callable[..., Any] = known[config.function].load()
        except Exception as error:
            raise self._failed(f"cannot be loaded: {error}") from error

    def _call(self, given: Columns) -> Any:
        try:
            return self._function(**accepted(self._function, given))
        except Exception as error:
            raise self._failed(f"raised {type(error).__name__}: {error}") from error


class JailedReward(Reward):
    """A file's function, in a new sandbox for each batch: the standard library, no more."""

    def __init__(self, config: RewardFunction, place: str, code: str) -> None:
        super().__init__(config, place)
        self._code = code + _WRAPPER.format(call=CALL, name=config.function)

    def _call(self, given: Columns) -> Any:
        limit_s = self.config.timeout.total_seconds()
        limits = Limits(wall_s=limit_s, cpu_s=math.ceil(limit_s), output_bytes=16 * 2**20)
        ran = run_function("python", self._code, CALL, [[given]], limits=limits)
        if not ran.values:
            why = f"was stopped: {ran.stopped}" if ran.stopped else "ended"
            raise self._failed(f"{why} ({ran.detail or 'without a word'})")
        if "error" in ran.values[0]:
            raise self._failed(f"raised {ran.values[0]['error']} {ran.detail}".rstrip())
        return ran.values[0]["value"]


class OwnProcessReward(Reward):
    """A file's function in a process of its own, which may import what is installed."""

    def __init__(self, config: RewardFunction, place: str, code: str) -> None:
        super().__init__(config, place)
        self._code = code + _WRAPPER.format(call=CALL, name=config.function)
        self._process: subprocess.Popen[bytes] | None = None

    def _call(self, given: Columns) -> Any:
        process = self._process or self._started()
        self._process = process
        self._write({"given": given})
        answer = self._answer(process)
        if "error" in answer:
            raise self._failed(f"raised {answer['error']}")
        return answer["value"]

    def _started(self) -> subprocess.Popen[bytes]:
        kept = {n: v for n, v in os.environ.items() if not n.startswith(SECRETS)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loomos.rl.language.reward_process", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=kept,
        )
        self._write({"code": self._code, "function": CALL})
        return self._process

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # how it ended is found when it is read
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdout is not None
        limit_s = self.config.timeout.total_seconds()
        deadline, line = time.monotonic() + limit_s, b""
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([process.stdout], [], [], left)[0]:
                self.close()
                raise self._failed(f"took longer than its timeout ({limit_s:g} s)")
            chunk = os.read(process.stdout.fileno(), 1 << 20)
            if not chunk:
                self.close()
                raise self._failed(f"ended its process (exit {process.returncode})")
            line += chunk
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def accepted(function: Callable[..., Any], given: Columns) -> Columns:
    """What of the columns a function takes: all, unless it has no `**columns`."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return given
    names = {p.name for p in parameters}
    return {name: values for name, values in given.items() if name in names}


class Rewards:
    """All functions of a job, weighed."""

    def __init__(
        self, functions: Sequence[RewardFunction], code_of: Callable[[RewardFunction], str]
    ) -> None:
        """Load them.

        Args:
            functions: as the manifest names them.
            code_of: text of a function's pinned file.

        Raises:
            InvalidInput: one cannot be loaded; names it.
        """
        self._all: list[Reward] = []
        for number, function in enumerate(functions):
            place = f"rewards.{number}"
            if function.file is None:
                self._all.append(InstalledReward(function, place))
            elif function.sandbox:
                self._all.append(JailedReward(function, place, code_of(function)))
            else:
                self._all.append(OwnProcessReward(function, place, code_of(function)))

    def __call__(self, given: Columns) -> list[float]:
        """The weighed sum of the rewards of each completion; 0 where no function says anything."""
        sums = [0.0] * len(given["completions"])
        for reward in self._all:
            for place, value in enumerate(reward(given)):
                sums[place] += reward.config.weight * (value or 0.0)
        return sums

    def close(self) -> None:
        """Let go of processes."""
        for reward in self._all:
            reward.close()
