"""A process that holds one experiment's study and answers for it, in JSON lines.

    -> {"state": StudyState}             makes the study, in place of the one there was
    -> {"request": SuggestRequest}
    <- {"suggested": Suggested}, or {"needs": "state"} if it lacks results, or
       {"error": {"type": ..., "message": ...}}

Control workers start it, so that they need load neither numpy nor Optuna. It may die at any time:
the next one is told everything again. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from loomos.arguments import take_arguments
from loomos.errors import InvalidInput
from loomos.jobs.experiments import StudyState, SuggestRequest
from loomos.lifeline import die_with_parent
from loomos.weaver.packing import unpack_study
from loomos.weaver.study import Study


def serve() -> None:
    """Answer until the input ends."""
    die_with_parent(os.getppid())
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    study: Study | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "state" in asked:
                study = Study(unpack_study(StudyState.model_validate(asked["state"])))
                continue
            print(json.dumps(_answer(study, asked["request"])), file=out)
        except InvalidInput as error:
            said = {"type": "InvalidInput", "message": str(error)}
            print(json.dumps({"error": said}), file=out)
        except Exception as error:
            traceback.print_exc()
            said = {"type": "StudyFailed", "message": f"the sampler failed: {error!r}"}
            print(json.dumps({"error": said}), file=out)


def _answer(study: Study | None, asked: dict[str, Any]) -> dict[str, Any]:
    request = SuggestRequest.model_validate(asked)
    if study is None or request.known_from > study.results:
        return {"needs": "state"}
    return {"suggested": study.suggest(request).model_dump(mode="json")}


if __name__ == "__main__":
    take_arguments("loomos.weaver.suggesting", __doc__)
    serve()
