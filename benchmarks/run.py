"""Run every benchmark, or those named: `python -m benchmarks.run throughput recovery`."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from loomos.runtime import leave
from tests.stack import running_stack

BENCHMARKS = (
    "throughput",
    "checkpoint_stall",
    "recovery",
    "submission",
    "ledger",
    "canary_statistics",
    "serving",
    "rollback",
    "scheduler_sim",
    "gang",
    "weaver_search",
    "weaver_throughput",
    "weaver_trainings",
    "rl_control",
    "rl_language",
    "rl_weave",
    "rl_objectives",
)


def main() -> int:
    """Run them, on one fresh stack if one is needed; prints one JSON line per benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "name", nargs="*", choices=BENCHMARKS, default=BENCHMARKS, help="which; default: all"
    )
    names = parser.parse_args().name
    modules = [import_module(f"benchmarks.{name}") for name in names]
    with ExitStack() as held:
        stack = None
        if any(getattr(module, "NEEDS_STACK", True) for module in modules):
            folder = held.enter_context(tempfile.TemporaryDirectory())
            stack = held.enter_context(running_stack(Path(folder) / "stack"))
        for name, module in zip(names, modules, strict=True):
            result = asyncio.run(module.measure(stack))
            print(json.dumps({"benchmark": name, **result}), flush=True)
    return 0


if __name__ == "__main__":
    leave(main())
