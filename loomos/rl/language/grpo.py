"""A language model that learns from rewards of an environment by GRPO.

A step of the run writes a batch of completions, has them judged, and learns from them; so every
checkpoint stands between batches, and a resumed run writes the same completions again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from loomos.rl.environments.environment import FamilyEnvironment
from loomos.rl.environments.task import Task, Verdict
from loomos.rl.language.learner import LanguageLearner
from loomos.rl.language.sampling import Samples, completion_log_probs, sample
from loomos.rl.losses import GRPOLoss, group_advantages, grpo_loss
from loomos.rl.pool import episode_seed
from loomos.training.model import without_gradient_sync
from loomos.training.setup import Workplace
from loomos.training.shards import CheckpointManifest, TensorDict

EVALUATION = 1_000_000
"""Seeds of evaluations are numbered from here, so that their tasks are no training's."""


class GRPOLearner(LanguageLearner):
    """One rank's share of the groups."""

    def __init__(self, place: Workplace) -> None:
        super().__init__(place)
        spec = self._job.spec
        assert spec.environment is not None and self._tuning.max_steps is not None
        self._config = spec.grpo
        self._environment = FamilyEnvironment(spec.environment.name, spec.environment.config)
        self.total_steps = self._tuning.max_steps
        self.evaluates = True
        self.evaluate_every = self._tuning.evaluate_every or max(1, self.total_steps // 10)
        self._groups = self._tuning.batch_size // self._config.group_size // self._world
        if self._config.beta:
            self._needs_reference()

    # --- state ---

    def progress(self) -> dict[str, Any]:
        """Where the curriculum stands."""
        ladder = self._environment.curriculum
        return {"curriculum": None if ladder is None else ladder.state().tolist()}

    def restore(self, manifest: CheckpointManifest, state: TensorDict) -> None:
        """See base class."""
        super().restore(manifest, state)
        if self._environment.curriculum is not None:
            self._environment.curriculum.load(np.asarray(manifest.progress["curriculum"]))

    # --- steps ---

    def begin(self) -> list[float]:
        """Nothing is needed of other ranks."""
        return []

    def step(self, step: int, totals: list[float]) -> list[float]:
        """Write, judge, learn; sums over this rank's completions."""
        self._seed(step)
        first = self._rank * self._groups
        tasks = [
            self._environment.make_task(episode_seed(self._tuning.seed, first + group, step))
            for group in range(self._groups)
        ]
        self._bare.eval()
        samples = self._write(tasks, self._config.group_size, self._config.temperature)
        self._bare.train()
        verdicts = self._judge(tasks, samples, self._config.group_size)
        rewards = torch.tensor([self._environment.reward(v) for v in verdicts])
        loss, kl, clipped = self._learn(step, samples, rewards)
        spread = rewards.view(self._groups, -1).std(dim=1)
        return [
            loss / self._world,
            kl / self._world,
            clipped / self._world,
            float(rewards.sum()),
            float(sum(verdict.is_correct for verdict in verdicts)),
            float(len(rewards)),
            float(samples.mask.sum()),
            float(samples.is_cut.sum()),
            float((spread == 0).sum()),
        ]

    def _write(self, tasks: list[Task], copies: int, temperature: float) -> Samples:
        tokenizer = self._tokenizer
        end = tokenizer.eos_token_id
        return sample(
            self._bare,
            [self._prompt(task) for task in tasks],
            copies=copies,
            longest=self._config.max_completion_tokens,
            temperature=temperature,
            end=end,
            pad=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )

    def _prompt(self, task: Task) -> list[int]:
        if self._config.chat and self._tokenizer.chat_template:
            message = [{"role": "user", "content": task.prompt}]
            text = self._tokenizer.apply_chat_template(
                message, add_generation_prompt=True, tokenize=False
            )
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self._tokenizer(task.prompt)["input_ids"])

    def _judge(self, tasks: list[Task], samples: Samples, copies: int) -> list[Verdict]:
        texts = self._tokenizer.batch_decode(samples.completions, skip_special_tokens=True)
        return [tasks[number // copies].reply(text) for number, text in enumerate(texts)]

    def _learn(
        self, step: int, samples: Samples, rewards: torch.Tensor
    ) -> tuple[float, float, float]:
        """Update on the completions; means over the updates of loss, divergence, clipping."""
        config = self._config
        advantages = group_advantages(rewards, config.group_size, scale=config.scale_rewards)
        advantages = advantages.to(self._device)
        mask = samples.mask
        if config.mask_truncated:
            mask = mask * (~samples.is_cut).unsqueeze(1)
        tokens = mask.sum()
        dist.all_reduce(tokens, group=self._control)
        tokens = tokens / self._world
        size = self._tuning.micro_batch_size or len(rewards)
        parts = [slice(n, min(n + size, len(rewards))) for n in range(0, len(rewards), size)]
        reference = [self._reference_log_probs(samples.part(rows)) for rows in parts]
        old: list[torch.Tensor | None] = [None] * len(parts)
        if config.iterations > 1:
            with torch.no_grad():
                old = [self._log_probs(samples.part(rows)) for rows in parts]
        sums = torch.zeros(3)
        for _ in range(config.iterations):
            for number, rows in enumerate(parts):
                is_last = number == len(parts) - 1
                with without_gradient_sync(self._model, is_last=is_last):
                    log_probs = self._log_probs(samples.part(rows))
                    before = old[number]
                    loss = grpo_loss(
                        log_probs=log_probs,
                        old_log_probs=log_probs.detach() if before is None else before,
                        advantages=advantages[rows],
                        mask=mask[rows],
                        clip_low=config.clip_epsilon,
                        clip_high=config.clip_epsilon_high or config.clip_epsilon,
                        kind=config.loss_type,
                        longest=config.max_completion_tokens,
                        tokens=tokens,
                        reference_log_probs=reference[number],
                        beta=config.beta,
                        bias_corrected_kl=config.bias_corrected_kl,
                    )
                    share = 1.0 if config.loss_type == "dapo" else log_probs.shape[0] / len(rewards)
                    torch.autograd.backward(loss.total * share)
                sums += _scaled(loss, share, log_probs.shape[0] / len(rewards))
            self._update(step)
        total, kl, clipped = (sums / config.iterations).tolist()
        return total, kl, clipped

    def _log_probs(self, samples: Samples) -> torch.Tensor:
        mixed = self._tuning.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=mixed):
            return completion_log_probs(self._model, samples, self._config.temperature)

    def _reference_log_probs(self, samples: Samples) -> torch.Tensor | None:
        if not self._config.beta:
            return None
        with self._as_reference() as model:
            return completion_log_probs(model, samples, self._config.temperature)

    def measure(self, step: int, totals: list[float]) -> dict[str, float | int | None] | None:
        """See base class."""
        loss, kl, clipped, reward, solved, count, tokens, cut, flat = totals
        if self._environment.curriculum is not None:
            for number in range(int(count)):
                self._environment.curriculum.note(number < solved)
        return {
            **self._checked(step, loss),
            "kl": kl,
            "clip_fraction": clipped,
            "episode_return": reward / count,
            "solved": solved / count,
            "completion_tokens": tokens / count,
            "cut": cut / count,
            "flat_groups": flat * self._config.group_size / count,
            "level": self._environment.level,
            "tokens": int(tokens),
        }

    @torch.no_grad()
    def evaluate(self) -> float:
        """Minus the mean reward of the likeliest completions to tasks that are always the same."""
        numbers = range(self._rank, self._tuning.evaluate_sequences, self._world)
        tasks = [
            self._environment.make_task(episode_seed(self._tuning.seed, EVALUATION + n, 0))
            for n in numbers
        ]
        sums = torch.zeros(2, dtype=torch.float64)
        if tasks:
            self._bare.eval()
            verdicts = self._judge(tasks, self._write(tasks, 1, 0.0), 1)
            self._bare.train()
            sums[0] = sum(self._environment.reward(verdict) for verdict in verdicts)
            sums[1] = len(verdicts)
        dist.all_reduce(sums, group=self._control)
        return -float(sums[0] / sums[1])


def _scaled(loss: GRPOLoss, share: float, rows: float) -> torch.Tensor:
    """Its part of the sums: the loss as it is differentiated, the rest as means over rows."""
    return torch.stack(
        [
            loss.total.detach().cpu() * share,
            loss.kl.cpu() * rows,
            loss.clip_fraction.cpu() * rows,
        ]
    ).float()
