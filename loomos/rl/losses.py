"""Losses of reinforcement learning: tensors in, a loss and statistics out, no state."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PPOLoss(NamedTuple):
    """The loss of a minibatch and its parts; all but `total` are for people."""

    total: Tensor
    """What is differentiated."""
    policy: Tensor
    """Clipped surrogate."""
    value: Tensor
    """Mean squared error of the values."""
    entropy: Tensor
    """Mean entropy of the policy in nats."""
    approx_kl: Tensor
    """KL(old || new) by the estimator k3 of Schulman, http://joschu.net/blog/kl-approx.html."""
    clip_fraction: Tensor
    """Share of actions whose ratio was beyond the clip."""


def ppo_loss(
    *,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    entropy: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    clip_epsilon: float,
    clip_value: float | None,
    value_loss_coef: float,
    entropy_coef: float,
) -> PPOLoss:
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347, eq. 9).

    Equal to Stable-Baselines3's `PPO.train`, and with a clip of the value to CleanRL's `ppo.py`
    at twice its `vf_coef` (it halves the squared error).

    Args:
        log_probs: [B] of the actions under the policy that is trained.
        old_log_probs: [B] under the policy that acted.
        advantages: [B], normalised by the caller if at all.
        entropy: [B] of the policy at each observation.
        values: [B, ...] now.
        old_values: [B, ...] when it acted.
        returns: [B, ...] targets of the values.
        clip_epsilon: the ratio counts within 1 - epsilon and 1 + epsilon.
        clip_value: the value counts within this of the old one; None for no clip.
        value_loss_coef: weight of the value loss.
        entropy_coef: weight of the entropy, which is rewarded.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    policy = -torch.min(advantages * ratio, advantages * clipped).mean()
    errors = (values - returns).square()
    if clip_value is not None:
        near = old_values + (values - old_values).clamp(-clip_value, clip_value)
        errors = torch.max(errors, (near - returns).square())
    value = errors.mean()
    mean_entropy = entropy.mean()
    total = policy + value_loss_coef * value - entropy_coef * mean_entropy
    with torch.no_grad():
        approx_kl = ((ratio - 1) - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > clip_epsilon).to(ratio.dtype).mean()
    return PPOLoss(total, policy, value, mean_entropy, approx_kl, clip_fraction)
