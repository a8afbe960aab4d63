"""A request on its way through the engine, and how its tokens are chosen."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from loomos.serving.text import TextStream, WholeText

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen."""

    max_tokens: int
    """Most tokens to generate."""
    temperature: float = 1.0
    """0 takes the most likely token, and so does what is too close to 0 to divide by."""
    top_p: float = 1.0
    """Take from the fewest tokens whose chances sum to this (arXiv:1904.09751), at least one."""
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
    is_done: bool = False
    """Whether its last piece has been delivered."""

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far: what a model reads to go on with it."""
        return self.prompt + self.generated

    def say(self, piece: Piece) -> None:
        """Deliver a piece; nothing follows the last. Who cannot take it gets no more."""
        if self.is_done:
            return
        self.is_done = piece.finish_reason is not None
        try:
            self.deliver(piece)
        except Exception:
            log.exception("a piece could not be delivered")
            self.is_cancelled = True

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.say(Piece(text="", finish_reason="error", error=str(error) or repr(error)))

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self.is_cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()


def choose_tokens(logits: Tensor, rows: list[Row]) -> list[int | Exception]:
    """The next token of each row, or why there is none; the other rows have theirs all the same.

    Args:
        logits: [rows, vocabulary].
        rows: with their sampling.
    """
    chosen: list[int | Exception] = logits.argmax(-1).tolist()
    for i, row in enumerate(rows):
        if row.generator is not None:
            try:
                chosen[i] = _sample(logits[i], row)
            except Exception as error:
                chosen[i] = error
    return chosen


def _sample(logits: Tensor, row: Row) -> int:
    # From the largest down, so that no temperature overflows: 0 stays 0, all else goes to -inf.
    temperature = max(row.sampling.temperature, torch.finfo(logits.dtype).tiny)
    chances = torch.softmax((logits - logits.max()) / temperature, -1)
    if row.sampling.top_p < 1:
        ordered, order = chances.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= row.sampling.top_p
        beyond[0] = False  # a share too small for any token still takes the likeliest
        ordered[beyond] = 0
        return int(order[torch.multinomial(ordered, 1, generator=row.generator)])
    return int(torch.multinomial(chances, 1, generator=row.generator))
