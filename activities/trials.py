"""Trials: a node with pool slots calls their functions, or trains, and answers for them.

A trial that fails is an answer, not a failure of the activity: the sweep decides whether it is
tried again. The activity itself fails only where the node does, and then another node takes over
from what the trial had saved.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.failures import application_error
from activities.json_lines import ChildDied, JsonLinesProcess
from activities.train import TrainActivities
from loomos.errors import NotFound, Unavailable
from loomos.jobs.cluster import NodeInfo
from loomos.jobs.experiments import TrialRequest, TrialResult, TrialState, trial_job_id
from loomos.jobs.training import TrainAssignment
from loomos.settings import Settings
from loomos.storage import Store, open_store
from loomos.storage.layout import trial_state_key
from loomos.weaver.results import training_result

HEARTBEAT_INTERVAL_S = 1.0
SECRETS = ("LOOMOS_", "AWS_")
"""Variables that functions do not get to see."""


class TrialActivities:
    """Runs trials, each in a slot: a process that stays warm, and some GPU where there is one."""

    def __init__(
        self, settings: Settings, train: TrainActivities, info: NodeInfo, slots: int
    ) -> None:
        self._train, self._info = train, info
        self._store = open_store(settings.storage)
        self._cost_per_s = settings.node.cost_per_hour / 3600 / max(1, slots)
        self._free = [_Slot(number, train.scratch) for number in range(slots)]
        self._slots = list(self._free)

    @activity.defn
    async def run_trial(self, request: TrialRequest) -> TrialResult:
        """Run a trial to its end.

        Raises:
            ApplicationError: this node leaves; retryable.
        """
        slot = self._free.pop()
        beating = asyncio.create_task(_heartbeats())
        began = time.monotonic()
        try:
            async with asyncio.timeout(request.timeout.total_seconds()):
                if request.training is not None:
                    result = await self._trained(request, slot)
                else:
                    result = await self._called(request, slot)
        except TimeoutError:
            result = TrialResult(
                state=TrialState.FAILED,
                error="it took longer than spec.trial_timeout; raise that or make trials shorter",
            )
        except asyncio.CancelledError:
            if activity.is_worker_shutdown():
                raise application_error("NodeLeft", "the node leaves", retryable=True) from None
            raise
        finally:
            beating.cancel()
            await slot.process.settle()
            self._free.append(slot)
        duration_s = time.monotonic() - began
        return result.model_copy(
            update={
                "node": self._info.node_id,
                "duration_s": round(duration_s, 3),
                "cost": duration_s * self._cost_per_s,
            }
        )

    async def close(self) -> None:
        """End the slots' processes."""
        for slot in self._slots:
            await slot.process.close()
            shutil.rmtree(slot.folder, ignore_errors=True)

    # --- functions ---

    async def _called(self, request: TrialRequest, slot: _Slot) -> TrialResult:
        reports, state = await self._saved(request)
        before = slot.folder / "before"
        if state is not None:
            before.write_bytes(state)
        asked = {
            "request": request.model_dump(mode="json"),
            "state": None if state is None else str(before),
            "reports": reports,
            "save": str(slot.folder / "save"),
        }
        try:
            await slot.process.send(json.dumps(asked))
            while "ended" not in (line := await slot.process.receive()):
                if "report" in line:
                    reports.append(line["report"])
                else:
                    await asyncio.to_thread(
                        _put_state, self._store, request, reports, slot.folder / "save"
                    )
                    await slot.process.reply("ok")
            slot.process.done()
        except ChildDied as died:
            code = died.code or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            line = {"ended": "failed", "error": f"the function's process {how}"}
        metrics: dict[str, float] = line.get("metrics", {})
        return TrialResult(
            state=TrialState(line["ended"]),
            values=[metrics[name] for name in request.metrics] if metrics else [],
            metrics={name: v for name, v in metrics.items() if name not in request.metrics},
            reports=[(step, value) for step, value in reports],
            rungs=line.get("rungs", 0),
            error=line.get("error", ""),
        )

    async def _saved(self, request: TrialRequest) -> tuple[list[list[float]], bytes | None]:
        """What an earlier attempt saved, with its reports then; else the parent's state."""
        if activity.info().attempt > 1 or request.retry:
            try:
                saved = await asyncio.to_thread(self._store.get, trial_state_key(request.job_id))
                header, _, state = saved.partition(b"\n")
                return json.loads(header)["reports"], state
            except NotFound:
                pass  # it had saved nothing
        if request.parent is None:
            return [], None
        parent = trial_state_key(trial_job_id(request.experiment_id, request.parent))
        try:
            return [], (await asyncio.to_thread(self._store.get, parent)).partition(b"\n")[2]
        except NotFound:
            return [], None

    # --- trainings ---

    async def _trained(self, request: TrialRequest, slot: _Slot) -> TrialResult:
        assert request.training is not None and request.inputs is not None
        began = time.monotonic()
        try:
            outcome = await self._train.run_ranks(
                TrainAssignment(
                    job_id=request.job_id,
                    generation=await asyncio.to_thread(self._open, request),
                    lease_epoch=0,
                    node_rank=0,
                    nodes=[self._info],
                    ranks_per_node=request.training.resources.ranks,
                    spec=request.training,
                    inputs=request.inputs,
                    devices=slot.devices(self._info, request.training.resources.ranks),
                    most_reports=request.most_reports,
                    pruning=request.pruning,
                ),
                tells_job=False,
            )
        except ApplicationError as error:
            if error.type == Unavailable.__name__:
                raise  # the store is away: the machine's fault, not the trial's
            return TrialResult(state=TrialState.FAILED, error=str(error.message)[:1000])
        if outcome.status == "stopped":
            raise asyncio.CancelledError
        return training_result(request, outcome, time.monotonic() - began)

    def _open(self, request: TrialRequest) -> int:
        """Fence older attempts; a child of a population first gets its parent's checkpoint."""
        from loomos.training.fences import open_generation
        from loomos.training.forking import fork

        if request.parent is not None:
            fork(self._store, trial_job_id(request.experiment_id, request.parent), request.job_id)
        info = activity.info()
        claim = f"{info.workflow_run_id}/{request.retry}/{info.attempt}"
        return open_generation(self._store, request.job_id, claim, from_scratch=False).generation


class _Slot:
    """A place for one trial at a time."""

    def __init__(self, number: int, scratch: Path) -> None:
        self._number = number
        (scratch / "trials").mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(dir=scratch / "trials"))
        self.process = JsonLinesProcess("loomos.weaver.runner", without=SECRETS)

    def devices(self, info: NodeInfo, ranks: int) -> list[int]:
        """GPUs of the trials in this slot, by turns."""
        if not info.gpus:
            return []
        return [(self._number * ranks + rank) % len(info.gpus) for rank in range(ranks)]


async def _heartbeats() -> None:
    while True:  # the first one not at once: most calls to the server would be for nothing
        await asyncio.sleep(HEARTBEAT_INTERVAL_S)
        activity.heartbeat()


def _put_state(store: Store, request: TrialRequest, reports: list[Any], file: Path) -> None:
    header = json.dumps({"reports": reports}).encode()
    store.put(trial_state_key(request.job_id), header + b"\n" + file.read_bytes())
