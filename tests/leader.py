"""A process that stands for election and writes as often as it can: `python -m tests.leader`.

Arguments: node, members with commas, group, file to append JSON lines to.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from loomos.errors import Conflict
from loomos.nexus.failover.election import ConsensusManager, NodeRole
from loomos.runtime import run_process


async def main(stop: asyncio.Event) -> None:
    """Lead when chosen; try to write whenever it has ever led, leader or not."""
    node, members, group, file = sys.argv[1:]
    consensus = ConsensusManager(
        node, members.split(","), election_timeout_ms=2000, heartbeat_interval_ms=400, group=group
    )

    def say(**facts: object) -> None:
        with Path(file).open("a") as lines:
            lines.write(json.dumps({"node": node, "term": consensus.term, **facts}) + "\n")

    @consensus.on_role_change
    async def changed(old: NodeRole, new: NodeRole) -> None:
        say(old=old, new=new)

    await consensus.start()
    count = 0
    while not stop.is_set():
        if consensus.term:
            count += 1
            try:
                await consensus.write({"count": count})
                say(wrote=count)
            except Conflict as error:
                say(refused=str(error), role=consensus.role)
        await asyncio.sleep(0.05)
    await consensus.stop()


if __name__ == "__main__":
    run_process(main)
