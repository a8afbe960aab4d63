"""A process that calls the functions of trials, one at a time, in JSON lines.

    -> {"request": TrialRequest, "state": FILE or null, "reports": [[step, value]], "save": FILE}
    <- {"report": [step, value]}          for each report
    <- {"saved": true}                    the file holds a state; go on with a line "ok"
    <- {"ended": "completed" | "pruned" | "failed", "metrics": {}, "rungs": 0, "error": ""}

Functions that were called once stay imported. What they print goes to stderr. The process has no
secrets of LoomOS in its environment, and ends with the worker that started it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from pathlib import Path
from typing import Any

from loomos.arguments import take_arguments
from loomos.errors import InvalidInput
from loomos.jobs.experiments import TrialRequest
from loomos.lifeline import die_with_parent
from loomos.weaver.trial import Trial, TrialPruned, find_objective, metrics_of

LONGEST_ERROR = 1000


def serve() -> None:
    """Call functions until the input ends."""
    die_with_parent(os.getppid())
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path.insert(0, os.getcwd())

    def say(**line: Any) -> None:
        print(json.dumps(line), file=out)

    for line in sys.stdin:
        asked = json.loads(line)
        request = TrialRequest.model_validate(asked["request"])
        say(**_run(request, asked, say))


def trial_seed(seed: int, number: int) -> int:
    """Seed of one trial, below 2**31."""
    return random.Random(f"{seed}/trial/{number}").randrange(2**31)


def _run(request: TrialRequest, asked: dict[str, Any], say: Any) -> dict[str, Any]:
    def on_save(state: bytes) -> None:
        Path(asked["save"]).write_bytes(state)
        say(saved=True)
        if sys.stdin.readline().strip() != "ok":
            raise SystemExit(1)

    trial = Trial(
        number=request.number,
        params=request.params,
        seed=trial_seed(request.seed, request.number),
        arguments=json.loads(request.arguments_json),
        rule=request.pruning,
        most_reports=request.most_reports,
        state=Path(asked["state"]).read_bytes() if asked["state"] else None,
        reports=[(step, value) for step, value in asked["reports"]],
        on_report=lambda step, value: say(report=[step, value]),
        on_save=on_save,
    )
    assert request.function is not None
    try:
        found = find_objective(request.function)(trial)
        metrics = metrics_of(found, [*request.metrics, *request.limits])
        return {"ended": "completed", "metrics": metrics, "rungs": trial.rungs}
    except TrialPruned:
        return {"ended": "pruned", "metrics": {}, "rungs": trial.rungs}
    except Exception as error:
        traceback.print_exc()
        text = (
            f"{type(error).__name__}: {error}"
            if not isinstance(error, InvalidInput)
            else str(error)
        )
        return {"ended": "failed", "error": text[:LONGEST_ERROR], "rungs": trial.rungs}


if __name__ == "__main__":
    take_arguments("loomos.weaver.runner", __doc__)
    serve()
