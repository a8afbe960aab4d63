"""The process of a reward function that is not in the sandbox: JSON lines in, JSON lines out.

It has none of the worker's secrets in its environment, and dies with the rank that started it. What
the function prints goes to standard error, which is the rank's log.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from loomos.arguments import take_arguments
from loomos.lifeline import die_with_parent


def main(parent: int) -> None:
    """Read the code, then call its function for each line."""
    die_with_parent(parent)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    first = json.loads(sys.stdin.readline())
    scope: dict[str, Any] = {"__name__": "rewards"}
    broken = ""
    try:
        exec(compile(first["code"], "rewards.py", "exec"), scope)
        function = scope[first["function"]]
    except BaseException as error:
        broken = f"{type(error).__name__}: {error}"
    for line in sys.stdin:
        answer: dict[str, Any] = {"error": broken}
        if not broken:
            try:
                answer = {"value": function(json.loads(line)["given"])}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    (process,) = take_arguments(
        "loomos.rl.language.reward_process",
        __doc__,
        needs={"parent": "id of the process that it dies with"},
    )
    main(int(process))
