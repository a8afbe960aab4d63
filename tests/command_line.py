"""The command line in a fork of a process that has it loaded: most of what a command costs else."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [__name__, "loomos.cli.app", "loomos.client.http", "rich.progress", "rich.table", "pytest"]
)


def run_command(
    arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float = 180
) -> subprocess.CompletedProcess[str]:
    """What `loomos ARGUMENTS` prints, and how it ends.

    Raises:
        subprocess.TimeoutExpired: it did not end in time; it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        given = (list(arguments), dict(environment), os.getcwd(), [str(file) for file in files])
        process = _FORKS.Process(target=_command, args=given)
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["loomos", *arguments], timeout_s)
        out, err = (file.read_text() for file in files)
        assert process.exitcode is not None
        return subprocess.CompletedProcess(["loomos", *arguments], process.exitcode, out, err)


def _command(
    arguments: list[str], environment: dict[str, str], folder: str, outputs: list[str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in enumerate(outputs, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["loomos", *arguments]
    from loomos.cli import run

    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
