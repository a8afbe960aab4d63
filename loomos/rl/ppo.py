"""Proximal policy optimisation of small networks: the update.

The details that matter (Huang et al. 2022, "The 37 Implementation Details of Proximal Policy
Optimization") and where they are:

    generalised advantage estimation, truncation bootstraps      loomos.rl.advantages.gae
    orthogonal initialisation, gains sqrt(2), 0.01 and 1         loomos.rl.networks
    Adam with epsilon 1e-5, learning rate and clip annealed      PPO.update
    minibatches shuffled anew in each epoch                      PPO.update
    advantages normalised per minibatch                          PPO.update
    clipped policy, clipped value, entropy                       loomos.rl.losses.ppo_loss
    global gradient norm clipped, early stop by KL               PPO.update
    observations and rewards scaled as seen so far, clipped      loomos.rl.normalizing
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from loomos.manifest import PPOConfig
from loomos.rl.advantages import explained_variance, gae, normalize
from loomos.rl.losses import PPOLoss, ppo_loss
from loomos.rl.pool import Arrays
from loomos.rl.rollouts import Episodes, Rollout

ADAM_EPSILON = 1e-5


class PPO:
    """An agent and its optimizer."""

    def __init__(
        self,
        agent: nn.Module,
        config: PPOConfig,
        *,
        generator: torch.Generator,
        average: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Make one.

        Args:
            agent: an `Agent` that is a module.
            config: the settings.
            generator: shuffles minibatches.
            average: puts the average over all ranks in place of a rank's values; None if alone.
        """
        self.agent: Any = agent
        self.config = config
        self.entropy_coef = config.entropy_coef
        self.parameters = [p for p in agent.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=config.learning_rate, eps=ADAM_EPSILON, fused=True
        )
        self._generator = generator
        self._average = average

    def update(self, rollout: Rollout, *, remaining: float) -> dict[str, float]:
        """Learn from a rollout.

        Args:
            rollout: what the agent did since the last update.
            remaining: share of the run that is left, from 1 to 0, for annealing.

        Returns:
            Means over the update's minibatches.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * (remaining if config.anneal_learning_rate else 1)
        clip = config.clip_epsilon * (remaining if config.anneal_clip else 1)
        advantages, returns = self._advantages(rollout, remaining)
        batch = (
            rollout.observations.flatten(0, 1),
            rollout.actions.flatten(0, 1),
            rollout.log_probs.flatten(),
            advantages.flatten(),
            rollout.values.flatten(0, 1),
            returns.flatten(0, 1),
        )
        sums, count, stop = torch.zeros(7), 0, False
        for _ in range(config.n_epochs):
            order = torch.randperm(len(batch[0]), generator=self._generator)
            for chosen in torch.split(order, config.minibatch_size):
                loss = self._loss([part[chosen] for part in batch], clip)
                stop = self._has_moved_too_far(loss)
                norm = torch.zeros(()) if stop else self._step(loss.total)
                sums += torch.stack([*(part.detach() for part in loss), norm])
                count += 1
                if stop:
                    break
            if stop:
                break
        total, policy, value, entropy, kl, clipped, norm_mean = (sums / count).tolist()
        return {
            "loss": total,
            "policy_loss": policy,
            "value_loss": value,
            "entropy": entropy,
            "kl_div": kl,
            "clip_fraction": clipped,
            "gradient_norm": norm_mean,
            "explained_variance": explained_variance(rollout.values, returns),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def note(self, episodes: Episodes) -> None:
        """Episodes ended; PPO has no use for them."""

    def state(self) -> Arrays:
        """What `load` needs besides the agent and the optimizer: nothing."""
        return {}

    def load(self, state: Arrays) -> None:
        """Go on from what `state` gave."""

    def _advantages(self, rollout: Rollout, remaining: float) -> tuple[Tensor, Tensor]:
        """Advantages [T, N] of the actions, and returns [T, N, S] that the values should have."""
        advantages, returns = gae(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )
        return advantages.sum(-1), returns

    def _loss(self, batch: list[Tensor], clip: float) -> PPOLoss:
        observations, actions, old_log_probs, advantages, old_values, returns = batch
        judged = self.agent.judge(observations, actions)
        if self.config.normalize_advantage:
            advantages = normalize(advantages)
        if judged.values.ndim > returns.ndim:
            old_values, returns = old_values.unsqueeze(1), returns.unsqueeze(1)
        loss = ppo_loss(
            log_probs=judged.log_probs,
            old_log_probs=old_log_probs,
            advantages=advantages,
            entropy=judged.entropy,
            values=judged.values,
            old_values=old_values,
            returns=returns,
            clip_epsilon=clip,
            clip_value=self.config.clip_value,
            value_loss_coef=self.config.value_loss_coef,
            entropy_coef=self.entropy_coef,
        )
        if judged.regularizer is None:
            return loss
        return loss._replace(total=loss.total + judged.regularizer)

    def _has_moved_too_far(self, loss: PPOLoss) -> bool:
        if self.config.target_kl is None:
            return False
        moved = loss.approx_kl.clone()
        self._over_ranks(moved)
        return float(moved) > 1.5 * self.config.target_kl

    def _over_ranks(self, values: Tensor) -> None:
        """Put the average over all ranks in their place."""
        if self._average is not None:
            self._average(values)

    def _step(self, loss: Tensor) -> Tensor:
        """One step of the optimizer; the gradient's norm before it was clipped."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self._average is not None:
            self._average_gradients(self._average)
        norm = nn.utils.clip_grad_norm_(
            self.parameters, self.config.max_grad_norm or math.inf, foreach=True
        )
        self.optimizer.step()
        return norm

    def _average_gradients(self, average: Callable[[Tensor], None]) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        average(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))
