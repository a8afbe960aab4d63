"""A real stack for tests: started, watched, killed and looked into."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from loomos.client.http import LoomOSClient
from loomos.client.models import JobDetail
from loomos.jobs.states import JobState
from loomos.manifest import JobManifest
from loomos.settings import StorageSettings
from loomos.stack.state import StackState, StateDir
from loomos.storage import Store, open_store
from tests.command_line import run_command

T = TypeVar("T")

CORPUS = Path(sysconfig.get_path("stdlib")) / "asyncio"
LOOMOS = [sys.executable, "-c", "from loomos.cli import main; main()"]


class Stack:
    """One `loomos up`."""

    def __init__(self, root: Path, nodes: int = 2) -> None:
        self.folder = StateDir(root)
        self.nodes = nodes

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which `loomos` finds this stack, and by which its processes are known."""
        return {
            **os.environ,
            "LOOMOS_STATE_DIR": str(self.folder.root),
            "LOOMOS_CONFIG": str(self.folder.root / "no-config.yaml"),
            # Continual learning reads files as they grow; what else tests name is uploaded.
            "LOOMOS_DATA__ROOTS": json.dumps([str(self.folder.root.parent)]),
        }

    def loomos(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        done = run_command(arguments, self.environment)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def up(self) -> None:
        self.loomos("up", "--nodes", str(self.nodes))

    def down(self) -> None:
        self.loomos("down")

    @property
    def state(self) -> StackState:
        found = self.folder.read()
        assert found is not None
        return found

    def client(self) -> LoomOSClient:
        token = self.folder.token_file.read_text().strip()
        return LoomOSClient(self.state.settings["cluster"]["endpoint"], token)

    @property
    def storage(self) -> StorageSettings:
        return StorageSettings.model_validate(self.state.settings["storage"])

    def store(self) -> Store:
        return open_store(self.storage)

    # --- processes ---

    def pid(self, member: str) -> int:
        pid = next(m.pid for m in self.state.members if m.name == member)
        assert pid is not None
        return pid

    def processes(self) -> list[psutil.Process]:
        """Every process that this stack has started, however deep."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("LOOMOS_STATE_DIR") == str(self.folder.root):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def hosted(self, member: str) -> list[psutil.Process]:
        """What a node's rank host runs now: agents and their ranks, or an export."""
        try:
            host = psutil.Process(self.pid(member)).children()
            return [child for process in host for child in process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self, member: str) -> None:
        """kill -9 one member, or one rank, or everything."""
        if member == "everything":
            supervisor = self.state.supervisor_pid
            for process in self.processes():
                if process.pid != os.getpid():
                    _kill(process.pid)
            _kill(supervisor)
            return
        if member == "rank":
            targets = [p for name in ("node-1", "node-2") for p in self.hosted(name)]
            ranks = [p for p in targets if not _children(p)]
            if ranks:
                _kill(ranks[-1].pid)
                return
            hosts = psutil.Process(self.pid("node-1")).children()
            _kill(hosts[0].pid)
            return
        _kill(self.pid(member))

    async def eventually(
        self,
        probe: Callable[[], Awaitable[T]],
        wanted: Callable[[T], Any],
        within_s: float = 90,
        every_s: float = 0.1,
    ) -> T:
        """Poll until `wanted` holds; errors of a stack that is coming back are waited out."""
        deadline = time.monotonic() + within_s
        last: object = None
        while time.monotonic() < deadline:
            try:
                found = await probe()
                if wanted(found):
                    return found
                last = found
            except Exception as error:
                last = error
            await asyncio.sleep(every_s)
        raise AssertionError(f"not within {within_s} s; last: {last!r}")

    async def until(
        self,
        client: LoomOSClient,
        job_id: str,
        *states: JobState,
        within_s: float = 120,
        every_s: float = 0.1,
    ) -> JobDetail:
        """Wait until a job is in one of these states."""
        return await self.eventually(
            lambda: client.get_job_status(job_id),
            lambda job: job.state in states,
            within_s,
            every_s,
        )


def a_stack_at(root: Path, gateway: str) -> StateDir:
    """A folder that looks like that of a stopped stack whose gateway was at this URL."""
    folder = StateDir(root)
    folder.prepare()
    port = int(gateway.rpartition(":")[2])
    ports = {"gateway": port, "temporal": 1, "temporal-ui": 2, "s3": 3}
    folder.write(
        StackState(supervisor_pid=1, nodes=1, ports=ports, settings=folder.settings(ports))
    )
    return folder


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


@contextmanager
def running_stack(root: Path, nodes: int = 2) -> Iterator[Stack]:
    """A stack for the block; afterwards nothing of it may be left."""
    stack = Stack(root, nodes)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
        deadline = time.monotonic() + 10
        while stack.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [p.cmdline() for p in stack.processes()]
        for process in stack.processes():
            _kill(process.pid)
        assert not left, f"orphans: {left}"


def tiny_job(name: str, corpus: Path = CORPUS, **tuning: Any) -> dict[str, Any]:
    """A manifest that trains a tiny Llama for a few seconds; change what a test is about."""
    return {
        "apiVersion": "loomos.ai/v1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "algorithm": "sft",
            "model": {
                "base_model": "init:llama",
                "tokenizer": "byte",
                "config": {
                    "hidden_size": 64,
                    "intermediate_size": 172,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                },
                "fine_tuning_config": {
                    "learning_rate": 2e-3,
                    "max_steps": 30,
                    "batch_size": 8,
                    "sequence_length": 128,
                    **tuning,
                },
            },
            "data": {"training_dataset": str(corpus), "include": ["*.py"]},
            "resources": {"nodes": 2, "ranks_per_node": 1},
            "runtime": {"checkpoint_steps": 10, "retries": {"backoff": "100ms"}},
        },
    }


def manifest(document: dict[str, Any]) -> JobManifest:
    return JobManifest.from_dict(document)
