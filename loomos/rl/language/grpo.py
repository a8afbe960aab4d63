"""A language model that learns from rewards of an environment by GRPO."""

from __future__ import annotations

import torch
import torch.distributed as dist

from loomos.rl.language.rewarded import RewardedLearner
from loomos.rl.language.sampling import Samples
from loomos.rl.losses import GRPOLoss, group_advantages, grpo_loss
from loomos.training.model import without_gradient_sync
from loomos.training.setup import Workplace


class GRPOLearner(RewardedLearner):
    """One rank's share of the groups."""

    def __init__(self, place: Workplace) -> None:
        self._config = place.job.spec.grpo
        super().__init__(place, self._config, self._config.group_size)
        if self._config.beta:
            self._needs_reference()

    def _learn(self, step: int, samples: Samples, rewards: torch.Tensor) -> dict[str, float]:
        """Update; means over the updates of loss, divergence, clipping."""
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
        return {"loss": total, "kl": kl, "clip_fraction": clipped}


def _scaled(loss: GRPOLoss, share: float, rows: float) -> torch.Tensor:
    """Its part of the sums: the loss as it is differentiated, the rest as means over rows."""
    return torch.stack(
        [
            loss.total.detach().cpu() * share,
            loss.kl.cpu() * rows,
            loss.clip_fraction.cpu() * rows,
        ]
    ).float()
