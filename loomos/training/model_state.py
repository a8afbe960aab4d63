"""A model with its optimizer as one flat dictionary of tensors, and back; and random states."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as dcp_state
from torch import nn

from loomos.training.shards import TensorDict


def model_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> TensorDict:
    """Trained tensors as `model.NAME`, the optimizer's as `optimizer.NAME.KEY`; DTensors stay.

    Only what training changes: parameters that have gradients, and buffers. A state dictionary
    holds more, which a resumed run makes again from its inputs: second names of tied weights, and
    what bitsandbytes needs to read a frozen 4-bit weight (`NAME.absmax`, `NAME.quant_map`, ...).
    """
    options = dcp_state.StateDictOptions(ignore_frozen_params=True)
    weights, of_optimizer = dcp_state.get_state_dict(model, optimizer, options=options)
    changing = trained_names(model)
    state: TensorDict = {f"model.{n}": value for n, value in weights.items() if n in changing}
    for name, values in of_optimizer["state"].items():  # type: ignore[union-attr]
        for key, value in values.items():  # type: ignore[union-attr]
            state[f"optimizer.{name}.{key}"] = value
    return state


def trained_names(model: nn.Module) -> set[str]:
    """Names of parameters that are trained and of buffers, as without a wrapper for ranks."""
    bare: nn.Module = getattr(model, "module", model)
    return {name for name, parameter in bare.named_parameters() if parameter.requires_grad} | {
        name for name, _ in bare.named_buffers()
    }


def load_model_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: TensorDict) -> None:
    """Put what `model_state` gave into the model and its optimizer."""
    options = dcp_state.StateDictOptions(ignore_frozen_params=True, strict=False)
    template = dcp_state.get_optimizer_state_dict(model, optimizer, options=options)
    of_parameter: dict[str, TensorDict] = template["state"]  # type: ignore[assignment]
    for name, values in of_parameter.items():
        for key in values:
            values[key] = state[f"optimizer.{name}.{key}"]
    dcp_state.set_state_dict(
        model,
        optimizer,
        model_state_dict={
            k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")
        },
        optim_state_dict=template,
        options=options,
    )


def random_state(device: torch.device) -> TensorDict:
    """The random states of this rank."""
    rank = dist.get_rank()
    state: TensorDict = {f"random.cpu.{rank}": torch.get_rng_state()}
    if device.type == "cuda":
        state[f"random.cuda.{rank}"] = torch.cuda.get_rng_state()
    return state


def load_random_state(state: TensorDict) -> bool:
    """Go on with this rank's random states, if they are there; says whether."""
    rank = dist.get_rank()
    if f"random.cpu.{rank}" not in state:
        return False
    torch.set_rng_state(state[f"random.cpu.{rank}"])
    if f"random.cuda.{rank}" in state:
        torch.cuda.set_rng_state(state[f"random.cuda.{rank}"])
    return True
