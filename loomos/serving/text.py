"""From tokens to text, piece by piece, up to a stop text."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream

MOST_CHARACTERS = 8_000_000
"""No prompt may have more, whatever the model."""


def most_characters(tokenizer: Any, context_length: int) -> int:
    """Characters above which a text cannot fit a context, however well it packs into tokens."""
    longest = max(map(len, tokenizer.get_vocab()), default=1)
    return min(context_length * longest, MOST_CHARACTERS)


class TextStream:
    """Turns the tokens of one answer into text."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._tokens: list[int] = []
        self._seen = ""
        self._held = ""

    def add(self, token: int) -> tuple[str, bool]:
        """Take in a token; returns the text that is certain now, and whether a stop text came."""
        self._tokens.append(token)
        more = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        self._seen += more
        self._held += more
        if not self._stop:
            text, self._held = self._held, ""
            return text, False
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            return self._held[: min(found)], True
        # What may be the beginning of a stop text is held back.
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        at = len(self._held) - keep
        text, self._held = self._held[:at], self._held[at:]
        return text, False

    def finish(self) -> str:
        """The text that was held back, half a character at the end included."""
        whole: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        rest = whole[len(self._seen) :] if whole.startswith(self._seen) else ""
        text, self._held = self._held + rest, ""
        return text


class WholeText:
    """Turns the tokens of one answer into text once they are all there; much cheaper."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []

    def add(self, token: int) -> tuple[str, bool]:
        """Take in a token."""
        self._tokens.append(token)
        return "", False

    def finish(self) -> str:
        """All the text."""
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
