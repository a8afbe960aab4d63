"""What the supervisor writes down in `.loomos/` for itself and for everybody else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict

from loomos.loomdb.keys import read_signer, write_secret
from loomos.loomdb.notes import SignerKey
from loomos.loomdb.policies import Policy
from loomos.provenance.dsse import make_key as make_attestation_key
from loomos.provenance.dsse import public_pem
from loomos.provenance.dsse import read_key as read_attestation_key
from loomos.security.tokens import mint, new_key, read_key
from loomos.settings import STACK_FILE

TOKEN_LIFETIME = timedelta(days=365)
STATE_BLOCK = 16 * 1024
READ_TRIES, READ_AGAIN_S = 5, 0.02


class MemberState(BaseModel):
    """One process of the stack."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Its name."""
    url: str
    """Where it can be seen, or what it is."""
    pid: int | None = None
    """Its process, if it runs."""
    healthy: bool = False
    """Whether its last health check passed."""
    restarts: int = 0
    """Times it was started again."""
    problem: str = ""
    """What is wrong with it, if anything is."""


class StackState(BaseModel):
    """Content of `stack.json`."""

    model_config = ConfigDict(frozen=True)

    supervisor_pid: int
    """Process that watches the others."""
    nodes: int
    """Worker nodes."""
    servers: int = 1
    """Processes that serve models."""
    ports: dict[str, int]
    """Port of each service."""
    settings: dict[str, Any]
    """Settings for clients of this stack."""
    members: list[MemberState] = []
    """Every process."""
    problem: str = ""
    """What is wrong with the stack as a whole, such as a full disk."""

    @property
    def is_healthy(self) -> bool:
        """Whether every member is, and the stack as a whole."""
        return (
            not self.problem
            and bool(self.members)
            and all(member.healthy for member in self.members)
        )


