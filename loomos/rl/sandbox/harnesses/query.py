"""Asks a query of databases that it makes in memory; a line of JSON per database."""

from __future__ import annotations

import json
import sqlite3
import sys

MOST_ROWS = 1000
ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action in ALLOWED and second != "load_extension":
        return sqlite3.SQLITE_OK
    sys.stderr.write("\nFORBIDDEN sql\n")
    return sqlite3.SQLITE_DENY


def main() -> None:
    """Read, ask, write."""
    given = json.loads(sys.stdin.read())
    for (statements,) in given["inputs"]:
        database = sqlite3.connect(":memory:")
        for statement in statements:
            database.execute(statement)
        database.set_authorizer(_authorize)
        try:
            rows = database.execute(given["function"]).fetchmany(MOST_ROWS)
            line = json.dumps({"value": [list(row) for row in rows]})
        except Exception as error:
            line = json.dumps({"error": type(error).__name__})
        print(line, flush=True)


if __name__ == "__main__":
    main()
