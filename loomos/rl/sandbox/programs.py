"""Functions and queries, run on inputs in the sandbox.

The code is given all inputs at once and writes a JSON line per output. What is expected never
enters the sandbox.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loomos.rl.sandbox.jail import Limits, Ran, SandboxMissing, run_jailed

HARNESSES = Path(__file__).with_name("harnesses")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What code made of its inputs."""

    values: list[dict[str, Any]]
    """For each input `{"value": ...}` or `{"error": ...}`; fewer than inputs if it ended early."""
    stopped: str
    """Why it was stopped, if it was; `forbidden call` for an attempt to get out."""
    detail: str
    """Which call that was, or the last line that it wrote to standard error."""


def run_function(
    language: str, code: str, function: str, inputs: list[list[Any]], *, limits: Limits
) -> Outputs:
    """Call a function that code defines, once for each list of arguments.

    Args:
        language: `python` or `javascript`.
        code: the whole program.
        function: the function's name.
        inputs: arguments of each call, as JSON.
        limits: what all calls together may use.

    Raises:
        SandboxMissing: bubblewrap, or node, is not here.
    """
    given = json.dumps({"function": function, "inputs": inputs}).encode()
    if language == "python":
        files = {"harness.py": _harness("function.py"), "code.py": code.encode(errors="replace")}
        return _outputs(run_jailed(_python(), files=files, given=given, limits=limits), len(inputs))
    node = shutil.which("node", path="/usr/bin:/bin")
    if node is None:
        raise SandboxMissing("JavaScript runs in node only; install it: apt-get install nodejs")
    files = {"harness.js": _harness("function.js"), "code.js": code.encode(errors="replace")}
    command = [node, "--max-old-space-size=128", "/jail/harness.js"]
    limits = Limits(**{**vars(limits), "address_space": False})
    return _outputs(run_jailed(command, files=files, given=given, limits=limits), len(inputs))


def run_query(query: str, databases: list[list[str]], *, limits: Limits) -> Outputs:
    """Ask a query of databases, each made by statements; rows come as lists, at most 1,000.

    Raises:
        SandboxMissing: bubblewrap is not here.
    """
    inputs = [[statements] for statements in databases]
    given = json.dumps({"function": query, "inputs": inputs}).encode()
    files = {"harness.py": _harness("query.py")}
    return _outputs(run_jailed(_python(), files=files, given=given, limits=limits), len(databases))


@functools.cache
def _harness(name: str) -> bytes:
    return (HARNESSES / name).read_bytes()


def _python() -> list[str]:
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return [executable, "-I", "-S", "-B", "/jail/harness.py"]


def _outputs(ran: Ran, expected: int) -> Outputs:
    values: list[dict[str, Any]] = []
    for line in ran.output.splitlines()[:expected]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            break
        values.append(value if isinstance(value, dict) else {"error": "NotAnOutput"})
    said = ran.errors.decode(errors="replace")
    stopped, detail = ran.stopped, (said.strip().splitlines() or [""])[-1][:200]
    for reported in said.splitlines():
        if reported.startswith("FORBIDDEN "):
            stopped, detail = "forbidden call", reported.removeprefix("FORBIDDEN ")[:100]
    if stopped:
        values = [] if stopped == "forbidden call" else values
    return Outputs(values=values, stopped=stopped, detail=detail)
