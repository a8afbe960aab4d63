from __future__ import annotations

import pytest
import torch

from loomos.manifest import FineTuning
from loomos.training.schedule import learning_rate


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
def test_the_schedule_is_that_of_transformers(scheduler: str) -> None:
    from transformers import get_scheduler

    tuning = FineTuning(learning_rate=0.1, warmup_steps=4, scheduler=scheduler, max_steps=20)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    name = "constant_with_warmup" if scheduler == "constant" else scheduler
    theirs = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=20)
    for step in range(20):
        # During warm-up theirs starts at 0, ours one step on, so that no step is wasted.
        expected = theirs.get_last_lr()[0] if step >= 4 else 0.1 * (step + 1) / 4
        assert learning_rate(tuning, step, 20) == pytest.approx(expected)
        optimizer.step()
        theirs.step()


def test_the_loss_is_at_rest_at_the_end() -> None:
    tuning = FineTuning(learning_rate=1.0, max_steps=10)
    assert learning_rate(tuning, 10, 10) == pytest.approx(0)
