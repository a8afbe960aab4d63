"""Models and tokenizers from folders, ready to generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loomos.errors import InvalidModel

_REASONS = (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError)
"""What transformers raises for files that it cannot use."""


def load_model(folder: Path) -> tuple[Any, Any]:
    """A model and its tokenizer.

    Raises:
        InvalidModel: transformers cannot load them.
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
    return (model.cuda() if on_gpu else model), tokenizer


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
