"""GRPO and DPO of a tiny Llama beside TRL: tokens a second of processor time, in turn on one core.

The same model, tokenizer, data, batch and lengths; both sample, judge and learn (GRPO), or learn
with a reference model (DPO). Ours runs the learners that jobs run, without checkpoints. Tokens are
those of prompts and completions that a step handles. Goal: at least TRL's.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from loomos.jobs.training import TrainAssignment
from loomos.manifest import TrainingSpec
from loomos.settings import StorageSettings
from loomos.storage import open_store
from loomos.training.loop import make_learner
from loomos.training.report import Reporter
from loomos.training.resolve import resolve
from loomos.training.setup import RankContext, Workplace
from loomos.training.tokenizer import byte_tokenizer

NEEDS_STACK = False
ROUNDS = 3
STEPS = 30
WARM_UP = 3
GROUP, PROMPTS, COMPLETION = 8, 8, 16
PAIRS = 16

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}


def make_inputs(folder: Path) -> None:
    """A model on disk that both load, and preferences."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **SHAPE)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with (folder / "pairs.jsonl").open("w") as file:
        for n in range(640):
            pair = {"prompt": f"What is {n} + 1?", "chosen": f" It is {n + 1}.", "rejected": " No!"}
            file.write(json.dumps(pair) + "\n")


def ours(folder: Path, algorithm: str) -> float:
    """Tokens a second."""
    tuning = {"max_steps": STEPS + WARM_UP, "sequence_length": 128, "learning_rate": 1e-4}
    spec: dict[str, Any] = {
        "algorithm": algorithm,
        "model": {
            "base_model": str(folder / "model"),
            "fine_tuning_config": {
                **tuning,
                "batch_size": GROUP * PROMPTS if algorithm == "grpo" else PAIRS,
                "scheduler": "constant",
            },
        },
    }
    if algorithm == "grpo":
        spec["environment"] = {"name": "math", "config": {"terse": True}}
        spec["grpo"] = {"group_size": GROUP, "max_completion_tokens": COMPLETION, "chat": False}
    else:
        spec["data"] = {"training_dataset": str(folder / "pairs.jsonl")}
    checked = TrainingSpec.model_validate(spec)
    storage = StorageSettings(url=f"file://{folder}/store")
    job = TrainAssignment(
        job_id="bench",
        generation=1,
        lease_epoch=1,
        node_rank=0,
        nodes=[],
        ranks_per_node=1,
        spec=checked,
        inputs=resolve(checked, storage, lambda _: None),
    )
    context = RankContext(
        storage=storage,
        scratch=folder / "scratch",
        reporter=Reporter(None, 0),
        should_stop=lambda: False,
    )
    learner = make_learner(
        Workplace(
            job=job,
            context=context,
            store=open_store(storage),
            device=torch.device("cpu"),
            control=None,
        )
    )
    learner.prepare()
    tokens, began = 0.0, 0.0
    for step in range(STEPS + WARM_UP):
        if step == WARM_UP:
            tokens, began = 0.0, time.process_time()
        totals = learner.step(step, [])
        metrics = learner.measure(step + 1, totals) or {}
        tokens += metrics["tokens"] or 0
    learner.close()
    return tokens / (time.process_time() - began)


def trl(folder: Path, algorithm: str) -> float:
    """Likewise of TRL, by its own trainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

    from loomos.rl.environments import FamilyEnvironment

    environment = FamilyEnvironment("math", {"terse": True})
    common = {
        "output_dir": str(folder / "trl"),
        "max_steps": STEPS + WARM_UP,
        "learning_rate": 1e-4,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "bf16": False,
    }
    counted: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM_UP:
                counted.clear()
                self.began = time.process_time()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.took_s = time.process_time() - self.began

    clock = Clock()
    tokenizer = byte_tokenizer()
    if algorithm == "grpo":
        tasks = [environment.make_task(n) for n in range(PROMPTS * (STEPS + WARM_UP))]

        def reward(completions: list[str], completion_ids: Any, number: Any, **_: Any) -> Any:
            counted.append(sum(map(len, completion_ids)))
            return [
                environment.reward(tasks[n].reply(text))
                for n, text in zip(number, completions, strict=True)
            ]

        trainer: Any = GRPOTrainer(
            model=str(folder / "model"),
            reward_funcs=reward,
            args=GRPOConfig(
                per_device_train_batch_size=GROUP * PROMPTS,
                num_generations=GROUP,
                max_completion_length=COMPLETION,
                beta=0.0,
                loss_type="dapo",
                **common,
            ),
            train_dataset=Dataset.from_list(
                [{"prompt": task.prompt, "number": n} for n, task in enumerate(tasks)]
            ),
            processing_class=tokenizer,
            callbacks=[clock],
        )
    else:
        lines = (folder / "pairs.jsonl").read_text().splitlines()
        trainer = DPOTrainer(
            model=str(folder / "model"),
            args=DPOConfig(per_device_train_batch_size=PAIRS, max_length=128, **common),
            train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        collate = trainer.data_collator

        def count(rows: Any) -> Any:
            batch = collate(rows)
            counted.append(float(batch["attention_mask"].sum()))
            return batch

        trainer.data_collator = count
    trainer.train()
    # Batches are made one step ahead, so the last ones are those of the steps that were timed.
    return sum(counted[-STEPS:]) / clock.took_s


async def measure(stack: None) -> dict[str, Any]:
    """Alternate, and compare medians."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", HF_HUB_OFFLINE="1")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    result: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_inputs(folder)
            for algorithm in ("grpo", "dpo"):
                rates: dict[str, list[float]] = {"ours": [], "trl": []}
                for _ in range(ROUNDS):
                    rates["ours"].append(ours(folder, algorithm))
                    rates["trl"].append(trl(folder, algorithm))
                mine, other = (median(found) for found in rates.values())
                result[algorithm] = {
                    "tokens_per_cpu_s": round(mine),
                    "trl": round(other),
                    "ratio": round(mine / other, 2),
                }
    finally:
        dist.destroy_process_group()
    return result
