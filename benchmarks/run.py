"""Run every benchmark, or those named: `python -m benchmarks.run throughput recovery`."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from loomos.runtime import leave
from tests.stack import running_stack

BENCHMARKS = ("throughput", "checkpoint_stall", "recovery", "submission")


def main() -> int:
    """Run against one fresh stack; prints one JSON line per benchmark."""
    names = sys.argv[1:] or BENCHMARKS
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "stack") as stack:
        for name in names:
            module = import_module(f"benchmarks.{name}")
            result = asyncio.run(module.measure(stack))
            print(json.dumps({"benchmark": name, **result}), flush=True)
    return 0


if __name__ == "__main__":
    leave(main())
