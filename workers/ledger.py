"""The ledger's process: sequences events, signs checkpoints, has them cosigned.

It alone holds the log's key. Run two for a hot spare: one leads, the other waits. Start with
`python -m workers.ledger`.
"""

from __future__ import annotations

import asyncio
import logging

import httpx
from sqlalchemy.exc import SQLAlchemyError

from loomos.arguments import take_arguments
from loomos.errors import InvalidInput, LoomOSError
from loomos.loomdb.database import LoomDB
from loomos.loomdb.keys import read_policy, read_signer
from loomos.loomdb.witnessing import Cosigners
from loomos.pulse import ready_when
from loomos.runtime import run_process
from loomos.settings import load_settings

log = logging.getLogger(__name__)

COSIGN_INTERVAL_S = 2.0
LOOK_INTERVAL_S = 1.0


async def keep_cosigned(cosigners: Cosigners) -> None:
    """Ask the witnesses again and again; say once what a witness objects to."""
    said: dict[str, str] = {}
    while True:
        failures = await cosigners.cosign()
        for name, failure in failures.items():
            if said.get(name) != failure:
                log.error("witness %s: %s", name, failure)
        said = failures
        await asyncio.sleep(COSIGN_INTERVAL_S)


class Sequencing:
    """Whether somebody sequences, looked at again and again."""

    def __init__(self, db: LoomDB) -> None:
        self._db = db
        self.is_seen = False

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                self.is_seen = await self._db.is_sequenced()
            except (LoomOSError, SQLAlchemyError) as error:
                self.is_seen = False
                log.warning("cannot look into the ledger: %s", error)
            await asyncio.sleep(LOOK_INTERVAL_S)


async def main(stop: asyncio.Event) -> None:
    """Serve until asked to stop."""
    settings = load_settings().loomdb
    if settings.log_key_file is None:
        raise InvalidInput(
            "the ledger needs loomdb.log_key_file (LOOMOS_LOOMDB__LOG_KEY_FILE); "
            "`loomos ledger keygen` makes one"
        )
    key = read_signer(settings.log_key_file)
    memory = settings.log_key_file.with_suffix(".signed")
    policy = read_policy(settings.policy_file) if settings.policy_file else None
    async with (
        LoomDB(settings.url, log_key=key, memory_file=memory) as db,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        log.info("ledger %s at %s", key.name, settings.url.partition("@")[2] or settings.url)
        sequencing = Sequencing(db)
        watching = asyncio.create_task(sequencing.watch())
        ready_when(lambda: sequencing.is_seen)
        cosigning = None
        if policy is not None and policy.witnesses:
            cosigning = asyncio.create_task(keep_cosigned(Cosigners(db.ledger, policy, http)))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait(
            [task for task in (stopping, cosigning) if task], return_when="FIRST_COMPLETED"
        )
        if cosigning is not None:
            cosigning.cancel()
            await asyncio.wait([cosigning])
            if not cosigning.cancelled() and (error := cosigning.exception()):
                raise error
        watching.cancel()


if __name__ == "__main__":
    take_arguments("workers.ledger", __doc__, ("loomdb",))
    run_process(main)
