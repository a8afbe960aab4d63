"""Running code that nobody trusts: bubblewrap, a seccomp filter, and limits.

`run` gives code inputs and reads outputs; it compares nothing, so nothing that the code does to its
own process can make a wrong output count as right.
"""

from __future__ import annotations

from loomos.rl.sandbox.jail import Limits, Ran, SandboxMissing, run_jailed
from loomos.rl.sandbox.programs import Outputs, run_function, run_query

__all__ = [
    "Limits",
    "Outputs",
    "Ran",
    "SandboxMissing",
    "run_function",
    "run_jailed",
    "run_query",
]
