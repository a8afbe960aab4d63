"""Models that cannot train are refused at once, with the field and the way out; nothing retries."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loomos.errors import NON_RETRYABLE_TRAINING_ERRORS, InvalidModel
from loomos.manifest import Model
from loomos.training.fitting import refusing, try_out
from loomos.training.model import add_adapters, build_model
from loomos.training.tokenizer import byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}


def make(kind: str, config: dict[str, Any], **tuning: Any) -> Any:
    """As a rank does it."""
    tuning = {"max_steps": 1, "sequence_length": 32, **tuning}
    model = Model.model_validate(
        {
            "base_model": f"init:{kind}",
            "tokenizer": "byte",
            "config": config,
            "fine_tuning_config": tuning,
        }
    )
    quantize = tuning.get("method") == "qlora"
    base = build_model(model, None, byte_tokenizer(), quantize=quantize)
    made = add_adapters(base, model.fine_tuning_config, quantized=quantize)
    try_out(made, model, torch.device("cpu"))
    return made


def lora(*names: str) -> dict[str, Any]:
    return {"method": "lora", "lora": {"target_modules": list(names)}}


@pytest.mark.parametrize(
    ("kind", "config", "tuning", "said"),
    [
        ("llama", SMALL, lora("nope"), r"target_modules \['nope'\].*down_proj.*v_proj"),
        ("llama", SMALL, lora("input_layernorm"), "not supported.*linear layers are"),
        ("mamba", {"hidden_size": 32}, lora("out_proj"), "target_modules.*incompatible"),
        ("llama", {**SMALL, "num_attention_heads": 0}, {}, "model.config does not fit llama"),
        ("llama", {**SMALL, "num_attention_heads": 3}, {}, "hidden size .32. is not a multiple"),
        ("llama", {**SMALL, "num_attention_heads": -4}, {}, "model.config.*negative dimension"),
        ("llama", {**SMALL, "hidden_size": 0}, {}, "model.config does not fit llama"),
        ("llama", {**SMALL, "num_key_value_heads": 3}, {}, "cannot read a token.*model.config"),
        ("llama", {**SMALL, "hidden_act": "nope"}, {}, "model.config.*KeyError 'nope'"),
        ("llama", {**SMALL, "vocab_size": 100}, {}, "vocab_size 100 is less.*259; raise it"),
        ("llama", {**SMALL, "vocab_size": 10**12}, {}, r"weights alone.*this node has"),
        ("llama", {**SMALL, "num_hidden_layers": 10**9}, {}, r"GiB for the weights alone"),
        ("llama", {**SMALL, "hidden_size": 10**12}, {}, "model.config.*overflow"),
        ("gpt2", GPT2, {"sequence_length": 128}, "sequence_length 128.*64 positions.*n_positions"),
        ("nosuch", {}, {}, "model.config does not fit nosuch: Unrecognized"),
        ("t5", {}, {}, "does not fit t5"),
    ],
)
def test_what_does_not_fit_is_named(
    kind: str, config: dict[str, Any], tuning: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidModel, match=rf"(?s)^(?=model\.).*{said}"):
        make(kind, config, **tuning)
    assert "InvalidModel" in NON_RETRYABLE_TRAINING_ERRORS


def test_what_fits_is_left_as_it_is() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    made = make("llama", SMALL, method="lora", lora={"dropout": 0.5})
    assert made.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in made.parameters())


def test_all_linear_passes_over_what_can_have_no_adapter() -> None:
    made = make("mamba", {"hidden_size": 32, "num_hidden_layers": 1}, method="lora")
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    assert any("in_proj" in name for name in trained)
    assert not any("out_proj" in name or "conv1d" in name for name in trained)


@pytest.mark.parametrize(
    "passing",
    [
        MemoryError(),
        OSError(28, "No space left on device"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_what_may_pass_is_tried_again(passing: Exception) -> None:
    with pytest.raises(type(passing)), refusing("model.base_model"):
        raise passing
