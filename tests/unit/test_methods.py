"""Every way of tuning on every architecture: trained, published, loaded by others, served by us."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loomos.errors import InvalidInput, InvalidModel
from loomos.manifest import TrainingSpec
from loomos.registry import Registry
from loomos.serving.engine import Engine
from loomos.serving.loading import load_model, load_tokenizer
from loomos.serving.rows import Piece, Row, Sampling
from loomos.training.export import fill
from loomos.training.shards import read_tensors
from tests.alone import Alone, alone

__all__ = ["alone"]

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)
"""What PEFT, transformers and torch say to each other's newest versions."""

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2": SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mistral": SMALL,
    "gemma": {**SMALL, "head_dim": 8},
    "phi": {**SMALL, "num_key_value_heads": 4},
    "mixtral": {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1},
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
}
METHODS = ("full", "lora", "qlora")
DIAGONAL = {("full", "gemma"), ("lora", "gpt2"), ("qlora", "llama"), ("qlora", "mamba")}
"""Those that are tried every time; the whole matrix is slow."""
PROMPTS = ("def main", "x", "import os\nimport re\n")
STEPS = 3


def spec_of(architecture: str, method: str) -> TrainingSpec:
    corpus = Path(__file__).parents[2] / "loomos" / "training"
    tuning = {"method": method, "lora": {"r": 2}, "max_steps": STEPS, "learning_rate": 0.02}
    tuning |= {"batch_size": 2, "sequence_length": 32}
    model = {"base_model": f"init:{architecture}", "tokenizer": "byte"}
    return TrainingSpec.model_validate(
        {
            "model": {**model, "config": CONFIGS[architecture], "fine_tuning_config": tuning},
            "data": {"training_dataset": str(corpus), "include": ["loop.py"]},
        }
    )


def engine_says(folder: Path) -> list[list[int]]:
    """Greedy tokens to prompts of different lengths, in one batch, that leave it one by one."""
    engine = Engine(*load_model(folder), max_batch=8, batch_wait_s=0.2)
    rows, ended = [], []
    for number, prompt in enumerate(PROMPTS):
        over = threading.Event()

        def deliver(piece: Piece, over: threading.Event = over) -> None:
            assert not piece.error, piece.error
            if piece.finish_reason:
                over.set()

        sampling = Sampling(max_tokens=3 + 3 * number, temperature=0)
        ids = engine.tokenizer(prompt)["input_ids"]
        rows.append(Row(prompt=ids, sampling=sampling, deliver=deliver))
        ended.append(over)
        engine.submit(rows[-1])
    assert all(over.wait(60) for over in ended)
    engine.close()
    return [row.generated for row in rows]


def others_say(model: Any, tokenizer: Any, lengths: list[int]) -> list[list[int]]:
    """Likewise, by the whole sequence read anew for each token, each prompt alone."""
    found = []
    for prompt, length in zip(PROMPTS, lengths, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        for _ in range(length):
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        found.append(ids[0, ids.shape[1] - length :].tolist())
    return found


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        pytest.param(m, a, marks=() if (m, a) in DIAGONAL else pytest.mark.slow)
        for m in METHODS
        for a in CONFIGS
    ],
)
def test_what_was_trained_is_published_loaded_and_served(
    tmp_path: Path, method: str, architecture: str
) -> None:
    job = Alone(tmp_path, spec_of(architecture, method))
    assert job.train().step == STEPS
    version = job.publish()
    assert job.publish() == version
    folder = job.download(version)
    tokenizer = load_tokenizer(folder)

    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer(PROMPTS[-1])["input_ids"]])
    with torch.no_grad():
        expected, found = (m(input_ids=ids).logits for m in (job.trained(), loaded))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    assert (folder / "adapter" / "adapter_config.json").exists() == (method != "full")

    if architecture == "mamba":
        with pytest.raises(InvalidModel, match="mamba keeps a state per sequence"):
            load_model(folder)
        with pytest.raises(InvalidInput, match="but not served or verified"):
            registry = Registry(job.store)
            registry.check_servable(registry.manifest(f"made@{version.version}"))
        return
    said = engine_says(folder)
    assert [len(tokens) for tokens in said] == [3, 6, 9]
    assert said == others_say(loaded, tokenizer, [3, 6, 9])


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_with_what_quantisation_kept_is_published_all_the_same(tmp_path: Path) -> None:
    """Checkpoints of QLoRA runs used to hold bitsandbytes' statistics of the frozen weights."""
    job = Alone(tmp_path, spec_of("llama", "qlora"))
    job.train()
    model = job.trained()
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    frozen = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    fill(model, {**weights, f"{frozen}.absmax": torch.zeros(4)}, STEPS)
    fill(model, {**weights, f"{frozen}.quant_state.bitsandbytes__nf4": torch.zeros(4)}, STEPS)
    with pytest.raises(Exception, match="does not fit the model"):
        fill(model, {**weights, "base_model.other": torch.zeros(4)}, STEPS)


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_of_adapters_holds_nothing_of_the_frozen_base(tmp_path: Path) -> None:
    job = Alone(tmp_path, spec_of("gpt2", "qlora"))
    outcome = job.train()
    assert outcome.checkpoint is not None
    tensors = read_tensors(job.store, "job-1", outcome.checkpoint, tmp_path / "read")
    kept = [name for name in tensors if name.startswith("model.")]
    assert kept and all("lora_" in name for name in kept)


def test_a_model_that_cannot_be_served_is_refused_where_verification_is_asked_for() -> None:
    document = spec_of("mamba", "full").model_dump(mode="json", exclude_none=True)
    document["verify"] = {}
    with pytest.raises(ValueError, match=r"remove spec\.verify and spec\.rollout: mamba keeps"):
        TrainingSpec.model_validate(document)
