"""A process that holds one experiment's study and answers for it, in JSON lines.

    -> a SuggestRequest
    <- {"suggested": ...} or {"error": {"type": ..., "message": ...}}

Control workers start it, so that they need load neither numpy nor Optuna. It may die at any time:
the next one says `needs_all` and is told everything again. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys

from loomos.errors import InvalidInput
from loomos.jobs.experiments import Suggested, SuggestRequest
from loomos.lifeline import die_with_parent
from loomos.weaver.study import Study


def serve() -> None:
    """Answer until the input ends."""
    die_with_parent(os.getppid())
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    study: Study | None = None
    for line in sys.stdin:
        request = SuggestRequest.model_validate_json(line)
        try:
            if request.earlier is not None and request.known_from == 0:
                study = Study(request.spec, request.earlier)
            found = Suggested(needs_all=True) if study is None else study.suggest(request)
            print(json.dumps({"suggested": found.model_dump(mode="json")}), file=out)
        except InvalidInput as error:
            print(json.dumps({"error": {"type": "InvalidInput", "message": str(error)}}), file=out)


if __name__ == "__main__":
    serve()
