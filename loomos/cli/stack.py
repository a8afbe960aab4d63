"""`loomos up`, `loomos down`, `loomos status`: the embedded stack."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.output import Format, Output, chosen, show

if TYPE_CHECKING:
    from subprocess import Popen

    from loomos.stack.state import StackState, StateDir

SILENT_S = 30.0
"""A supervisor writes every few seconds."""

Folder = Annotated[
    Path | None, typer.Option("--dir", help="Folder for the stack's data; default .loomos here.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.command()(up)
    app.command()(down)
    app.command()(status)


def up(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Worker nodes to run.")] = 2,
    servers: Annotated[int, typer.Option(min=0, max=64, help="Serving processes to run.")] = 1,
    folder: Folder = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until all is healthy.")] = 120,
    output: Output = None,
) -> None:
    """Start Temporal, S3, gateway, control worker, nodes and servers on this machine."""
    import os
    import subprocess
    import sys

    from loomos.contexts import register_stack
    from loomos.errors import InvalidInput

    state = _state_dir(folder, starts=True)
    started = None
    if not state.is_supervised():
        state.prepare()
        with (state.logs / "supervisor.log").open("ab") as log:
            started = subprocess.Popen(
                [
                    *(sys.executable, "-m", "loomos.stack.supervisor"),
                    *(str(state.root), str(nodes), str(servers)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **_allowed_roots()},
            )
    healthy = _await_health(state, timeout, started, quiet=chosen(output) != Format.TABLE)
    try:
        name = register_stack(state.root)
    except (OSError, InvalidInput) as error:
        print(f"warning: not registered as a context: {error}", file=sys.stderr)
    else:
        if chosen(output) == Format.TABLE:
            print(f"context {name}: commands find this stack from any folder")
    if chosen(output) != Format.TABLE:
        show(healthy.model_dump(mode="json", exclude={"settings"}), output, lambda: None)


def down(folder: Folder = None) -> None:
    """Stop the stack; its data stays."""
    import os
    import signal

    from loomos.errors import Unavailable

    state = _state_dir(folder)
    known = state.read()
    if not state.is_supervised() or known is None:
        print(f"not running: {state.root}")
        return
    os.kill(known.supervisor_pid, signal.SIGTERM)
    os.kill(known.supervisor_pid, signal.SIGCONT)  # it may have been stopped
    deadline = time.monotonic() + 60
    while state.is_supervised():
        if time.monotonic() > deadline:
            raise Unavailable(f"the supervisor did not stop; see {state.logs / 'supervisor.log'}")
        time.sleep(0.1)
    print(f"stopped: {state.root}")


def status(folder: Folder = None, output: Output = None) -> None:
    """Show the stack's processes; exit code 1 unless all are healthy."""
    state = _state_dir(folder)
    known = state.read()
    running = state.is_supervised()
    if known is None:
        print("no stack here; `loomos up` starts one")
        raise typer.Exit(1)
    problem = known.problem or (_silence(state) if running else "")
    known = known.model_copy(update={"problem": problem})
    content = {"running": running, **known.model_dump(mode="json", exclude={"settings"})}

    def table() -> None:
        from loomos.cli.output import print_table

        if not running:
            print("not running; `loomos up` starts it")
            return
        print_table(
            ("MEMBER", "HEALTHY", "PID", "RESTARTS", "WHERE"),
            [
                (m.name, "yes" if m.healthy else "no", m.pid, m.restarts, m.url)
                for m in known.members
            ],
        )
        for line in _problems(known):
            print(line)

    show(content, output, table)
    if not (running and known.is_healthy):
        raise typer.Exit(1)


def _problems(known: StackState) -> list[str]:
    """What is wrong, the stack's own problem first."""
    found = [known.problem] if known.problem else []
    return found + [f"{m.name} {m.problem}" for m in known.members if m.problem]


def _silence(state: StateDir) -> str:
    """What it means that the supervisor has written nothing for long, if so."""
    silent_s = state.silent_s()
    if silent_s < SILENT_S:
        return ""
    return (
        f"the supervisor has written nothing for {silent_s:.0f} s: it is stopped, or cannot write "
        f"to {state.root} ({state.free_bytes() // 1024} KiB free); what is shown is of then"
    )


def _allowed_roots() -> dict[str, str]:
    """Documents may name files below this folder, unless the settings say otherwise."""
    import json

    from loomos.settings import load_settings

    if load_settings().data.roots is not None:
        return {}
    here = Path.cwd()
    if Path.home().is_relative_to(here):  # keys and tokens of all kinds live in a home
        return {}
    return {"LOOMOS_DATA__ROOTS": json.dumps([str(here)])}


def _state_dir(folder: Path | None, *, starts: bool = False) -> StateDir:
    """The folder that is meant: that of `--dir`, of a named context, the nearest, the current one.

    Raises:
        InvalidInput: the named context is a gateway elsewhere.
    """
    from loomos import contexts
    from loomos.errors import InvalidInput
    from loomos.stack.state import StateDir

    if folder is not None:
        return StateDir(folder)
    named = contexts.chosen_by_flag() or contexts.chosen_by_variable()
    if named is not None and named.state_dir is None:
        raise InvalidInput(f"{named.where} is not a stack of this machine; name another context")
    found = contexts.find_state_dir() if starts and named is None else contexts.meant_state_dir()
    return StateDir(found or Path.cwd() / contexts.STATE_DIR)


def _await_health(
    state: StateDir, timeout_s: float, started: Popen[bytes] | None, *, quiet: bool
) -> StackState:
    """Print each member once it is healthy.

    Args:
        state: the stack.
        timeout_s: how long to wait.
        started: the supervisor that this command started, if it did. On a busy machine it takes a
            while before it shows, and until then the state is that of the one before.
        quiet: print nothing.
    """
    from loomos.errors import Unavailable

    deadline = time.monotonic() + timeout_s
    shown: set[str] = set()
    while True:
        known = state.read()
        if known and started and known.supervisor_pid != started.pid:
            known = None
        supervised = state.is_supervised()
        for member in known.members if known and supervised else ():
            if member.healthy and member.name not in shown:
                shown.add(member.name)
                if not quiet:
                    print(f"{member.name:<10} {member.url}", flush=True)
        if known is not None and supervised and known.is_healthy:
            return known
        if (started is None or started.poll() is not None) and not state.is_supervised():
            raise Unavailable(f"the supervisor ended; see {state.logs / 'supervisor.log'}")
        if time.monotonic() > deadline:
            late = "; ".join(_problems(known)) if known else "no state was written"
            raise Unavailable(f"not healthy after {timeout_s:g} s: {late}; see {state.logs}")
        time.sleep(0.1)
