"""The supervisor outlives what strangers answer, what members do, and a full disk."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from loomos.security.proof import make_challenge, prove
from loomos.stack import health
from loomos.stack.members import Member
from loomos.stack.state import StackState, StateDir
from loomos.stack.supervisor import Patience, Stack, Watched
from tests.listeners import Listener, listening

BEATS = """
import asyncio
from loomos.pulse import beat, ready_when
ready_when(lambda: True)
asyncio.run(beat())
"""
QUICK = Patience(start_s=60, sick_s=0.5, failing_s=0.5, silent_s=2.5)


def member(code: str, **more: object) -> Member:
    return Member(name="m", url="", command=[sys.executable, "-c", code], **more)  # type: ignore[arg-type]


@asynccontextmanager
async def kept(watched: Watched) -> AsyncIterator[Callable[[Callable[[], bool]], object]]:
    """The member, kept running; gives what looks at it and judges until something holds."""
    keeping = asyncio.create_task(watched.keep_running())

    async def until(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(40), httpx.AsyncClient(trust_env=False) as client:
            while not holds():
                await watched.look(client)
                watched.judge(0.1, is_blamed=True)
                await asyncio.sleep(0.1)

    try:
        yield until
    finally:
        keeping.cancel()
        await watched.stop()


async def test_a_stopped_member_is_started_again(tmp_path: Path) -> None:
    watched = Watched(member(BEATS, has_pulse=True), tmp_path, QUICK)
    async with kept(watched) as until:
        await until(lambda: watched.healthy)
        assert watched.process is not None
        first = watched.process.pid
        os.kill(first, signal.SIGSTOP)
        await until(lambda: watched.restarts == 1 and watched.healthy)
        assert watched.process.pid != first


async def test_a_member_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    command = tmp_path / "server"
    watched = Watched(Member(name="m", url="", command=[str(command)]), tmp_path, QUICK)
    async with kept(watched) as until:
        await until(lambda: watched.restarts >= 1)
        assert watched.problem.startswith("cannot be started")
        command.write_text("#!/bin/sh\nexec sleep 60\n")
        command.chmod(0o700)
        await until(lambda: watched.healthy and watched.process is not None)


async def test_a_member_that_lacks_what_it_needs_is_not_blamed(tmp_path: Path) -> None:
    watched = Watched(member("import time; time.sleep(60)", ports=(1,)), tmp_path, QUICK)
    async with kept(watched) as until:
        await until(lambda: watched.process is not None and bool(watched.problem))
        for _ in range(2000):
            watched.judge(60.0, is_blamed=False)
        assert watched.process is not None and watched.process.returncode is None


async def test_the_state_says_that_the_disk_is_full_though_no_file_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StateDir(tmp_path / "state")
    folder.prepare()
    stack = Stack(folder, 1, 0, _ports())
    stack.write()

    def refuse(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", refuse)
        stack.write()
        stack.watched["s3"].problem = "does not store: PUT answers 500"
        stack.write()
        state = folder.read()
        assert state is not None
        assert "No space left on device" in state.problem
        assert not state.is_healthy
        assert next(m for m in state.members if m.name == "s3").problem.startswith("does not store")
    stack.write()
    stack.write()
    state = folder.read()
    assert state is not None and state.problem == ""
    assert not list(folder.root.glob("*.partial"))


def test_a_state_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    folder = StateDir(tmp_path / "state")
    folder.prepare()
    (folder.root / "stack.json").write_text('{"supervisor_pid": 1, "nod')
    assert folder.read() is None


def test_a_secret_is_whole_or_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StateDir(tmp_path / "state")

    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match="No space"):
            folder.prepare()
    folder.prepare()
    assert len(folder.token_file.read_text()) > 100
    assert len(folder.stack_key_file.read_text()) > 32


ODD_ANSWERS = [b"", b"[]", b"null", b'"x"', b"{", b'{"proof": 1}', b"\xff\xfe", b"[" * 100_000]


@pytest.mark.parametrize("body", ODD_ANSWERS, ids=range(len(ODD_ANSWERS)))
async def test_whatever_a_stranger_answers_is_a_problem_and_no_secret_goes_there(
    body: bytes,
) -> None:
    async with listening(lambda _: (200, body)) as stranger, httpx.AsyncClient() as client:
        for check in (
            health.proves_itself(stranger.url, "k" * 40),
            health.stores(stranger.url, "loomos", "access", "s3-secret-key"),
        ):
            assert await health.ask(check, client)
        assert stranger.requests
        assert not any(b"s3-secret-key" in r or b"k" * 40 in r for r in stranger.requests)
        assert not any(b"bearer" in r.lower() for r in stranger.requests)


async def test_a_stranger_that_answers_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 0.5)
    async with listening(lambda _: (200, None)) as stranger, httpx.AsyncClient() as client:
        assert await health.ask(health.answers(stranger.url), client) in ("", health.SILENT)


async def test_the_gateway_is_known_by_its_proof_and_a_relay_is_not() -> None:
    key = "k" * 40

    def gateway(request: str) -> tuple[int, bytes]:
        challenge = request.partition("challenge=")[2].split()[0]
        return 200, json.dumps({"proof": prove(key, real.address, challenge)}).encode()

    def relay(request: str) -> tuple[int, bytes]:
        return gateway(request)

    async with httpx.AsyncClient() as client, listening(gateway) as real:
        assert await health.ask(health.proves_itself(real.url, key), client) == ""
        assert await health.ask(health.proves_itself(real.url, "other" * 8), client)
        async with listening(relay) as between:
            assert await health.ask(health.proves_itself(between.url, key), client)
    assert prove(key, "a:1", make_challenge()) != prove(key, "a:1", make_challenge())


async def test_a_store_that_forgets_is_not_healthy() -> None:
    kept: dict[str, bytes] = {}

    def server(listener: Listener, forgets: bool) -> Callable[[str], tuple[int, bytes]]:
        def answer(request: str) -> tuple[int, bytes]:
            method, path, _ = request.split(" ", 2)
            if method == "PUT":
                kept[path] = b"" if forgets else request.rpartition("\r\n\r\n")[2].encode()
                return 200, b""
            if "list-type" in path:
                return 200, b"<Key>health/supervisor</Key>"
            return 200, kept[path]

        return answer

    for forgets, found in ((False, ""), (True, "does not give back")):
        async with listening(lambda _: (200, b"")) as store, httpx.AsyncClient() as client:
            store.answer = server(store, forgets)
            problem = await health.ask(health.stores(store.url, "b", "access", "secret"), client)
            assert problem.startswith(found) and bool(problem) == forgets


async def test_only_the_listener_itself_counts() -> None:
    async with listening(lambda _: (200, b"")) as own:
        port = int(own.address.partition(":")[2])
        assert health.stranger_at(os.getpid(), (port,)) is None
        assert str(port) in (health.stranger_at(os.getppid(), (port,)) or "")


def _ports() -> dict[str, int]:
    from loomos.stack.ports import INTERNAL_PORTS, PREFERRED_PORTS

    return {name: n for n, name in enumerate([*PREFERRED_PORTS, *INTERNAL_PORTS], 20_000)}


def test_state_of_before_is_still_read() -> None:
    old = {"supervisor_pid": 1, "nodes": 1, "ports": {}, "settings": {}, "members": []}
    assert StackState.model_validate(old).problem == ""


async def test_a_store_of_which_one_database_is_broken_is_not_healthy_until_it_is_mended() -> None:
    """Servers spread folders over databases by a hash; a full disk may break one for good."""
    kept: dict[str, bytes] = {}
    is_broken = True

    def says(status: int, content: bytes = b"") -> httpx.Response:
        return httpx.Response(status, stream=httpx.ByteStream(content))

    def answer(request: httpx.Request) -> httpx.Response:
        folder = request.url.path.rpartition("/")[0]
        if request.method == "PUT":
            if is_broken and hashlib.md5(folder.encode()).digest()[-1] % 8 == 4:
                return says(500)
            kept[request.url.path] = request.content
            return says(200)
        if "list-type" in request.url.params:
            return says(200, " ".join(kept).encode())
        return says(200, kept.get(request.url.path, b""))

    check = health.stores("http://s3", "bucket", "key", "secret")
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        found = [await health.ask(check, client) for _ in range(20)]
        assert "does not store: PUT answers 500" in found
        since = found.index("does not store: PUT answers 500")
        assert set(found[since:]) == {"does not store: PUT answers 500"}
        is_broken = False
        assert [await health.ask(check, client) for _ in range(20)] == [""] * 20
    assert len(kept) == 64
