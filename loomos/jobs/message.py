"""The base of every message between clients, workflows, activities and ranks.

Each workflow and activity takes one of them and returns one. They are part of histories: additive
changes only, with defaults. Big things travel as keys into the store.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Empty(Message):
    """Nothing to say."""


class TimelineEntryBase(Message):
    """Something that happened."""

    sequence: int
    """Counts from 1."""
    at: datetime
    """When."""
    message: str
    """For people."""
