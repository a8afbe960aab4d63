"""A serving process: answers OpenAI's protocol with the versions that route rows name.

It needs the store, not Temporal. SIGTERM drains it. Start with `python -m workers.serve`.
"""

from __future__ import annotations

import asyncio
import importlib
import os

from loomos.arguments import take_arguments
from loomos.pulse import ready_when
from loomos.runtime import run_process
from loomos.settings import load_settings


async def main(stop: asyncio.Event) -> None:
    """Serve until asked to stop."""
    from loomos.serving.process import serve

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    ready_when(lambda: True)  # it answers by HTTP what it can
    await serve(load_settings(), stop)


if __name__ == "__main__":
    take_arguments("workers.serve", __doc__, ("serving", "storage"))
    # torch: after the arguments, for `--help` need not wait, and before the loop, which beats.
    importlib.import_module("loomos.serving.process")
    run_process(main)
