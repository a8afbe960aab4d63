"""The `loomos` command.

Exit codes: 0 done; 1 what was asked about ended badly, such as a gate that failed or a job that
did; 2 an error, as one line on stderr; 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys

TRACEBACK = "LOOMOS_TRACEBACK"
"""Variable that asks for the traceback of an error that nobody expected."""


def main() -> None:
    """Run the command line and leave."""
    from loomos.runtime import leave

    leave(run())


def run() -> int:
    """Run the command line; its exit code. An error is one line on stderr."""
    from loomos.cli.app import app, prepare
    from loomos.errors import LoomOSError

    sys.argv[1:] = _context_first(sys.argv[1:])
    try:
        prepare()
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Nobody reads any more: the flush at the end must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except LoomOSError as error:
        return _complain(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    except Exception as error:
        return _of_typer(error)


def _of_typer(error: Exception) -> int:
    """Say what is wrong with the command line; typer's own classes are private."""
    message = getattr(error, "format_message", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        return 2
    if type(error).__name__ == "Abort":
        return 130
    if message is None:
        if os.environ.get(TRACEBACK):
            raise error
        said = f"unexpected {type(error).__name__}: {error}"
        return _complain(f"{said} ({TRACEBACK}=1 shows where; please report it)")
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    return _complain(message() + hint)


def _complain(message: str) -> int:
    from loomos.cli.tables import printable

    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2


def _context_first(arguments: list[str]) -> list[str]:
    """`--context NAME` may stand anywhere before `--`, as people know it from kubectl."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    first: list[str] = []
    others: list[str] = []
    words = iter(arguments[:end])
    for word in words:
        if word.startswith("--context="):
            first.append(word)
        elif word == "--context":
            first += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            others.append(word)
    return [*first, *others, *arguments[end:]]
