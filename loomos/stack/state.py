"""What the supervisor writes down in `.loomos/` for itself and for everybody else."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
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
from loomos.security.tokens import make_key, mint
from loomos.settings import STACK_FILE

PREFERRED_PORTS = {
    "temporal": 7233,
    "temporal-ui": 8233,
    "s3": 8333,
    "gateway": 8400,
    "weed-master": 9333,
    "weed-master-grpc": 19333,
    "weed-volume": 9340,
    "weed-volume-grpc": 19340,
    "weed-filer": 8888,
    "weed-filer-grpc": 18888,
    "weed-s3-grpc": 18333,
    "weed-admin": 23646,
    "weed-admin-grpc": 33646,
}
TOKEN_LIFETIME = timedelta(days=365)


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

    @property
    def is_healthy(self) -> bool:
        """Whether every member is."""
        return bool(self.members) and all(member.healthy for member in self.members)


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
        if not self.token_file.exists():
            key = make_key(self.signing_key_file)
            self.token_file.touch(mode=0o600)
            self.token_file.write_text(mint(key, _user(), ["admin"], TOKEN_LIFETIME))
        if not self.s3_config_file.exists():
            self.s3_config_file.touch(mode=0o600)
            credentials = {
                "accessKey": secrets.token_hex(10),
                "secretKey": secrets.token_urlsafe(30),
            }
            actions = ["Admin", "Read", "Write", "List", "Tagging"]
            identity = {"name": "loomos", "credentials": [credentials], "actions": actions}
            self.s3_config_file.write_text(json.dumps({"identities": [identity]}))

        if not self.log_key_file.exists():
            name = f"{socket.gethostname().lower()}/{secrets.token_hex(4)}"
            write_secret(self.log_key_file, SignerKey.generate(name).encode())
        if not self.attestation_key_file.exists():
            write_secret(self.attestation_key_file, make_attestation_key())
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
        return StackState.model_validate_json(path.read_text()) if path.exists() else None

    def write(self, state: StackState) -> None:
        """Replace the stack's state at once."""
        partial = self.root / f"{STACK_FILE}.partial"
        partial.touch(mode=0o600)
        partial.write_text(state.model_dump_json(indent=1))
        partial.replace(self.root / STACK_FILE)

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


def choose_ports(known: dict[str, int], servers: int = 0) -> dict[str, int]:
    """A free port per service: the one it had, else the usual one, else any."""
    chosen: dict[str, int] = {}
    serving = {f"serve-{number}": 8499 + number for number in range(1, servers + 1)}
    for name, preferred in (PREFERRED_PORTS | serving).items():
        candidates = [known[name]] if name in known else []
        candidates += [preferred, 0]
        for candidate in candidates:
            port = _free(candidate)
            if port is not None and port not in chosen.values():
                chosen[name] = port
                break
    return chosen


def _free(port: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return None
        found: int = probe.getsockname()[1]
        return found


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
