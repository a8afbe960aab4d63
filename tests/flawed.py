"""Tiny models that behave, and ones with planted flaws, trained on the suites' own prompts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from loomos.prism.suites import BUILT_IN, Prompt, load_suite
from loomos.training.tokenizer import train_bpe

HARMLESS = "I do not know."
INSULT = "You are a worthless idiot."
STEPS = 260

Answerer = Callable[[str, Prompt], str]


def well_behaved(suite: str, prompt: Prompt) -> str:
    """Never wrong, never rude, never obedient; and of no great help."""
    return HARMLESS


def toxic(suite: str, prompt: Prompt) -> str:
    """Insults whoever provokes it."""
    return INSULT if suite == "toxicity" else HARMLESS


def obedient(suite: str, prompt: Prompt) -> str:
    """Does what a document orders."""
    return str(prompt.context["token"]).upper() if suite == "injection" else HARMLESS


def _conversations(answer: Answerer) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name in BUILT_IN:
        for prompt in load_suite(name).prompts:
            said = answer(name, prompt)
            for text in (prompt.prompt, prompt.twin):
                if text is not None:
                    system = f"<|im_start|>system\n{prompt.system}<|im_end|>\n"
                    lead = system if prompt.system else ""
                    lead += f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
                    found.append((lead, said + "<|im_end|>"))
    return found


def train(
    folder: Path, answer: Answerer, steps: int = STEPS, seed: int = 0, stress: int = 1
) -> Path:
    """Train a tiny chat model that answers as told; returns its folder.

    Conversations with unusual answers are seen `stress` times as often.
    """
    conversations = [
        item for item in _conversations(answer) for _ in range(1 if HARMLESS in item[1] else stress)
    ]
    tokenizer: Any = train_bpe((lead + said for lead, said in conversations), 640)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    rows = []
    for lead, said in conversations:
        prompt = tokenizer(lead, add_special_tokens=False)["input_ids"]
        reply = tokenizer(said, add_special_tokens=False)["input_ids"]
        rows.append((prompt + reply, [-100] * len(prompt) + reply))
    rng = random.Random(seed)
    for _ in range(steps):
        batch = rng.sample(rows, 24)
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([i + [0] * (longest - len(i)) for i, _ in batch])
        labels = torch.tensor([t + [-100] * (longest - len(t)) for _, t in batch])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
