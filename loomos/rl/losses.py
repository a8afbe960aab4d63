"""Losses of reinforcement learning: tensors in, a loss and statistics out, no state."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
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


DPOKind = Literal["sigmoid", "hinge", "ipo"]
"""Variants of the preference loss."""


class DPOLoss(NamedTuple):
    """The loss of a batch of pairs; the rest is for people."""

    total: Tensor
    """What is differentiated: the mean over pairs."""
    margins: Tensor
    """[B]: rewards of the chosen minus those of the rejected."""
    accuracy: Tensor
    """Share of pairs whose chosen completion has the higher reward."""


def dpo_loss(
    *,
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    kind: DPOKind = "sigmoid",
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> DPOLoss:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    `hinge` is SLiC's (arXiv:2305.10425), `ipo` that of Azar et al. (arXiv:2310.12036, eq. 17) on
    log-probabilities averaged over tokens. Equal to TRL's `DPOTrainer`.

    Args:
        chosen: [B] summed log-probabilities of the chosen completions.
        rejected: [B] of the rejected ones.
        reference_chosen: [B] of the chosen ones under the reference model.
        reference_rejected: [B] of the rejected ones under the reference model.
        beta: how far the policy may move from the reference; small is far.
        kind: which loss.
        chosen_lengths: [B] tokens of the chosen completions, for `ipo`.
        rejected_lengths: [B] tokens of the rejected ones, for `ipo`.
    """
    gained, lost = chosen - reference_chosen, rejected - reference_rejected
    if kind == "ipo":
        assert chosen_lengths is not None and rejected_lengths is not None
        difference = gained / chosen_lengths.clamp(min=1) - lost / rejected_lengths.clamp(min=1)
        losses = (difference - 1 / (2 * beta)).square()
    elif kind == "hinge":
        losses = torch.relu(1 - beta * (gained - lost))
    else:
        losses = -F.logsigmoid(beta * (gained - lost))
    margins = (beta * (gained - lost)).detach()
    return DPOLoss(losses.mean(), margins, (margins > 0).to(margins.dtype).mean())


GRPOKind = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
"""How the loss of tokens is averaged."""


class GRPOLoss(NamedTuple):
    """The loss of a batch of completions; the rest is for people."""

    total: Tensor
    """What is differentiated."""
    kl: Tensor
    """Mean over tokens of KL(policy || reference) by estimator k3; 0 without a reference."""
    clip_fraction: Tensor
    """Share of tokens whose ratio was clipped."""


def group_advantages(
    rewards: Tensor, group_size: int, *, scale: Literal["group", "batch", "none"] = "group"
) -> Tensor:
    """Advantages of completions over the others to the same prompt.

    Shao et al. 2024 (arXiv:2402.03300, section 4.1); without a scale, Liu et al. 2025
    (Dr. GRPO, arXiv:2503.20783). A group of equal rewards has advantages of 0.

    Args:
        rewards: [B], groups one after the other.
        group_size: completions to a prompt.
        scale: divide by the standard deviation of the group, of the batch, or not at all.
    """
    groups = rewards.view(-1, group_size)
    away = groups - groups.mean(dim=1, keepdim=True)
    if scale == "group":
        away = away / (groups.std(dim=1, keepdim=True) + 1e-4)
    elif scale == "batch":
        away = away / (rewards.std() + 1e-4)
    return away.view(-1)


def grpo_loss(
    *,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    kind: GRPOKind,
    longest: int,
    tokens: Tensor | None = None,
    reference_log_probs: Tensor | None = None,
    beta: float = 0.0,
    bias_corrected_kl: bool = False,
) -> GRPOLoss:
    """Group relative policy optimisation (arXiv:2402.03300, eq. 3), and its variants.

    The variants differ in the denominator: `grpo` averages each completion over its tokens, then
    completions; `bnpo` all tokens of the batch; `dr_grpo` (arXiv:2503.20783) divides by the longest
    length allowed; `dapo` (arXiv:2503.14476) by the tokens of the whole step, over all ranks and
    parts. Equal to TRL's `GRPOTrainer`.

    Args:
        log_probs: [B, C] of the completions' tokens under the policy.
        old_log_probs: [B, C] under the policy that wrote them.
        advantages: [B] of the completions.
        mask: [B, C] 1 for tokens that count.
        clip_low: a ratio counts from 1 - clip_low.
        clip_high: to 1 + clip_high; DAPO has it larger.
        kind: how tokens are averaged.
        longest: tokens that a completion may have, for `dr_grpo`.
        tokens: tokens of the step, for `dapo`; default those of the mask.
        reference_log_probs: [B, C] under the reference model, if beta is not 0.
        beta: weight of the divergence from the reference.
        bias_corrected_kl: multiply the divergence by the ratio (DeepSeek-V3.2, TRL's default).
    """
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    worth = advantages.unsqueeze(1)
    losses = -torch.min(ratio * worth, clipped * worth)
    kl = torch.zeros_like(log_probs)
    if beta:
        assert reference_log_probs is not None
        away = reference_log_probs - log_probs
        kl = away.exp() - away - 1
        if bias_corrected_kl:
            kl = kl * ratio
        losses = losses + beta * kl
    masked, count = losses * mask, mask.sum()
    if kind == "grpo":
        total = (masked.sum(-1) / mask.sum(-1).clamp(min=1)).mean()
    elif kind == "bnpo":
        total = masked.sum() / count.clamp(min=1)
    elif kind == "dr_grpo":
        total = masked.sum() / (len(mask) * longest)
    else:
        total = masked.sum() / (count if tokens is None else tokens).clamp(min=1)
    with torch.no_grad():
        is_clipped = ((ratio < 1 - clip_low) & (worth < 0)) | (
            (ratio > 1 + clip_high) & (worth > 0)
        )
        share = (is_clipped * mask).sum() / count.clamp(min=1)
        mean_kl = (kl * mask).sum() / count.clamp(min=1)
    return GRPOLoss(total, mean_kl, share)
