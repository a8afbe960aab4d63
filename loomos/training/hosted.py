"""How a process that the rank host forks answers: a file with what it found, or with its error."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loomos.errors import LoomOSError


def answer(result: Path, work: Callable[[], dict[str, Any]]) -> int:
    """Do the work and write what it returns, or what went wrong; returns the exit code."""
    try:
        content = work()
    except Exception as error:
        traceback.print_exc()
        retryable = not isinstance(error, LoomOSError) or error.retryable
        said = {"type": type(error).__name__, "message": str(error), "retryable": retryable}
        result.write_text(json.dumps({"error": said}))
        return 1
    result.write_text(json.dumps(content))
    return 0
