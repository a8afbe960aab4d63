"""Leaders on the real stack: one at a time, and a deposed one's writes are refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from loomos.errors import Conflict, InvalidInput
from loomos.nexus.failover.election import ConsensusManager, NodeRole
from loomos.nexus.failover.fence import Fence, Written
from loomos.settings import Settings
from loomos.storage.layout import leadership_prefix
from loomos.storage.register import Register
from tests.stack import Stack


def settings(stack: Stack) -> Settings:
    return Settings.model_validate(stack.state.settings)


class Leaders:
    """Processes that would lead a group."""

    def __init__(self, stack: Stack, group: str, folder: Path) -> None:
        self._stack, self.group, self._file = stack, group, folder / "lines"
        self._file.touch()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *nodes: str) -> None:
        for node in nodes:
            command = [sys.executable, "-m", "tests.leader", node, "n1,n2,n3", self.group]
            self.processes[node] = subprocess.Popen(
                [*command, str(self._file)], env={**os.environ, **self._stack.environment}
            )

    def signal(self, node: str, number: signal.Signals) -> None:
        self.processes[node].send_signal(number)

    async def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._file.read_text().splitlines()]

    async def until(self, **facts: Any) -> dict[str, Any]:
        """The newest line that has these facts, once there is one."""

        async def found() -> dict[str, Any] | None:
            fitting = [
                line
                for line in await self.lines()
                if all(line.get(k) == v for k, v in facts.items())
            ]
            return fitting[-1] if fitting else None

        line = await self._stack.eventually(found, lambda line: line is not None, 60)
        assert line is not None
        return line

    async def until_leader(self, after_term: int) -> dict[str, Any]:
        async def found() -> dict[str, Any] | None:
            led = [
                line
                for line in await self.lines()
                if line.get("new") == "leader" and line["term"] > after_term
            ]
            return led[0] if led else None

        line = await self._stack.eventually(found, lambda line: line is not None, 60)
        assert line is not None
        return line

    def written(self) -> list[Written]:
        register = Register(self._stack.store(), leadership_prefix(self.group))
        return [Written.model_validate_json(register.get(n)) for n in register.numbers()]


@pytest.fixture
def leaders(stack: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Leaders]:
    made = Leaders(stack, request.node.name.replace("_", "-")[:60], tmp_path)
    yield made
    for process in made.processes.values():
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


async def test_a_leader_that_slept_through_its_deposition_is_refused(leaders: Leaders) -> None:
    leaders.start("n1")
    first = await leaders.until_leader(0)
    leaders.start("n2")
    await leaders.until(node="n1", wrote=5)
    await asyncio.sleep(1)  # n2 stands
    leaders.signal("n1", signal.SIGSTOP)
    second = await leaders.until_leader(first["term"])
    assert (second["node"], second["term"] > first["term"]) == ("n2", True)
    await leaders.until(node="n2", wrote=5)
    leaders.signal("n1", signal.SIGCONT)
    refused = await leaders._stack.eventually(
        leaders.lines, lambda lines: any("refused" in line for line in lines)
    )
    line = next(line for line in refused if "refused" in line)
    assert line["node"] == "n1" and line["term"] == first["term"]
    assert f"is over: n2 leads in term {second['term']}" in line["refused"]
    await leaders.until(node="n1", new="follower")
    # A beheaded leader is followed too, and n1 may lead again under a higher term.
    leaders.signal("n2", signal.SIGKILL)
    third = await leaders.until_leader(second["term"])
    assert third["node"] == "n1"
    await asyncio.sleep(0.5)
    terms = [written.term for written in leaders.written()]
    assert terms == sorted(terms)
    by_term = {written.term: written.writer for written in leaders.written()}
    assert len(set(terms)) >= 3
    assert all(written.writer == by_term[written.term] for written in leaders.written())


async def test_a_leader_steps_down_when_asked_or_stopped(leaders: Leaders) -> None:
    leaders.start("n1", "n2")
    first = await leaders.until_leader(0)
    other = "n2" if first["node"] == "n1" else "n1"
    await asyncio.sleep(1.5)  # both stand
    visitor = ConsensusManager(
        "n3", ["n1", "n2", "n3"], group=leaders.group, settings=settings(leaders._stack)
    )
    async with visitor:
        status = await visitor.trigger_election()
        assert status.leader == other and status.term > first["term"]
        await leaders.until(node=first["node"], new="follower")
        await leaders.until(node=other, new="leader")
        leaders.signal(other, signal.SIGTERM)
        await leaders.until(node=other, new="follower")
        assert await asyncio.to_thread(leaders.processes[other].wait, 30) == 0

        async def role() -> NodeRole:
            return visitor.role

        # Who has stepped down stands behind those who have not led yet.
        await leaders._stack.eventually(role, lambda found: found == NodeRole.LEADER)
        assert visitor.term > status.term


@pytest.fixture
async def alone(stack: Stack) -> AsyncIterator[ConsensusManager]:
    made = ConsensusManager(
        "node_1", ["node_1", "node_2"], 2000, 400, group="alone", settings=settings(stack)
    )
    yield made
    await made.stop()


async def test_handlers_hear_of_every_change_in_order(
    stack: Stack, alone: ConsensusManager
) -> None:
    heard: list[tuple[NodeRole, NodeRole]] = []
    with pytest.raises(Conflict, match="has never led"):
        await alone.write(1)
    await alone.start()

    @alone.on_role_change
    async def handle(old: NodeRole, new: NodeRole) -> None:
        await asyncio.sleep(0.1)
        heard.append((old, new))

    async def role() -> NodeRole:
        return alone.role

    await stack.eventually(role, lambda found: found == NodeRole.LEADER)
    assert (await alone.write({"epoch": 1})).term == alone.term
    await alone.stop()
    assert heard == [(NodeRole.FOLLOWER, NodeRole.LEADER), (NodeRole.LEADER, NodeRole.FOLLOWER)]
    assert alone.role == NodeRole.FOLLOWER


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'x' is not among them"):
        ConsensusManager("x", ["a", "b"])
    with pytest.raises(InvalidInput, match="at most half of election_timeout_ms"):
        ConsensusManager("a", ["a"], election_timeout_ms=1000, heartbeat_interval_ms=800)


def test_a_fence_lets_only_the_newest_term_through(stack: Stack) -> None:
    fence = Fence(stack.store(), "fence-test")
    assert fence.enter(1, "a").content is None
    fence.write(1, "a", "one")
    assert fence.enter(3, "b").content == "one"
    with pytest.raises(Conflict, match="term 1 of fence-test is over: b leads in term 3"):
        fence.write(1, "a", "two")
    with pytest.raises(Conflict, match="term 2"):
        fence.enter(2, "c")
    found = fence.read()
    assert found is not None and found.content == "one"


async def test_an_election_may_be_triggered_as_soon_as_a_node_has_started(stack: Stack) -> None:
    async with ConsensusManager(
        "only", ["only"], 1000, 200, group="at-once", settings=settings(stack)
    ) as consensus:
        status = await consensus.trigger_election()
        assert (status.leader, status.term >= 2) == ("only", True)
