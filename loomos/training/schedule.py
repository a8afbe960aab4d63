"""The learning rate as a pure function of the step, so that nothing of it need be checkpointed."""

from __future__ import annotations

import math

from loomos.manifest import FineTuning


def learning_rate(tuning: FineTuning, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total_steps`.

    Linear warm-up from 0, then constant, linear to 0, or half a cosine to 0
    (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts).
    """
    if step < tuning.warmup_steps:
        return tuning.learning_rate * (step + 1) / tuning.warmup_steps
    span = max(1, total_steps - tuning.warmup_steps)
    done = min(1.0, (step - tuning.warmup_steps) / span)
    if tuning.scheduler == "linear":
        return tuning.learning_rate * (1 - done)
    if tuning.scheduler == "cosine":
        return tuning.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return tuning.learning_rate
