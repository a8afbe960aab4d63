"""One process in bubblewrap: no network, no files but the system's libraries, limits on all else.

There is no fallback: where bubblewrap is missing, nothing runs.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from loomos.errors import LoomOSError
from loomos.rl.sandbox import seccomp

WATCH_INTERVAL_S = 0.02


class SandboxMissing(LoomOSError):
    """There is no bubblewrap here, or it may not make namespaces."""

    retryable = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run may use."""

    wall_s: float = 5.0
    """Time until it is killed."""
    cpu_s: int = 5
    """Processor time, in whole seconds."""
    memory_bytes: int = 512 * 2**20
    """Memory, of all its threads together."""
    address_space: bool = True
    """Whether the limit holds for reserved memory too; node reserves much that it never uses."""
    output_bytes: int = 2**20
    """Of each output."""
    threads: int = 32
    """At the same time."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a run ended."""

    code: int
    """Exit code; minus the signal's number if one ended it."""
    output: bytes
    """Its standard output."""
    errors: bytes
    """Its standard error, cut like the output."""
    wall_s: float
    """How long it took."""
    stopped: str = ""
    """Why it was stopped, if it was: `time`, `memory`, `output`, `threads` or `forbidden call`."""
    facts: dict[str, str] = field(default_factory=dict)
    """What it said about itself."""


def run_jailed(
    command: list[str], *, files: dict[str, bytes], given: bytes = b"", limits: Limits
) -> Ran:
    """Run a command in a new sandbox.

    Args:
        command: program and arguments, as the sandbox sees them.
        files: what it finds in its working directory, read only, by name.
        given: its standard input.
        limits: what it may use.

    Raises:
        SandboxMissing: bubblewrap cannot be used here.
    """
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise SandboxMissing("code runs in bubblewrap only; install it: apt-get install bubblewrap")
    with tempfile.TemporaryDirectory(prefix="loomos-jail-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        filter_end, write_end = os.pipe()
        try:
            os.write(write_end, seccomp.program())
            os.close(write_end)
            arguments = [bubblewrap, *_walls(folder, filter_end), "--", *_limited(limits), *command]
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[filter_end],
                env={},
                start_new_session=True,
            )
        finally:
            os.close(filter_end)
        ran = _watch(process, given, limits)
    if ran.code != 0 and ran.errors.startswith(b"bwrap:"):
        said = ran.errors.decode(errors="replace").splitlines()[0]
        raise SandboxMissing(f"bubblewrap cannot make a sandbox here: {said}")
    return ran


def _walls(folder: str, filter_fd: int) -> list[str]:
    """Bubblewrap's arguments: what is there, and what is not."""
    walls = [
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]
    walls += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    for path in ("/usr", "/bin", "/lib", "/lib64", "/sbin"):
        if os.path.islink(path):
            walls += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            walls += ["--ro-bind", path, path]
    if not sys.base_prefix.startswith("/usr"):
        walls += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    walls += ["--proc", "/proc", "--dev", "/dev", "--size", str(16 * 2**20), "--tmpfs", "/tmp"]
    walls += ["--ro-bind", folder, "/jail", "--chdir", "/jail", "--seccomp", str(filter_fd)]
    walls += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp"]
    return walls


def _limited(limits: Limits) -> list[str]:
    """The command that sets resource limits before the program."""
    found = ["/usr/bin/prlimit", f"--cpu={limits.cpu_s}", "--core=0", "--nofile=64"]
    found += [f"--data={limits.memory_bytes}", f"--fsize={16 * 2**20}", "--memlock=0"]
    if limits.address_space:
        found.append(f"--as={limits.memory_bytes}")
    return found


def _watch(process: subprocess.Popen[bytes], given: bytes, limits: Limits) -> Ran:
    """Feed it, read it, and end it when it goes too far."""
    began = time.monotonic()
    output, errors = bytearray(), bytearray()
    stopped = ""
    assert process.stdin and process.stdout and process.stderr
    with selectors.DefaultSelector() as ready:
        for pipe, kept in ((process.stdout, output), (process.stderr, errors)):
            os.set_blocking(pipe.fileno(), False)
            ready.register(pipe, selectors.EVENT_READ, kept)
        os.set_blocking(process.stdin.fileno(), False)
        ready.register(process.stdin, selectors.EVENT_WRITE, memoryview(given))
        while not stopped and (ready.get_map() or process.poll() is None):
            for key, _ in ready.select(WATCH_INTERVAL_S):
                stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
                if stream is process.stdin:
                    _feed(ready, stream, key.data)
                elif not _read(stream, key.data):
                    ready.unregister(stream)
                elif len(key.data) > limits.output_bytes:
                    stopped = "output"
            if time.monotonic() - began > limits.wall_s:
                stopped = "time"
            stopped = stopped or _used_too_much(process.pid, limits)
    if stopped:
        _kill(process)
    code = process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        _close(pipe)
    if not stopped and code in (-signal.SIGSYS, 128 + signal.SIGSYS):
        stopped = "forbidden call"
    if not stopped and code in (-signal.SIGXCPU, 128 + signal.SIGXCPU, 128 + signal.SIGKILL):
        stopped = "time"
    return Ran(
        code=code if code < 128 else 128 - code,
        output=bytes(output[: limits.output_bytes]),
        errors=bytes(errors[: limits.output_bytes]),
        wall_s=time.monotonic() - began,
        stopped=stopped,
    )


def _feed(ready: selectors.BaseSelector, stream: IO[bytes], rest: memoryview) -> None:
    try:
        written = os.write(stream.fileno(), rest[:65536]) if rest else 0
    except BrokenPipeError:
        rest, written = memoryview(b""), 0
    if len(rest) > written:
        ready.modify(stream, selectors.EVENT_WRITE, rest[written:])
    else:
        ready.unregister(stream)
        _close(stream)


def _read(stream: IO[bytes], kept: bytearray) -> bool:
    """Read what is there; says whether there may be more."""
    try:
        chunk = os.read(stream.fileno(), 65536)
    except BlockingIOError:
        return True
    kept += chunk
    return bool(chunk)


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return


def _used_too_much(pid: int, limits: Limits) -> str:
    """Sum over the sandbox's processes; there is one besides bubblewrap's own."""
    memory, threads = 0, 0
    try:
        for process in psutil.Process(pid).children(recursive=True):
            memory += process.memory_info().rss
            threads += process.num_threads()
    except psutil.Error:
        return ""
    if memory > limits.memory_bytes:
        return "memory"
    return "threads" if threads > limits.threads else ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End bubblewrap; with it the namespace's first process dies, and with that all the others."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