class StateDir:
    """The folder `.loomos/` of one stack."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def logs(self) -> Path:
        """One log per member."""
        return self.root / "logs"

    def prepare(self) -> None:
        """Make the folder, its credentials and the local token, where they are missing."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(exist_ok=True)
        (self.root / "secrets").mkdir(exist_ok=True, mode=0o700)
        if not self.signing_key_file.exists():
            _write_secret(self.signing_key_file, new_key())
        if not self.token_file.exists():
            key = read_key(self.signing_key_file)
            _write_secret(self.token_file, mint(key, _user(), ["admin"], TOKEN_LIFETIME))
        if not self.stack_key_file.exists():
            _write_secret(self.stack_key_file, new_key())
        if not self.s3_config_file.exists():
            credentials = {
                "accessKey": secrets.token_hex(10),
                "secretKey": secrets.token_urlsafe(30),
            }
            actions = ["Admin", "Read", "Write", "List", "Tagging"]
            identity = {"name": "loomos", "credentials": [credentials], "actions": actions}
            _write_secret(self.s3_config_file, json.dumps({"identities": [identity]}))
        if not self.log_key_file.exists():
            name = f"{socket.gethostname().lower()}/{secrets.token_hex(4)}"
            _write_secret(self.log_key_file, SignerKey.generate(name).encode())
        if not self.attestation_key_file.exists():
            _write_secret(self.attestation_key_file, make_attestation_key())
        if not self.attestation_public_file.exists():
            public = read_attestation_key(self.attestation_key_file).public_key()
            self.attestation_public_file.write_text(public_pem(public))
        if not self.policy_file.exists():
            policy = Policy.for_log(read_signer(self.log_key_file).verifier)
            self.policy_file.write_text(policy.encode())

    @property
    def log_key_file(self) -> Path:
        """Key that signs the ledger's checkpoints."""
        return self.root / "secrets" / "ledger.key"

    @property
    def attestation_key_file(self) -> Path:
        """Key that signs provenance statements and models."""
        return self.root / "secrets" / "attestation.pem"

    @property
    def attestation_public_file(self) -> Path:
        """Its public half, for whoever loads models."""
        return self.root / "attestation.pub.pem"

    @property
    def policy_file(self) -> Path:
        """Whom the ledger's readers trust: its public key; add witnesses here."""
        return self.root / "ledger.policy"

    @property
    def signing_key_file(self) -> Path:
        """Key that signs tokens."""
        return self.root / "secrets" / "signing.key"

    @property
    def stack_key_file(self) -> Path:
        """Secret by which the gateway proves itself to this machine's clients."""
        return self.root / "secrets" / "stack.key"

    @property
    def token_file(self) -> Path:
        """Token of whoever started the stack."""
        return self.root / "secrets" / "token"

    @property
    def s3_config_file(self) -> Path:
        """Credentials that the S3 server accepts."""
        return self.root / "secrets" / "s3.json"

    def read(self) -> StackState | None:
        """The stack's state, if it has ever been started."""
        path = self.root / STACK_FILE
        for _ in range(READ_TRIES):
            try:
                return StackState.model_validate_json(path.read_text())
            except FileNotFoundError:
                return None
            except ValueError:
                # It is being written over in place; a moment later it is whole.
                time.sleep(READ_AGAIN_S)
        return None

    def write(self, state: StackState) -> None:
        """Replace the stack's state at once.

        The file ends in blanks up to a fixed size. So on a full disk, where no second file can be
        made, the new state fits into the place of the old.

        Raises:
            OSError: it could not be written, or only in place.
        """
        content = state.model_dump_json(indent=1).encode()
        content = content.ljust(-(-(len(content) + 1024) // STATE_BLOCK) * STATE_BLOCK)
        path = self.root / STACK_FILE
        partial = path.with_name(f"{STACK_FILE}.partial")
        try:
            partial.touch(mode=0o600)
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            self._write_over(path, content)
            raise

    @staticmethod
    def _write_over(path: Path, content: bytes) -> None:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_WRONLY)
            try:
                content = content.rstrip().ljust(os.fstat(handle).st_size)
                if len(content) == os.fstat(handle).st_size:
                    os.pwrite(handle, content, 0)
            finally:
                os.close(handle)

    def silent_s(self) -> float:
        """Seconds since the supervisor last wrote its state."""
        try:
            return max(0.0, time.time() - (self.root / STACK_FILE).stat().st_mtime)
        except OSError:
            return 0.0

    def free_bytes(self) -> int:
        """Room on the disk."""
        return shutil.disk_usage(self.root).free

    def lock(self) -> TextIO | None:
        """Become the only supervisor of this folder; None if there is one."""
        file = (self.root / "supervisor.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def is_supervised(self) -> bool:
        """Whether a supervisor runs."""
        if not self.root.exists():
            return False
        lock = self.lock()
        if lock is not None:
            lock.close()
        return lock is None

    def settings(self, ports: dict[str, int]) -> dict[str, Any]:
        """Settings that reach this stack."""
        s3 = json.loads(self.s3_config_file.read_text())["identities"][0]["credentials"][0]
        return {
            "cluster": {"endpoint": f"http://127.0.0.1:{ports['gateway']}"},
            "auth": {
                "token_file": str(self.token_file),
                "signing_key_file": str(self.signing_key_file),
                "stack_key_file": str(self.stack_key_file),
            },
            "loomdb": {
                "url": f"sqlite:///{self.root / 'loomdb.db'}",
                "log_key_file": str(self.log_key_file),
                "policy_file": str(self.policy_file),
                "attestation_key_file": str(self.attestation_key_file),
            },
            "serving": {"public_key_file": str(self.attestation_public_file)},
            "temporal": {
                "address": f"127.0.0.1:{ports['temporal']}",
                "ui_url": f"http://127.0.0.1:{ports['temporal-ui']}",
            },
            "storage": {
                "url": "s3://loomos",
                "endpoint": f"http://127.0.0.1:{ports['s3']}",
                "access_key": s3["accessKey"],
                "secret_key": s3["secretKey"],
            },
        }


def _write_secret(path: Path, content: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    write_secret(partial, content)
    partial.replace(path)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
