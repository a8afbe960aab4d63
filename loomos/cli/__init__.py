"""The `loomos` command. Errors go to stderr as one line, with exit code 2."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave."""
    from loomos.cli.app import app, prepare
    from loomos.errors import LoomOSError
    from loomos.runtime import leave

    code = 0
    sys.argv[1:] = _context_first(sys.argv[1:])
    try:
        prepare()
        app()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except LoomOSError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            code = 141
        else:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            code = 2
    except KeyboardInterrupt:
        code = 130
    leave(code)


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
