"""A language model that learns from rewards of an environment by PPO, with a value head.

As in Ziegler et al. 2019 (arXiv:1909.08593): each token is an action, the divergence from the model
that training started from is a cost of each token, the environment's reward comes with the last
one, and a linear layer on the last hidden state says what is yet to come.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from loomos.rl.advantages import normalize
from loomos.rl.language.rewarded import RewardedLearner
from loomos.rl.language.sampling import Samples, completion_states
from loomos.rl.losses import PPOLoss, ppo_loss
from loomos.training.model import without_gradient_sync
from loomos.training.model_state import load_model_state, model_state
from loomos.training.setup import Workplace
from loomos.training.shards import CheckpointManifest, TensorDict

VALUE_HEAD = "value_head."
"""Prefix of the value head's tensors, which are in checkpoints and not in published models."""


class PPOLanguageLearner(RewardedLearner):
    """One rank's share of the conversations, and a value head that all ranks have alike."""

    def __init__(self, place: Workplace) -> None:
        self._config = config = place.job.spec.language_ppo
        super().__init__(place, config, 1)
        self._head = nn.Linear(self._bare.config.hidden_size, 1)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        self._head.to(self._device)
        self._head_optimizer = torch.optim.AdamW(
            self._head.parameters(), lr=config.value_learning_rate, weight_decay=0.0
        )
        if config.beta:
            self._needs_reference()

    # --- state ---

    def tensors(self, *, with_random: bool = True) -> TensorDict:
        """Trained weights and optimizer, and those of the value head."""
        head = model_state(self._head, self._head_optimizer)
        return super().tensors(with_random=with_random) | {
            VALUE_HEAD + name: tensor for name, tensor in head.items()
        }

    def restore(self, manifest: CheckpointManifest, state: TensorDict) -> None:
        """See base class."""
        super().restore(manifest, state)
        head = {k.removeprefix(VALUE_HEAD): v for k, v in state.items() if k.startswith(VALUE_HEAD)}
        load_model_state(self._head, self._head_optimizer, head)

    # --- learning ---

    def _learn(self, step: int, samples: Samples, rewards: Tensor) -> dict[str, float]:
        """Update in minibatches, several times; means over the updates."""
        config = self._config
        size = self._tuning.micro_batch_size or len(rewards)
        parts = [slice(n, min(n + size, len(rewards))) for n in range(0, len(rewards), size)]
        with torch.no_grad():
            judged = [self._judge(samples.part(rows)) for rows in parts]
            references = [self._reference_log_probs(samples.part(rows)) for rows in parts]
        log_probs = torch.cat([one for one, _ in judged])
        values = torch.cat([value for _, value in judged])
        divergence = torch.zeros_like(log_probs)
        if references[0] is not None:
            divergence = log_probs - torch.cat([one for one in references if one is not None])
        advantages, returns = token_advantages(
            rewards.to(self._device),
            divergence,
            values,
            samples.mask,
            beta=config.beta,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        own = samples.mask.bool()
        if config.normalize_advantage:
            advantages = torch.zeros_like(advantages).masked_scatter(
                own, normalize(advantages[own])
            )
        sums, updates = torch.zeros(4), 0
        whole = config.minibatch_size or self._tuning.batch_size
        chunk = max(1, whole // self._world)
        for _ in range(config.n_epochs):
            order = torch.randperm(len(rewards))
            for chosen in torch.split(order, chunk):
                sums += self._update_on(
                    step,
                    samples.part(chosen),
                    log_probs[chosen],
                    advantages[chosen],
                    values[chosen],
                    returns[chosen],
                )
                updates += 1
        loss, policy, value, clipped = (sums / updates).tolist()
        divergence_mean = (divergence * samples.mask).sum() / samples.mask.sum()
        return {
            "loss": loss,
            "policy_loss": policy,
            "value_loss": value,
            "clip_fraction": clipped,
            "kl": float(divergence_mean),
        }

    def _judge(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values [B, C] of the tokens; a value is that before its token."""
        mixed = self._tuning.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=mixed):
            log_probs, states = completion_states(
                self._model, samples, self._completions.temperature
            )
        return log_probs, self._head(states.float()).squeeze(-1)

    def _update_on(
        self,
        step: int,
        samples: Samples,
        old_log_probs: Tensor,
        advantages: Tensor,
        old_values: Tensor,
        returns: Tensor,
    ) -> Tensor:
        """One step of the optimizers; sums of loss, policy loss, value loss, clipping."""
        count = len(old_log_probs)
        size = self._tuning.micro_batch_size or count
        tokens = samples.mask.sum()
        found = torch.zeros(4)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            own = samples.mask[rows].bool()
            with without_gradient_sync(self._model, is_last=start + size >= count):
                log_probs, values = self._judge(samples.part(rows))
                loss = self._loss(
                    log_probs[own],
                    old_log_probs[rows][own],
                    advantages[rows][own],
                    values[own],
                    old_values[rows][own],
                    returns[rows][own],
                )
                share = own.sum() / tokens
                torch.autograd.backward(loss.total * share)
            parts = [loss.total.detach(), loss.policy.detach(), loss.value.detach()]
            found += (torch.stack([*parts, loss.clip_fraction]) * share).cpu().float()
        self._update(step)
        return found

    def _loss(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
    ) -> PPOLoss:
        return ppo_loss(
            log_probs=log_probs,
            old_log_probs=old_log_probs,
            advantages=advantages,
            entropy=torch.zeros_like(log_probs),
            values=values,
            old_values=old_values,
            returns=returns,
            clip_epsilon=self._config.clip_epsilon,
            clip_value=self._config.clip_value,
            value_loss_coef=self._config.value_loss_coef,
            entropy_coef=0.0,
        )

    def _update(self, step: int) -> None:
        """Step both optimizers; the head's gradients are averaged over ranks by hand."""
        for parameter in self._head.parameters():
            assert parameter.grad is not None
            if self._world > 1:
                gradient = parameter.grad.cpu()
                dist.all_reduce(gradient, group=self._control)
                parameter.grad.copy_(gradient / self._world)
        super()._update(step)
        self._head_optimizer.step()
        self._head_optimizer.zero_grad(set_to_none=True)


def token_advantages(
    rewards: Tensor,
    divergence: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    beta: float,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantages of tokens, and what values should be; zero where there is no token.

    Only the model's own tokens are steps: what a task says in between is passed over, and after
    the last own token nothing is yet to come.

    Args:
        rewards: [B], which come with the last own token.
        divergence: [B, C] log-ratio to the model that training started from.
        values: [B, C] before each token.
        mask: [B, C] 1 for own tokens.
        beta: cost of a unit of divergence.
        gamma: discount of a token.
        gae_lambda: how far advantages look ahead.
    """
    own = mask.bool()
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(rewards, dtype=values.dtype)
    ahead = torch.zeros_like(following)
    given = rewards.to(values.dtype)
    for place in range(values.shape[1] - 1, -1, -1):
        here = own[:, place]
        delta = given - beta * divergence[:, place] + gamma * following - values[:, place]
        found = delta + gamma * gae_lambda * ahead
        advantages[:, place] = torch.where(here, found, 0.0)
        ahead = torch.where(here, found, ahead)
        following = torch.where(here, values[:, place], following)
        given = torch.where(here, 0.0, given)
    return advantages, torch.where(own, advantages + values, 0.0)
