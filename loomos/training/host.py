"""A warm process that has torch loaded and forks one child per attempt.

The worker process never imports torch; it starts this one and speaks JSON lines with it:

    -> {"id": "a1", "run": KIND, "request": FILE, "log_dir": FOLDER}
    <- {"id": "a1", "pid": 123}
    <- {"id": "a1", "exit": 0}          (negative: killed by that signal)

KIND is `train`, `export`, `evaluate` or `blend`.

It runs no torch operation itself, so that forking is safe: no threads, no CUDA context. It dies
with the worker, and its children with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from loomos.arguments import take_arguments
from loomos.lifeline import die_with_parent

IDLE_S = 3.0
"""After so long without a request the host loads what only some attempts need."""


def _load() -> None:
    """Import what every attempt needs."""
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama  # noqa: F401

    import loomos.training.gang  # noqa: F401
    from loomos.storage._s3 import preload

    preload()


def _load_more() -> None:
    """Import what some attempts need; a child that comes earlier imports it itself."""
    import peft  # noqa: F401

    import loomos.rl.blending
    import loomos.rl.learner  # noqa: F401


def serve() -> None:
    """Answer requests until stdin ends."""
    die_with_parent(os.getppid())
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _load()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(json.dumps({"ready": True}), file=out)
    children: dict[int, str] = {}
    buffer = b""
    has_all = False
    while True:
        readable, _, _ = select.select([0, wake_read], [], [], None if has_all else IDLE_S)
        if not readable and not children:
            _load_more()
            has_all = True
        if wake_read in readable:
            os.read(wake_read, 4096)
            _reap(children, out)
        if 0 in readable:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _child(request, out.fileno(), wake_read, wake_write)
                children[pid] = request["id"]
                print(json.dumps({"id": request["id"], "pid": pid}), file=out)
    for pid in children:
        os.killpg(pid, signal.SIGKILL)


def _reap(children: dict[int, str], out: Any) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid in children:
            code = os.waitstatus_to_exitcode(status)
            print(json.dumps({"id": children.pop(pid), "exit": code}), file=out)


def _child(request: dict[str, Any], out: int, *pipes: int) -> None:
    """Become the process of one attempt; never returns."""
    parent = os.getppid()
    code = 1
    try:
        os.setpgid(0, 0)
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in (out, *pipes):
            os.close(fd)
        log_dir = Path(request["log_dir"])
        log = os.open(log_dir / "node.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        code = _run(request["run"], Path(request["request"]), log_dir)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(kind: str, request: Path, log_dir: Path) -> int:
    if kind == "train":
        from loomos.training.gang import run_node

        return run_node(request, log_dir)
    if kind == "evaluate":
        from loomos.prism.evaluate import run_evaluate

        return run_evaluate(request)
    if kind == "blend":
        from loomos.rl.blending import run_blend

        return run_blend(request)
    from loomos.training.export import run_export

    return run_export(request)


if __name__ == "__main__":
    take_arguments("loomos.training.host", __doc__)
    serve()
