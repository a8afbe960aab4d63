"""The `loomos` command. Errors go to stderr as one line, with exit code 2."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave."""
    from loomos.cli.app import app
    from loomos.errors import LoomOSError
    from loomos.runtime import leave

    code = 0
    try:
        app()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except LoomOSError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 141
    leave(code)
