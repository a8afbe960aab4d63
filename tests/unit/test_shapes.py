"""Widths of models from random weights follow the width that was given, in every family."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from loomos.errors import InvalidModel
from loomos.manifest import Model
from loomos.training.model import build_model
from loomos.training.shapes import with_derived_widths
from loomos.training.tokenizer import byte_tokenizer

FAMILIES = ("llama", "qwen2", "gpt2", "mistral", "gemma", "phi", "mixtral", "mamba")


def derived(family: str, **given: Any) -> dict[str, Any]:
    return with_derived_widths(given, AutoConfig.for_model(family))


def model(family: str, **config: Any) -> Any:
    chosen = Model(base_model=f"init:{family}", tokenizer="byte", config=config)
    return build_model(chosen, None, byte_tokenizer())


def test_a_family_keeps_its_proportions() -> None:
    assert derived("llama", hidden_size=64) == {
        "hidden_size": 64,
        "intermediate_size": 176,  # 64 * 11008 / 4096 = 172
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
    }
    assert derived("mistral", hidden_size=512) == {
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 16,
    }
    assert derived("gemma", hidden_size=96)["head_dim"] == 16
    assert derived("gpt2", hidden_size=48) == {"n_embd": 48, "n_head": 3}
    assert derived("mamba", hidden_size=64) == {"hidden_size": 64}


def test_what_is_given_or_not_asked_stays() -> None:
    given = {"hidden_size": 64, "intermediate_size": 99, "num_attention_heads": 8}
    assert derived("qwen2", **given) == {**given, "num_key_value_heads": 8}
    assert derived("llama", num_hidden_layers=2) == {"num_hidden_layers": 2}
    assert derived("llama", hidden_size=10)["num_attention_heads"] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_of_every_family_is_tiny(family: str) -> None:
    made = model(family, hidden_size=48, num_hidden_layers=2)
    assert sum(p.numel() for p in made.parameters()) < 300 * 48**2


def test_a_width_that_is_absurd_is_refused_with_its_field() -> None:
    with pytest.raises(InvalidModel, match=r"model\.config"):
        model("llama", hidden_size=2**40, num_hidden_layers=2)
