"""Conversations as a model reads them."""

from __future__ import annotations

from typing import Any

TURN_END = "<|im_end|>"


def chat_prompt(tokenizer: Any, turns: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation that waits for the assistant's turn."""
    if tokenizer.chat_template is None:
        text = "\n".join(turn["content"] for turn in turns)
        plain: list[int] = tokenizer(text)["input_ids"]
        return plain
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def turn_ends(tokenizer: Any) -> frozenset[int]:
    """Tokens that end a turn, besides those that end a text."""
    token = tokenizer.convert_tokens_to_ids(TURN_END)
    return frozenset([token]) if isinstance(token, int) else frozenset()
