from __future__ import annotations

import fcntl
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loomos.stack.ports import INTERNAL_PORTS, PREFERRED_PORTS, Ports
from loomos.stack.state import StateDir
from loomos.stack.supervisor import take_lock


@pytest.fixture
def ports() -> Iterator[Callable[[], Ports]]:
    """Makes the ports of a stack that ends with the test."""
    made: list[Ports] = []

    def make() -> Ports:
        made.append(Ports(patience_s=0))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_port_that_is_taken_is_replaced_and_a_known_one_kept(
    ports: Callable[[], Ports],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        first = ports()
        chosen = first.choose({"gateway": port})
        assert chosen["gateway"] != port
        assert set(chosen) == {*PREFERRED_PORTS, *INTERNAL_PORTS}
        assert len(set(chosen.values())) == len(chosen)
    assert ports().choose({"gateway": port})["gateway"] == port


def test_two_stacks_choose_different_ports_though_neither_listens_yet(
    ports: Callable[[], Ports],
) -> None:
    one = ports()
    first = one.choose({}, servers=2)
    second = ports().choose(first, servers=2)
    assert not set(first.values()) & set(second.values())
    one.close()
    assert ports().choose(first, servers=2) == first


def test_a_stack_in_another_network_namespace_does_not_take_over_sockets(
    ports: Callable[[], Ports],
) -> None:
    """SeaweedFS names sockets in /tmp by port; a port that is free may be a socket in use."""
    known = {"weed-filer-grpc": 31_999}
    theirs = Path("/tmp/seaweedfs-filer-grpc-31999.sock")
    with socket.socket(socket.AF_UNIX) as foreign:
        theirs.unlink(missing_ok=True)
        foreign.bind(str(theirs))
        foreign.listen()
        try:
            assert ports().choose(known)["weed-filer-grpc"] != 31_999
        finally:
            theirs.unlink()
    lock = Path("/tmp/loomos-seaweedfs-31999.lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert ports().choose(known)["weed-filer-grpc"] != 31_999
    assert ports().choose(known)["weed-filer-grpc"] == 31_999


def test_a_folder_has_one_supervisor(tmp_path: Path) -> None:
    folder = StateDir(tmp_path / "state")
    folder.prepare()
    assert not folder.is_supervised()
    lock = folder.lock()
    assert lock is not None
    assert folder.is_supervised()
    assert folder.lock() is None
    lock.close()
    assert not folder.is_supervised()


def test_who_only_looks_does_not_keep_a_supervisor_from_starting(tmp_path: Path) -> None:
    folder = StateDir(tmp_path / "state")
    folder.prepare()
    looking = folder.lock()
    assert looking is not None
    threading.Timer(0.2, looking.close).start()
    lock = take_lock(folder)
    assert lock is not None
    assert folder.is_supervised()
    lock.close()


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = StateDir(tmp_path / "state")
    folder.prepare()
    token = folder.token_file.read_text()
    for path in (
        folder.token_file,
        folder.signing_key_file,
        folder.stack_key_file,
        folder.s3_config_file,
        folder.log_key_file,
        folder.attestation_key_file,
    ):
        assert path.stat().st_mode & 0o077 == 0
    folder.prepare()
    assert folder.token_file.read_text() == token, "a second start keeps the token"
