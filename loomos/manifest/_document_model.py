"""The base of everything a person writes, and the names in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loomos.limits import check_travels, parts_of


class BrokenRules(ValueError):
    """A document whose fields are right one by one, and do not go together."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults
        """Each broken rule in words."""


class Document(BaseModel):
    """Base of everything a person writes: strict, finite, closed, immutable, documented."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def faults(self) -> Iterator[str]:
        """Rules across fields that are broken, each in words that say what would be right.

        All of them are reported together, so a rule does not rely on the ones before it; one that
        means nothing while another is broken is left out.
        """
        yield from ()

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        faults = list(dict.fromkeys(self.faults()))
        if faults:
            raise BrokenRules(faults)
        return self


class WholeDocument(Document):
    """Base of the documents themselves: what is accepted reads back as it is, wherever it goes."""

    @model_validator(mode="after")
    def _travels(self) -> Self:
        for name, part in parts_of(self):
            check_travels(part, name)
        return self


Name = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
]
"""A DNS label as Kubernetes uses for names: lower case, digits, `-` and `.`."""

LabelKey = Annotated[
    str, Field(max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$")
]
LabelValue = Annotated[
    str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$")
]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]


class Metadata(Document):
    """Who and what a job is."""

    name: Name
    """Name of the job; its id is this name and a random suffix."""
    labels: Labels = {}
    """Free key/value pairs to filter jobs by."""
    project: Name = "default"
    """The project that the job counts for; the fairness key in the queue."""
