"""Ports that belong to one stack.

Two stacks that start at the same time must not choose the same port, and between the choice and
the moment at which a member listens nothing holds a port. So a stack claims each port by a name
that the kernel frees when the supervisor ends: an abstract socket, which has the scope of ports,
one network namespace. SeaweedFS also names sockets in /tmp by its gRPC ports, and /tmp may be
shared by network namespaces: those ports are claimed by a locked file beside the sockets too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PREFERRED_PORTS = {
    "temporal": 7233,
    "temporal-ui": 8233,
    "s3": 8333,
    "gateway": 8400,
}
"""Ports that people know."""
INTERNAL_PORTS = (
    "weed-master",
    "weed-master-grpc",
    "weed-volume",
    "weed-volume-grpc",
    "weed-filer",
    "weed-filer-grpc",
    "weed-s3-grpc",
    "weed-admin",
    "weed-admin-grpc",
)
"""Ports that only SeaweedFS itself uses: any will do, so no other SeaweedFS prefers them."""
FIRST_SERVER_PORT = 8500
PATIENCE_S = 2.0

# Below the ports that Linux gives to outgoing connections, which would take one from a member
# that is being started again.
_INTERNAL_RANGE = range(20_000, 32_000)
_SOCKETS = Path("/tmp")  # SeaweedFS says so, whatever TMPDIR is.
_TRIES = 200


class Ports:
    """The ports of one stack; they are its own until `close`, or the end of the process.

    Args:
        patience_s: how long the ports of before are waited for, if what had them is just ending.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._claims: list[socket.socket] = []
        self._locks: list[tuple[int, Path]] = []

    def choose(self, known: dict[str, int], servers: int = 0) -> dict[str, int]:
        """A free port per service: the one it had, else the usual one, else any.

        Raises:
            OSError: no port is free.
        """
        serving = {f"serve-{n}": FIRST_SERVER_PORT + n - 1 for n in range(1, servers + 1)}
        names = [*PREFERRED_PORTS, *INTERNAL_PORTS, *serving]
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline and not all(map(_is_free, known.values())):
            time.sleep(0.05)
        preferred = PREFERRED_PORTS | serving
        return {name: self._first_free(name, known, preferred) for name in names}

    def _first_free(self, name: str, known: dict[str, int], preferred: dict[str, int]) -> int:
        for port in _candidates(name, known, preferred):
            if self._claim(port, names_sockets=name.endswith("-grpc")):
                return port
        raise OSError(f"no free port for {name}")

    def _claim(self, port: int, *, names_sockets: bool) -> bool:
        if not (_is_free(port) and self._claim_name(port)):
            return False
        if names_sockets and not self._claim_sockets(port):
            self._claims.pop().close()
            return False
        return True

    def _claim_name(self, port: int) -> bool:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if sys.platform == "linux":
            try:
                claim.bind(f"\0loomos/port/{port}")
            except OSError:
                claim.close()
                return False
        self._claims.append(claim)
        return True

    def _claim_sockets(self, port: int) -> bool:
        if any(_answers(path) for path in _SOCKETS.glob(f"seaweedfs-*-grpc-{port}.sock")):
            return False
        path = _SOCKETS / f"loomos-seaweedfs-{port}.lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:  # another user's
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._locks.append((handle, path))
        return True

    def close(self) -> None:
        """Let go of all ports."""
        for claim in self._claims:
            claim.close()
        for handle, path in self._locks:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)
        self._claims, self._locks = [], []


def _candidates(name: str, known: dict[str, int], preferred: dict[str, int]) -> Iterator[int]:
    if name in known:
        yield known[name]
    if name in preferred:
        yield preferred[name]
    for _ in range(_TRIES):
        yield _INTERNAL_RANGE[secrets.randbelow(len(_INTERNAL_RANGE))]


def _is_free(port: int) -> bool:
    """Whether nobody listens there; a socket that was closed a moment ago does not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
        return True


def _answers(path: Path) -> bool:
    """Whether somebody listens at a socket in the file system."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
        return True
