"""What a function that is searched over gets, and how it is found."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from loomos.errors import InvalidInput
from loomos.jobs.experiments import Params
from loomos.jobs.pruning import PruningRule
from loomos.weaver.pruning import Judge

ENTRY_POINTS = "loomos.objectives"
MOST_STATE_BYTES = 256 * 1024 * 1024


class TrialPruned(Exception):
    """Raised by `Trial.report` when the trial is given up; let it pass through."""


class Trial:
    """One trial, as its function sees it.

    Example:
        >>> def objective(trial: Trial) -> float:
        ...     weight = 0.0
        ...     for epoch in range(1, 11):
        ...         weight += trial.params["rate"] * (1 - weight)
        ...         trial.report(epoch, (1 - weight) ** 2)
        ...     return (1 - weight) ** 2
    """

    def __init__(
        self,
        *,
        number: int,
        params: Params,
        seed: int,
        arguments: Mapping[str, Any],
        rule: PruningRule | None,
        most_reports: int,
        state: bytes | None,
        reports: list[tuple[int, float]],
        on_report: Callable[[int, float], None],
        on_save: Callable[[bytes], None],
    ) -> None:
        self.number = number
        """Counts from 0 within the experiment."""
        self.params = params
        """Chosen values; parameters that do not apply are left out."""
        self.seed = seed
        """Differs from trial to trial, and is the same when the trial is tried again."""
        self.arguments = arguments
        """From the document."""
        self.reports: list[tuple[int, float]] = []
        """What was reported, by an earlier attempt too."""
        self._judge = Judge(rule)
        self._most_reports = most_reports
        self._state, self._on_report, self._on_save = state, on_report, on_save
        for step, value in reports:
            self._judge.report(step, value)
            self.reports.append((step, value))

    @property
    def rungs(self) -> int:
        """Rungs at which it was judged."""
        return self._judge.rungs

    def report(self, step: int, value: float) -> None:
        """Tell how the first metric stands after `step`.

        Raises:
            TrialPruned: it is not worth going on.
            InvalidInput: steps do not rise, the value is not finite, or there are too many.
        """
        value = float(value)
        if self.reports and step <= self.reports[-1][0]:
            raise InvalidInput(f"report: step {step} after {self.reports[-1][0]}; steps must rise")
        if step < 0 or not math.isfinite(value):
            raise InvalidInput(f"report: step {step}, value {value}; give finite numbers from 0 on")
        if len(self.reports) == self._most_reports:
            raise InvalidInput(
                f"report: more than {self._most_reports} times; report every few steps"
            )
        self.reports.append((step, value))
        self._on_report(step, value)
        if self._judge.report(step, value):
            raise TrialPruned(f"at step {step}")

    def save(self, state: bytes) -> None:
        """Keep `state` with the reports so far: a retry, or a child in a population, gets it.

        Raises:
            InvalidInput: it is larger than 256 MiB.
        """
        if len(state) > MOST_STATE_BYTES:
            raise InvalidInput("save: more than 256 MiB; keep it in a store and save its key")
        self._state = state
        self._on_save(state)

    def load(self) -> bytes | None:
        """The newest state: of this trial's earlier attempt, else of its parent; None at first."""
        return self._state


Objective = Callable[[Trial], Any]


def find_objective(name: str) -> Objective:
    """A function by `package.module:name` or by the name that a package offers.

    Raises:
        InvalidInput: there is none.
    """
    module_name, colon, path = name.partition(":")
    if not colon:
        offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        if name not in offered:
            raise InvalidInput(
                f"spec.objective.function: no installed package offers {name!r}; write "
                f"package.module:name; known: {', '.join(sorted(offered)) or 'none'}"
            )
        found: Any = offered[name].load()
    else:
        try:
            found = importlib.import_module(module_name)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            raise InvalidInput(
                f"spec.objective.function: {name!r} cannot be imported where trials run: {error}"
            ) from None
    if not callable(found):
        raise InvalidInput(f"spec.objective.function: {name!r} is no function")
    function: Objective = found
    return function


def metrics_of(found: Any, wanted: list[str]) -> dict[str, float]:
    """What a function gave, as numbers by name.

    Args:
        found: a number, several in the order of the metrics, or a mapping by name.
        wanted: names of the metrics.

    Raises:
        InvalidInput: one is missing, or not a finite number.
    """
    if isinstance(found, Mapping):
        given = dict(found)
    else:
        values = list(found) if isinstance(found, list | tuple) else [found]
        if len(values) != len(wanted):
            raise InvalidInput(
                f"the function gave {len(values)} values for {len(wanted)} metrics "
                f"({', '.join(wanted)})"
            )
        given = dict(zip(wanted, values, strict=True))
    numbers: dict[str, float] = {}
    for name in dict.fromkeys([*wanted, *given]):
        try:
            numbers[name] = float(given[name])
        except KeyError:
            raise InvalidInput(f"the function gave no {name!r}") from None
        except (TypeError, ValueError):
            raise InvalidInput(f"{name}: {given[name]!r} is no number") from None
        if not math.isfinite(numbers[name]):
            raise InvalidInput(f"{name}: {numbers[name]} is not finite")
    return numbers
