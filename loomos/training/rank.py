"""One rank: a process that trains.

Started by `loomos.training.gang`, or by bare `torchrun`:

torchrun --nproc-per-node 2 -m loomos.training.rank request.json
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
from pathlib import Path
from types import FrameType

from loomos.arguments import take_arguments
from loomos.jobs.training import TrainOutcome
from loomos.lifeline import die_with_parent
from loomos.training.loop import train
from loomos.training.report import Reporter
from loomos.training.requests import RankRequest
from loomos.training.setup import RankContext


class _Stop:
    """Set by SIGTERM; the loop looks at it after each step."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _ask(self, signal_number: int, frame: FrameType | None) -> None:
        self.asked = True


def run_rank(request_file: str, parent_pid: int | None = None) -> TrainOutcome:
    """Train as this rank; report how it ended; raise what went wrong."""
    if parent_pid is not None:
        die_with_parent(parent_pid)
    stop = _Stop()
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s rank {os.environ['RANK']} %(levelname)s %(message)s",
        force=True,
    )
    request = RankRequest.model_validate_json(Path(request_file).read_text())
    reporter = Reporter(request.pipe, int(os.environ["RANK"]))
    context = RankContext(
        storage=request.storage,
        scratch=request.scratch,
        reporter=reporter,
        should_stop=lambda: stop.asked,
    )
    try:
        outcome = train(request.assignment, context)
    except BaseException as error:
        traceback.print_exc()
        reporter.failed(error)
        raise
    reporter.finished(outcome)
    return outcome


if __name__ == "__main__":
    (file,) = take_arguments(
        "loomos.training.rank", __doc__, needs={"request": "file with the request, in JSON"}
    )
    print(run_rank(file).model_dump_json())
