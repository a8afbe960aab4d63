"""The model: loaded or made, given adapters, wrapped for its strategy.

PEFT is imported where it is used: it doubles the time a new process needs before its first step.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from loomos.errors import InvalidModel
from loomos.manifest import FineTuning, LoRA, Model, TrainingSpec
from loomos.training.fitting import check_size, refusing, said_by
from loomos.training.shapes import with_derived_widths

MAMBA_TYPES = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Whose layers read some weights past their modules, so that neither adapters nor 4 bits fit."""
READ_PAST_MODULES = ["out_proj", "conv1d"]
"""Those layers; PEFT refuses them."""
NOT_IN_4_BITS = ["lm_head", "out_proj", "conv1d", "x_proj", "dt_proj"]
"""Likewise, those that stay in full precision."""


def build_model(
    model: Model, source: Path | None, tokenizer: Any, *, quantize: bool = False
) -> Any:
    """Make or load the base model in fp32, without adapters.

    Args:
        model: what the manifest says.
        source: local folder of the weights; None for `init:`.
        tokenizer: whose tokens it reads; a new model ends where this has its end-of-text.
        quantize: load linear layers as 4-bit NF4 (QLoRA, arXiv:2305.14314).

    Raises:
        InvalidModel: transformers cannot make or load it; says why.
    """
    field = f"model.base_model {model.base_model!r}"
    with refusing(field):
        if model.base_model.startswith("init:"):
            made = _init_model(model, tokenizer, field)
            return _quantize_in_memory(made) if quantize else made
        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
        if quantize:
            options["quantization_config"] = _nf4(AutoConfig.from_pretrained(source).model_type)
        return AutoModelForCausalLM.from_pretrained(source, **options)


def _init_model(model: Model, tokenizer: Any, field: str) -> Any:
    model_type = model.base_model.removeprefix("init:")
    vocab_size, end = len(tokenizer), tokenizer.eos_token_id
    # Left to themselves, types name tokens of other vocabularies, and never learn the one for pads.
    named = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None}
    try:
        fields = with_derived_widths(model.config, AutoConfig.for_model(model_type))
        config = AutoConfig.for_model(model_type, **{"vocab_size": vocab_size, **named, **fields})
        size = config.vocab_size
    except Exception as error:  # each model type validates its fields in its own way
        raise InvalidModel(
            f"{field}: model.config does not fit {model_type}: {said_by(error)}"
        ) from error
    if size < vocab_size:
        raise InvalidModel(
            f"model.config.vocab_size {size} is less than the tokenizer's {vocab_size}; raise it"
        )
    with refusing(f"model.config does not fit {model_type}"):
        check_size(config, "model.config")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(model.fine_tuning_config.seed)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _nf4(model_type: str) -> Any:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=NOT_IN_4_BITS if model_type in MAMBA_TYPES else None,
    )


def _quantize_in_memory(model: Any) -> Any:
    """Quantise a model that is on no disk, by way of a temporary folder.

    Not by `save_pretrained`: within a process group it writes on the first rank only.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_model(model, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            quantization_config=_nf4(model.config.model_type),
        )


def add_adapters(model: Any, tuning: FineTuning, *, quantized: bool = False) -> Any:
    """Freeze the base and add LoRA adapters, if the method asks for them.

    Raises:
        InvalidModel: the model has no layers of these names, or such as take no adapter.
    """
    if tuning.method == "full":
        return model
    from peft import get_peft_model, prepare_model_for_kbit_training

    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = lora_config(tuning.lora, getattr(model.config, "model_type", ""))
    names = ", ".join(linear_layers(model)) or "none"
    field = f"model.fine_tuning_config.lora.target_modules {tuning.lora.target_modules!r}"
    fix = f"the model's linear layers are {names}"
    with refusing(field, fix), torch.random.fork_rng(devices=[]):
        torch.manual_seed(tuning.seed + 1)
        return get_peft_model(model, config)


def linear_layers(model: nn.Module) -> list[str]:
    """Last names of a model's linear layers, but for the one that gives logits; sorted."""
    from transformers.pytorch_utils import Conv1D

    head = getattr(model, "get_output_embeddings", lambda: None)()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


def lora_config(lora: LoRA, model_type: str = "") -> Any:
    """PEFT's configuration for our manifest's; `all-linear` means all that can have an adapter."""
    from peft import LoraConfig

    passes_over = lora.target_modules == "all-linear" and model_type in MAMBA_TYPES
    return LoraConfig(
        exclude_modules=READ_PAST_MODULES if passes_over else None,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def parallelize(model: nn.Module, spec: TrainingSpec, device: torch.device) -> nn.Module:
    """Wrap the model for the strategy; with one rank only fsdp2 changes it."""
    assert spec.model is not None
    tuning = spec.model.fine_tuning_config
    if tuning.torch_compile:
        model.compile()
    if spec.strategy.type == "fsdp2":
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if tuning.precision == "bf16"
            else MixedPrecisionPolicy()
        )
        for block in _decoder_blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        return model
    if dist.get_world_size() == 1:
        return model
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None
    )


def _decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a transformers model, in order."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if blocks:
        return blocks
    return [m for parent in model.modules() if isinstance(parent, nn.ModuleList) for m in parent]


def without_gradient_sync(
    model: nn.Module, *, is_last: bool
) -> contextlib.AbstractContextManager[Any]:
    """Context for one micro-batch: gradients are exchanged after the last one only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        return contextlib.nullcontext()
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return contextlib.nullcontext()
