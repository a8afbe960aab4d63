"""Keys of search attributes, for workflows that set them and clients that ask by them.

`loomos.jobs.names` lists them for the server.
"""

from __future__ import annotations

from temporalio.common import SearchAttributeKey

KIND = SearchAttributeKey.for_keyword("LoomKind")
NAME = SearchAttributeKey.for_keyword("LoomName")
OWNER = SearchAttributeKey.for_keyword("LoomOwner")
PROJECT = SearchAttributeKey.for_keyword("LoomProject")
STATE = SearchAttributeKey.for_keyword("LoomState")
MODEL = SearchAttributeKey.for_keyword("LoomModel")
PRIORITY = SearchAttributeKey.for_int("LoomPriority")
LABELS = SearchAttributeKey.for_keyword_list("LoomLabels")


def quoted(text: str) -> str:
    """Text as a visibility query has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
