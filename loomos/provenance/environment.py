"""What a process runs on: its Python packages, and the code of LoomOS itself, as digests."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import loomos


def describe_environment() -> dict[str, Any]:
    """Interpreter, platform and every installed distribution, the same for the same machine."""
    packages = {
        (d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in distributions()
    }
    return {
        "implementation": platform.python_implementation(),
        "machine": platform.machine(),
        "packages": {name: packages[name] for name in sorted(packages) if name},
        "python": platform.python_version(),
        "system": platform.system(),
    }


@cache
def code_sha256() -> str:
    """Digest over the names and contents of this LoomOS's source files."""
    root = Path(loomos.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.relative_to(root).as_posix()}\n".encode())
    return digest.hexdigest()
