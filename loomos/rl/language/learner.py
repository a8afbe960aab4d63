"""What learners of language models share: model, reference, optimizer, state.

All chance in a step is drawn from a generator seeded by run, step and rank, so a checkpoint keeps
no random state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from loomos.errors import LossDiverged
from loomos.manifest import FineTuning
from loomos.training.inputs import InputCache, load_tokenizer, model_source
from loomos.training.learner import Learner
from loomos.training.model import build_model
from loomos.training.model_state import load_model_state, model_state
from loomos.training.schedule import learning_rate
from loomos.training.setup import Workplace, trained_model
from loomos.training.shards import CheckpointManifest, TensorDict


class LanguageLearner(Learner):
    """Base of them."""

    def __init__(self, place: Workplace) -> None:
        job, context, device = place.job, place.context, place.device
        assert job.spec.model is not None
        self._job, self._device, self._control = job, device, place.control
        self._tuning: FineTuning = job.spec.model.fine_tuning_config
        self._rank, self._world = place.rank, place.world
        self._cache = InputCache(place.store, context.storage, context.scratch / "inputs")
        self._tokenizer = load_tokenizer(job.spec.model, job.inputs, self._cache, None)
        self._model, self._optimizer = trained_model(job, self._cache, self._tokenizer, device)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._reference: Any = None
        self._norm: Any = None
        self._rate = 0.0

    @property
    def _bare(self) -> Any:
        """The model without its wrapper for several ranks."""
        return getattr(self._model, "module", self._model)

    def _needs_reference(self) -> None:
        """Have the model that training starts from; adapters are switched off for it instead."""
        assert self._job.spec.model is not None
        if self._tuning.method == "full":
            source = model_source(self._job.spec.model, self._job.inputs, self._cache)
            made = build_model(self._job.spec.model, source, self._tokenizer)
            self._reference = made.to(self._device).eval().requires_grad_(False)

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[Any]:
        """The model that training started from, without gradients."""
        with torch.no_grad():
            if self._reference is not None:
                yield self._reference
            else:
                with self._bare.disable_adapter():
                    yield self._bare

    def prepare(self) -> str:
        """Say what is trained."""
        trained = sum(parameter.numel() for parameter in self._trained)
        return f"{trained} trained parameters on {self._device}"

    def tensors(self, *, with_random: bool = True) -> TensorDict:
        """Trained weights and optimizer."""
        return model_state(self._model, self._optimizer)

    def restore(self, manifest: CheckpointManifest, state: TensorDict) -> None:
        """See base class."""
        load_model_state(self._model, self._optimizer, state)

    def _seed(self, step: int) -> None:
        """All chance of this step, from here on."""
        torch.manual_seed((self._tuning.seed * 1_000_003 + step) * 1009 + self._rank)

    def _update(self, step: int) -> None:
        """Step the optimizer over the gradients that are there."""
        self._rate = learning_rate(self._tuning, step, self.total_steps)
        if self._tuning.max_grad_norm is not None:
            self._norm = nn.utils.clip_grad_norm_(self._trained, self._tuning.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _checked(self, step: int, loss: float) -> dict[str, float | int | None]:
        """The metrics that all have.

        Raises:
            LossDiverged: the loss is no number.
        """
        if not math.isfinite(loss):
            raise LossDiverged(
                f"the loss is {loss} at step {step}; lower model.fine_tuning_config.learning_rate"
            )
        norm = None if self._norm is None else float(self._norm)
        return {"loss": loss, "learning_rate": self._rate, "gradient_norm": norm}
