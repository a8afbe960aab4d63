from __future__ import annotations

import socket
import threading
from pathlib import Path

from loomos.stack.state import PREFERRED_PORTS, StateDir, choose_ports
from loomos.stack.supervisor import take_lock


def test_a_port_that_is_taken_is_replaced_and_a_known_one_kept() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        chosen = choose_ports({"gateway": port})
        assert chosen["gateway"] != port
        assert set(chosen) == set(PREFERRED_PORTS)
        assert len(set(chosen.values())) == len(chosen)
    assert choose_ports({"gateway": port})["gateway"] == port


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
        folder.s3_config_file,
        folder.log_key_file,
        folder.attestation_key_file,
    ):
        assert path.stat().st_mode & 0o077 == 0
    folder.prepare()
    assert folder.token_file.read_text() == token, "a second start keeps the token"
