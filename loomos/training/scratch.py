"""Where a node's ranks keep shards on their way to and from the store, and when those go.

No torch here: the activity that ran the ranks clears up after them.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


def checkpoint_scratch(scratch: Path, job_id: str, generation: int) -> Path:
    """Where a node's ranks of one attempt keep shards on their way to or from the store."""
    return scratch / "checkpoints" / job_id / f"g{generation}"


def forget_attempt(scratch: Path, job_id: str, generation: int) -> None:
    """Remove what an attempt's ranks left on this node; they have ended."""
    folder = checkpoint_scratch(scratch, job_id, generation)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another generation's may be beside it
        folder.parent.rmdir()
