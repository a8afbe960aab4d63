"""Names of things: how a person's `cartpole` or `cartpole-3f` becomes one id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from loomos.client.models import Answer
from loomos.errors import InvalidInput

Kind = Literal[
    "job",
    "experiment",
    "campaign",
    "verification",
    "rollout",
    "endpoint",
    "schedule",
    "model",
    "node",
]
"""What has an id; rollouts go by their endpoint, models by `NAME` or `NAME@VERSION`."""
MOST_NAMES = 20
"""How many are listed at most."""


class NameList(Answer):
    """Ids that a name may mean."""

    ids: list[str]
    """Newest first, or by name; the one that is exactly that comes alone."""
    is_complete: bool = True
    """False if there are more."""


def the_one(kind: str, text: str, found: NameList) -> str:
    """The id that is meant; `text` itself if nothing is known of it.

    Raises:
        InvalidInput: it may mean several; the message lists them.
    """
    if not found.ids:
        return text
    if len(found.ids) == 1 and found.is_complete:
        return found.ids[0]
    more = "" if found.is_complete else " and more"
    raise InvalidInput(
        f"{text!r} may mean {len(found.ids)}{more} {kind}s: {', '.join(found.ids)}; "
        f"give more of the id"
    )


def matching(known: Sequence[str], text: str) -> list[str]:
    """Of these ids the one that is exactly `text`, else those that begin with it."""
    return [text] if text in known else [one for one in known if one.startswith(text)]
