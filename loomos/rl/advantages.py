"""Advantages: how much better than expected an action was."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    An episode that terminates has no future; one that is truncated has, and its value is that of
    the observation at which it was cut (Pardo et al. 2018, arXiv:1712.00378). Equal to
    Stable-Baselines3's `RolloutBuffer.compute_returns_and_advantage`, which adds the truncated
    future to the reward instead.

    Args:
        rewards: [T, N, ...] of step t in environment n.
        values: [T, N, ...] value of the observation that step t started from.
        next_values: [T, N, ...] value of the observation that step t led to, before any reset.
        terminated: [T, N] whether step t ended the episode for good.
        truncated: [T, N] whether step t ended it by a limit.
        gamma: discount of a step.
        gae_lambda: 0 looks one step ahead, 1 to the end.

    Returns:
        Advantages [T, N, ...], and returns [T, N, ...], which are advantages plus values.
    """
    shape = terminated.shape + (1,) * (rewards.dim() - terminated.dim())
    has_future = (~terminated.bool()).to(rewards.dtype).reshape(shape)
    goes_on = (~(terminated.bool() | truncated.bool())).to(rewards.dtype).reshape(shape)
    errors = rewards + gamma * next_values * has_future - values
    advantages = torch.empty_like(rewards)
    running = torch.zeros_like(rewards[0])
    for step in range(len(rewards) - 1, -1, -1):
        running = errors[step] + gamma * gae_lambda * goes_on[step] * running
        advantages[step] = running
    return advantages, advantages + values


def normalize(advantages: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over all elements; a single one stays as it is."""
    if advantages.numel() < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var[returns - values] / Var[returns]: 1 is perfect, 0 as good as a constant."""
    variance = float(returns.var())
    return float("nan") if variance == 0 else 1 - float((returns - values).var()) / variance
