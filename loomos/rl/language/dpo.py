"""A language model that learns from preferences by DPO."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from loomos.errors import InvalidData
from loomos.rl.language.learner import LanguageLearner
from loomos.rl.language.sampling import Row, Samples, completion_log_probs, padded
from loomos.rl.losses import DPOLoss, dpo_loss
from loomos.training.data import Document, DocumentStream
from loomos.training.fitting import refusing
from loomos.training.model import without_gradient_sync
from loomos.training.setup import Workplace, document_stream


def conversational_pair(
    tokenizer: Any, record: dict[str, Any]
) -> tuple[list[int], list[int], list[int]]:
    """Tokens of prompt, chosen and rejected of a conversational preference, as TRL has them.

    Both completions are written by the tokenizer's chat template after the prompt; they begin where
    either of the whole conversations leaves the prompt's own tokens.
    """

    def tokens(messages: list[dict[str, str]], *, asks: bool = False) -> list[int]:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=asks, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt = tokens(record["prompt"], asks=True) if record["prompt"] else []
    chosen, rejected = (tokens(record["prompt"] + record[n]) for n in ("chosen", "rejected"))
    shared = min(_common(prompt, chosen), _common(prompt, rejected))
    return prompt[:shared], chosen[shared:], rejected[shared:]


def _common(one: list[int], other: list[int]) -> int:
    """Tokens that both begin with."""
    pairs = zip(one, other, strict=False)
    return next(
        (n for n, (a, b) in enumerate(pairs) if a != b),
        min(len(one), len(other)),
    )


class DPOLearner(LanguageLearner):
    """One rank's share of the pairs; pair n of step s is a function of both."""

    def __init__(self, place: Workplace) -> None:
        super().__init__(place)
        data, inputs = self._job.spec.data, self._job.inputs
        assert data is not None
        self._config, tuning = self._job.spec.dpo, self._tuning
        preferences = data.model_copy(update={"format": "preference"})
        self._stream = document_stream(
            preferences, inputs, self._cache, tuning.seed, held_out=False
        )
        self.evaluates = data.validation_dataset is not None or data.validation_split > 0
        self._held_out = (
            document_stream(preferences, inputs, self._cache, tuning.seed, held_out=True)
            if self.evaluates
            else None
        )
        per_epoch = -(-self._stream.documents_per_epoch // tuning.batch_size)
        steps = per_epoch * tuning.num_epochs if tuning.num_epochs else None
        self.total_steps = min(n for n in (steps, tuning.max_steps) if n is not None)
        self.evaluate_every = tuning.evaluate_every or max(1, self.total_steps // 10)
        self._needs_reference()

    def begin(self) -> list[float]:
        """Nothing is needed of other ranks."""
        return []

    def step(self, step: int, totals: list[float]) -> list[float]:
        """Learn from the next pairs; sums over ranks' means."""
        self._seed(step)
        size = self._tuning.batch_size
        numbers = range(step * size + self._rank, (step + 1) * size, self._world)
        pairs = [self._pair(self._stream, number) for number in numbers]
        part = self._tuning.micro_batch_size or len(pairs)
        sums = torch.zeros(3)
        tokens = 0.0
        for start in range(0, len(pairs), part):
            chosen_pairs = pairs[start : start + part]
            share = len(chosen_pairs) / len(pairs)
            is_last = start + part >= len(pairs)
            with without_gradient_sync(self._model, is_last=is_last):
                samples = self._padded(chosen_pairs)
                loss = self._loss(samples)
                torch.autograd.backward(loss.total * share)
            means = [loss.total.detach(), loss.accuracy, loss.margins.mean()]
            sums += torch.stack(means).cpu().float() * share
            tokens += float(samples.mask.sum() + samples.prompt_mask.sum())
        self._update(step)
        return [*(sums / self._world).tolist(), tokens]

    def _pair(self, stream: DocumentStream, number: int) -> tuple[list[int], list[int], list[int]]:
        """Tokens of prompt, chosen and rejected; completions end, and are cut to what fits.

        A blank line gives way to the next that is not.
        """
        following = (stream.read(number + n) for n in range(stream.documents_per_epoch))
        found = next((document for document in following if document.parts), Document([]))
        if len(found.parts) != 3:
            raise InvalidData("a record has no prompt, chosen and rejected; write all three")
        tokenizer, longest = self._tokenizer, self._tuning.sequence_length
        if found.record is not None and tokenizer.chat_template:
            with refusing("model.tokenizer: its chat template fails on a preference"):
                prompt, *completions = conversational_pair(tokenizer, found.record)
        else:
            prompt, *completions = (
                list(tokenizer(text, add_special_tokens=False)["input_ids"])
                for text, _ in found.parts
            )
            completions = [[*tokens, tokenizer.eos_token_id] for tokens in completions]
        prompt = prompt[-(longest - 1) :]
        room = longest - len(prompt)
        chosen, rejected = (tokens[:room] for tokens in completions)
        return prompt, chosen, rejected

    def _padded(self, pairs: list[tuple[list[int], list[int], list[int]]]) -> Samples:
        """The chosen completions, then the rejected ones."""
        rows = [Row(prompt, chosen) for prompt, chosen, _ in pairs]
        rows += [Row(prompt, rejected) for prompt, _, rejected in pairs]
        return padded(rows, self._tokenizer.eos_token_id, self._device)

    def _loss(self, samples: Samples) -> DPOLoss:
        mixed = self._tuning.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=mixed):
            log_probs = (completion_log_probs(self._model, samples) * samples.mask).sum(-1)
        with self._as_reference() as model:
            reference = (completion_log_probs(model, samples) * samples.mask).sum(-1)
        chosen, rejected = log_probs.chunk(2)
        reference_chosen, reference_rejected = reference.chunk(2)
        chosen_lengths, rejected_lengths = samples.mask.sum(-1).chunk(2)
        return dpo_loss(
            chosen=chosen,
            rejected=rejected,
            reference_chosen=reference_chosen,
            reference_rejected=reference_rejected,
            beta=self._config.beta,
            kind=self._config.loss_type,
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
        )

    def measure(self, step: int, totals: list[float]) -> dict[str, float | int | None] | None:
        """See base class."""
        loss, accuracy, margin, tokens = totals
        return {
            **self._checked(step, loss),
            "accuracy": accuracy,
            "margin": margin,
            "tokens": int(tokens),
        }

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over the first held-out pairs."""
        assert self._held_out is not None
        count = min(self._tuning.evaluate_sequences, self._held_out.documents_per_epoch)
        self._bare.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for number in range(self._rank, count, self._world):
            loss = self._loss(self._padded([self._pair(self._held_out, number)]))
            sums += torch.tensor([float(loss.total), 1.0], dtype=torch.float64)
        self._bare.train()
        dist.all_reduce(sums, group=self._control)
        return float(sums[0] / sums[1])
