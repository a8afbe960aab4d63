"""Refusing models that cannot train, before anything is spent on them.

What transformers, PEFT and bitsandbytes say of a configuration that does not fit they would say at
every attempt again. Here it becomes `InvalidModel`, which ends the job, with the field that is to
be changed. What may pass, such as memory that others use now, is left as it is.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from loomos.errors import InvalidModel, LoomOSError
from loomos.manifest import FineTuning, Model

GIB = 2**30
TRIED_TOKENS = 8
"""Length of the sequence that a new model is tried with."""
SAID_CHARACTERS = 500
"""What is kept of a library's message."""
PASSING_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Of a machine's state, not of a model's files."""
NO_MEMORY = "can't allocate memory"
"""In the message of torch's `RuntimeError` when the system gives it no more."""
MOST_LAYERS_WHOLE = 1000
"""Models of more layers are not made as a whole to be counted."""


@contextlib.contextmanager
def refusing(field: str, fix: str = "") -> Iterator[None]:
    """Turn whatever a library raises over a model's settings into an `InvalidModel`.

    Args:
        field: the manifest's field that the settings come from, with its value.
        fix: what to do about it.

    Raises:
        InvalidModel: the block failed in a way that it would fail again.
    """
    try:
        yield
    except (LoomOSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in PASSING_ERRNOS:
            raise
        if NO_MEMORY in str(error):
            raise
        raise InvalidModel(f"{field}: {said_by(error)}{f'; {fix}' if fix else ''}") from error


def said_by(error: BaseException) -> str:
    """A library's message on one line, not too long; its type where it says nothing by itself."""
    message, _, _ = str(error).partition("Exception raised from")  # where in C++ tells nobody
    text = " ".join(message.split())[:SAID_CHARACTERS].rstrip(".")
    if isinstance(error, KeyError | AssertionError | AttributeError | IndexError) or not text:
        return f"{type(error).__name__} {text}".strip()
    return text


def check_size(config: Any, field: str) -> None:
    """Refuse a new model whose weights alone are more than this machine's memory.

    It is made of one layer and of two on torch's meta device, where tensors take no memory, and
    counted on from there.

    Args:
        config: of transformers.
        field: the manifest's field that it comes from, with its value.

    Raises:
        InvalidModel: it would not fit.
    """
    wanted = _parameters(config)
    needed, there = wanted * torch.float32.itemsize, psutil.virtual_memory().total
    if needed > there:
        raise InvalidModel(
            f"{field}: {wanted:,} parameters need {needed / GIB:,.1f} GiB for the weights alone, "
            f"and this node has {there / GIB:,.1f} GiB; make the model smaller, or ask for nodes "
            f"that hold it by resources.memory"
        )


def _parameters(config: Any) -> int:
    """Parameters of a model; 0 where they cannot be told without making it."""
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > 2:
        try:
            one, two = (_on_meta(_shrunk(config, few)) for few in (1, 2))
            return one + (layers - 1) * (two - one)
        except Exception:  # its settings hang together in a way that is not known here
            if layers > MOST_LAYERS_WHOLE:
                return 0
    return _on_meta(config)


def _shrunk(config: Any, layers: int) -> Any:
    shrunk = type(config).from_dict(config.to_dict())
    shrunk.num_hidden_layers = layers
    if getattr(shrunk, "layer_types", None):
        shrunk.layer_types = shrunk.layer_types[:layers]
    return shrunk


def _on_meta(config: Any) -> int:
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in made.parameters())


@torch.no_grad()
def try_out(model: nn.Module, wanted: Model, device: torch.device) -> None:
    """Have a new model read a few tokens, so that what does not fit is known before the first step.

    It draws no random number and changes nothing.

    Raises:
        InvalidModel: it cannot, or its positions are fewer than `sequence_length`.
    """
    tuning = wanted.fine_tuning_config
    positions = learned_positions(model)
    if positions is not None and tuning.sequence_length > positions:
        raise InvalidModel(
            f"model.fine_tuning_config.sequence_length {tuning.sequence_length} is more than the "
            f"{positions} positions of {wanted.base_model!r}; lower it"
            + (", or raise n_positions in model.config" if wanted.config else "")
        )
    tokens = torch.zeros(1, min(TRIED_TOKENS, tuning.sequence_length), dtype=torch.int64)
    was_training = model.training
    model.eval()
    with refusing(f"model.base_model {wanted.base_model!r} cannot read a token", _way_out(wanted)):
        model(input_ids=tokens.to(device), use_cache=False)
    model.train(was_training)


def learned_positions(model: nn.Module) -> int | None:
    """How many positions a model has embeddings for; None if its positions are computed."""
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(most, int):
        return None
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES:
            return most
    return None


POSITION_TABLES = {"wpe", "embed_positions", "position_embeddings", "position_embedding"}
"""What models of transformers call a learned table of positions."""


def _way_out(wanted: Model) -> str:
    tuning: FineTuning = wanted.fine_tuning_config
    if tuning.method == "qlora":
        return "its layers may not fit 4-bit weights; set method: lora, or change model.config"
    return "change model.config" if wanted.config else "check the model's files"
