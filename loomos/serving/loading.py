"""Models and tokenizers from folders, ready to generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from loomos.errors import InvalidModel
from loomos.manifest import unservable

_REASONS = (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError)
"""What transformers raises for files that it cannot use."""


def load_model(folder: Path) -> tuple[Any, Any]:
    """A model and its tokenizer.

    Raises:
        InvalidModel: transformers cannot load them, or the engine could not generate with them.
    """
    tokenizer = load_tokenizer(folder)
    on_gpu = torch.cuda.is_available()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            use_safetensors=True,
            local_files_only=True,
        )
    except _REASONS as error:
        raise _cannot_load(folder, error) from error
    model.eval().requires_grad_(False)
    model = model.cuda() if on_gpu else model
    if getattr(model, "_is_stateful", False) and not can_batch(model):
        raise InvalidModel(f"{folder.name}: {unservable(model.config.model_type)}")
    return model, tokenizer


@torch.inference_mode()
def can_batch(model: Any) -> bool:
    """Whether rows of different lengths that are generated together come out as each alone would.

    Keys and values of padding are masked out; a state that is carried from token to token may have
    taken the padding in, and not every model of transformers that has one knows to leave it out.
    """
    rows = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
    longest = max(map(len, rows))
    ids = torch.tensor([[5] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=ids.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    try:
        cache = DynamicCache(config=model.config)
        for place in range(3):
            together = model(
                input_ids=ids[:, -1:] if place else ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            alone = torch.cat(
                [
                    model(input_ids=row[kept.bool()][None], use_cache=False).logits[:, -1]
                    for row, kept in zip(ids, mask, strict=True)
                ]
            )
            if not torch.allclose(together.float(), alone.float(), rtol=0.02, atol=0.02):
                return False
            ids = torch.cat([ids, alone.argmax(-1, keepdim=True)], 1)
            positions = mask.sum(1, keepdim=True)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
    except (*_REASONS, AttributeError, IndexError, AssertionError):
        return False
    return True


def load_tokenizer(folder: Path) -> Any:
    """A tokenizer that can pad.

    Raises:
        InvalidModel: transformers cannot load it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except _REASONS as error:
        raise _cannot_load(folder, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _cannot_load(folder: Path, error: Exception) -> InvalidModel:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return InvalidModel(f"{folder.name}: {reason}")
