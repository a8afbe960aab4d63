"""Writers of their own process, for tests that kill the sequencer: `URL OUTPUT COUNT EVENTS`.

Each writer appends to its stream, one event after the other, and writes down what was
acknowledged. An append without an answer is made again with the same id.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TextIO

from loomos.loomdb import LoomDB, NewEvent
from loomos.loomdb.errors import LedgerUnavailable


async def write(db: LoomDB, stream: str, stop: Path, acknowledged: TextIO) -> None:
    n = 0
    while not stop.exists():
        event = NewEvent(event_type="tick", data={"n": n}, event_id=f"{stream}/{n}")
        try:
            (placed,) = await db.append(stream, [event], expected_version=n, timeout_s=20)
        except (LedgerUnavailable, OSError) as error:
            print(stream, n, error, file=sys.stderr)
            continue
        acknowledged.write(json.dumps([event.event_id, placed.position, placed.version]) + "\n")
        acknowledged.flush()
        n += 1


async def main(url: str, name: str, count: int, folder: Path) -> None:
    with (folder / f"{name}.jsonl").open("w") as acknowledged:
        async with LoomDB(url, may_lead=False) as db:
            await asyncio.gather(
                *(
                    write(db, f"{name}-{number}", folder / "stop", acknowledged)
                    for number in range(count)
                )
            )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
