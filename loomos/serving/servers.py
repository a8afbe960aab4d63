"""What serving processes say of themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from loomos.errors import NotFound
from loomos.jobs.serving import ServerStatus
from loomos.storage import Store
from loomos.storage.layout import SERVERS_PREFIX

DEAD_AFTER_S = 5.0
"""A server that has said nothing for so long holds nothing."""


def read_servers(store: Store) -> list[ServerStatus]:
    """Every server that has said something and not said goodbye."""
    found: list[ServerStatus] = []
    for item in store.objects(SERVERS_PREFIX):
        try:
            found.append(ServerStatus.model_validate_json(store.get(item.key)))
        except NotFound:  # it has just said goodbye
            continue
    return found


def is_alive(server: ServerStatus) -> bool:
    """Whether a server has spoken lately and takes requests."""
    age = datetime.now(UTC) - server.at
    return not server.is_draining and age < timedelta(seconds=DEAD_AFTER_S)
