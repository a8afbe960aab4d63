"""One node's part of a gang: torch elastic starts its ranks and watches them.

Membership is decided before (a lease), so there is no elastic rendezvous here: the first node
opens a store on a free port and writes its address where the others look. Elastic restarts
nothing (`max_restarts=0`); a new attempt is a new gang.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from loomos.errors import AttemptFailed, NotFound
from loomos.jobs.training import TrainAssignment
from loomos.lifeline import die_with_parent
from loomos.storage import Store, open_store
from loomos.storage.layout import gang_key
from loomos.training.rank import run_rank
from loomos.training.requests import RankRequest

MEET_TIMEOUT = timedelta(seconds=60)
"""How long a node waits for the others of its gang."""


SHUTDOWN_TIMEOUT_S = 5
"""When one rank has failed, the others of its node get so long before they are killed."""


class GangRendezvous(RendezvousHandler):
    """Rendezvous of a gang whose members are known."""

    def __init__(self, job: TrainAssignment, store: Store) -> None:
        self._job, self._objects = job, store
        self._tcp: TCPStore | None = None

    def get_backend(self) -> str:
        """Name for logs."""
        return "loomos"

    @property
    def use_agent_store(self) -> bool:
        """Ranks meet in the store that the first node's agent serves."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Open or find the gang's store."""
        host, port = self._open() if self._job.node_rank == 0 else self._find()
        assert self._tcp is not None
        return RendezvousInfo(
            PrefixStore(self.get_run_id(), self._tcp),
            self._job.node_rank,
            len(self._job.nodes),
            RendezvousStoreInfo(host, port),
        )

    def _open(self) -> tuple[str, int]:
        host = self._job.nodes[0].address
        port = _serve_store()
        self._tcp = TCPStore("localhost", port, None, False, MEET_TIMEOUT, False)
        key = gang_key(self._job.job_id, self._job.generation)
        meeting = json.dumps({"host": host, "port": port}).encode()
        if not self._objects.put_if_absent(key, meeting):
            raise AttemptFailed(f"generation {self._job.generation} has met before")
        return host, port

    def _find(self) -> tuple[str, int]:
        key = gang_key(self._job.job_id, self._job.generation)
        deadline = time.monotonic() + MEET_TIMEOUT.total_seconds()
        while True:
            try:
                meeting = json.loads(self._objects.get(key))
                break
            except NotFound:
                if time.monotonic() > deadline:
                    raise AttemptFailed(
                        f"node {self._job.nodes[0].node_id} did not open the gang's store"
                    ) from None
                time.sleep(0.05)
        self._tcp = TCPStore(meeting["host"], meeting["port"], None, False, MEET_TIMEOUT, False)
        return meeting["host"], meeting["port"]

    def is_closed(self) -> bool:
        """A gang meets once."""
        return False

    def set_closed(self) -> None:
        """Nothing to close."""

    def num_nodes_waiting(self) -> int:
        """Nobody joins a gang later."""
        return 0

    def get_run_id(self) -> str:
        """Unique per generation."""
        return f"{self._job.job_id}-{self._job.generation}"

    def shutdown(self) -> bool:
        """The store dies with the process."""
        return True


def _serve_store() -> int:
    """Serve the gang's store from a process of its own, which ends with this one; gives its port.

    The agent forks ranks one after the other. Were the store's thread in it, a rank forked while
    that thread looks up the name of a peer that connects would find the resolver's lock taken for
    ever, by nobody.
    """
    agent = os.getpid()
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.close(read)
            die_with_parent(agent)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # ranks that checkpoint still need it
            served = TCPStore("localhost", 0, None, True, MEET_TIMEOUT, False)
            os.write(write, str(served.port).encode())
            os.close(write)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as answer:
        port = answer.read()
    if not port:
        raise AttemptFailed("the gang's store could not be opened")
    return int(port)


def run_node(request_file: Path, log_dir: Path) -> int:
    """Run this node's ranks to their end.

    Returns:
        Exit code: 0 if every rank ended well (done or stopped when asked), 1 otherwise. What
        happened is in the ranks' reports.
    """
    request = RankRequest.model_validate_json(request_file.read_text())
    job = request.assignment
    if job.nodes[job.node_rank].address.startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if job.nodes[job.node_rank].gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, job.devices))
    spec = WorkerSpec(
        role="trainer",
        local_world_size=job.ranks_per_node,
        entrypoint=run_rank,
        args=(str(request_file), os.getpid()),
        rdzv_handler=GangRendezvous(job, open_store(request.storage)),
        max_restarts=0,
        monitor_interval=0.1,
        local_addr=job.nodes[job.node_rank].address,
    )
    agent = LocalElasticAgent(
        spec=spec,
        logs_specs=DefaultLogsSpecs(log_dir=str(log_dir), redirects=Std.ALL),
        start_method="fork",
        exit_barrier_timeout=30,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    _pass_on_sigterm(agent)
    return 1 if agent.run().is_failed() else 0


def _pass_on_sigterm(agent: LocalElasticAgent) -> None:
    """Have SIGTERM reach the ranks and nothing else: they checkpoint and end well.

    Torch's own handling would abandon them: a rank that has returned then waits for an agent that
    no longer listens, until it is killed.
    """
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP"

    def pass_on(number: int, frame: FrameType | None) -> None:
        ranks = agent._pcontext.pids().values() if agent._pcontext else []
        if not ranks:
            sys.exit(1)
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
