"""The base of every message between clients, workflows, activities and ranks.

Each workflow and activity takes one of them and returns one. They are part of histories: additive
changes only, with defaults. Big things travel as keys into the store.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CompactMessage(Message):
    """A message of which there are very many: fields at their defaults are not written."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in write(self).items()
            if fields[name].is_required() or getattr(self, name) != fields[name].default
        }


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
