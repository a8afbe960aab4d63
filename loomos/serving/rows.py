"""A request on its way through the engine, and how its tokens are chosen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from loomos.serving.text import TextStream, WholeText

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen."""

    max_tokens: int
    """Most tokens to generate."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Take from the fewest tokens whose chances sum to this (arXiv:1904.09751)."""
    seed: int | None = None
    """Makes sampling repeatable."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some more of an answer."""

    text: str
    """New text, perhaps none."""
    finish_reason: FinishReason | None = None
    """Set on the last piece."""
    tokens: int = 0
    """Tokens generated so far."""
    error: str = ""
    """What went wrong, if it did."""


@dataclass(eq=False, kw_only=True)
class Row:
    """A request on its way through the engine."""

    prompt: list[int]
    """Token ids."""
    sampling: Sampling
    """How to choose."""
    deliver: Callable[[Piece], None]
    """Gets every piece, on the engine's thread."""
    slot: int = 0
    """Its adapter."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end it, besides the model's own."""
    arrived: float = field(default_factory=time.monotonic)
    """When it came."""
    is_cancelled: bool = False
    """Whether nobody wants the rest; see `cancel`."""
    on_cancel: Callable[[], None] | None = None
    """Called by `cancel`; set by an engine that must be told."""
    generated: list[int] = field(default_factory=list)
    """Tokens so far."""
    is_streamed: bool = False
    """Whether every piece is wanted as it comes; else the last one has all the text."""
    text: TextStream | WholeText | None = None
    """Turns tokens into text."""
    first_at: float | None = None
    """When the first token came, by `time.monotonic`."""
    generator: torch.Generator | None = None
    """Source of chance."""

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self.is_cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()


def choose_tokens(logits: Tensor, rows: list[Row]) -> list[int]:
    """The next token of each row.

    Args:
        logits: [rows, vocabulary].
        rows: with their sampling.
    """
    chosen: list[int] = logits.argmax(-1).tolist()
    for i, row in enumerate(rows):
        if row.generator is not None:
            chosen[i] = _sample(logits[i] / row.sampling.temperature, row)
    return chosen


def _sample(logits: Tensor, row: Row) -> int:
    chances = torch.softmax(logits, -1)
    if row.sampling.top_p < 1:
        ordered, order = chances.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= row.sampling.top_p
        ordered[beyond] = 0
        return int(order[torch.multinomial(ordered, 1, generator=row.generator)])
    return int(torch.multinomial(chances, 1, generator=row.generator))
