"""Completions of prompts: sampled in a batch with a cache of keys and values, and scored again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Prompts, padded on the left, with completions, padded on the right."""

    prompts: Tensor
    """[B, P] tokens."""
    prompt_mask: Tensor
    """[B, P] 1 for tokens of the prompt."""
    completions: Tensor
    """[B, C] tokens."""
    attended: Tensor
    """[B, C] 1 for tokens that are read."""
    mask: Tensor
    """[B, C] 1 for those that the model wrote, its end included."""
    is_cut: Tensor
    """[B] whether it reached the limit before its end."""

    def part(self, rows: slice | Tensor) -> Samples:
        """Some of the rows."""
        return Samples(**{name: tensor[rows] for name, tensor in vars(self).items()})


class Row(NamedTuple):
    """A prompt and what came after it."""

    prompt: list[int]
    """Tokens of the prompt."""
    completion: list[int]
    """Tokens after it."""
    is_own: list[bool] | None = None
    """Which of those the model wrote. Default: all."""
    is_cut: bool = False
    """Whether it came to no end."""


def padded(rows: Sequence[Row], pad: int, device: torch.device | str = "cpu") -> Samples:
    """Rows as one batch, filled up with the token `pad`."""
    before = max(len(row.prompt) for row in rows)
    after = max(len(row.completion) for row in rows)

    def tensor(lists: list[list[int]]) -> Tensor:
        return torch.tensor(lists, device=device)

    def own(row: Row) -> list[int]:
        return [1] * len(row.completion) if row.is_own is None else [int(o) for o in row.is_own]

    def filled(row: Row, values: list[int], by: int = 0) -> list[int]:
        return values + [by] * (after - len(row.completion))

    return Samples(
        prompts=tensor([[pad] * (before - len(r.prompt)) + r.prompt for r in rows]),
        prompt_mask=tensor([[0] * (before - len(r.prompt)) + [1] * len(r.prompt) for r in rows]),
        completions=tensor([filled(r, r.completion, pad) for r in rows]),
        attended=tensor([filled(r, [1] * len(r.completion)) for r in rows]),
        mask=tensor([filled(r, own(r)) for r in rows]).float(),
        is_cut=torch.tensor([row.is_cut for row in rows], device=device),
    )


@torch.no_grad()
def sample(
    model: Any,
    prompts: list[list[int]],
    *,
    copies: int,
    longest: int,
    temperature: float,
    end: int,
    pad: int,
) -> Samples:
    """Sample `copies` completions to each prompt; a prompt is read once for all of them.

    Args:
        model: a causal language model of transformers.
        prompts: tokens of each prompt.
        copies: completions to each; those to one prompt stand one after the other.
        longest: tokens that a completion may have.
        temperature: of sampling; 0 takes the likeliest token.
        end: token that ends a completion.
        pad: token that fills up.
    """
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    tokens = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    attended = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    cache = DynamicCache(config=model.config)
    read = model(
        input_ids=tokens,
        attention_mask=attended,
        position_ids=_positions(attended),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    if copies > 1:
        cache.batch_repeat_interleave(copies)
    tokens, attended = (t.repeat_interleave(copies, dim=0) for t in (tokens, attended))
    logits = read.logits[:, -1].float().repeat_interleave(copies, dim=0)
    prompt_mask = attended
    count = len(tokens)
    written = torch.full((count, longest), pad, device=device)
    mask = torch.zeros(count, longest, device=device)
    goes_on = torch.ones(count, dtype=torch.bool, device=device)
    position = prompt_mask.sum(-1, keepdim=True)
    for place in range(longest):
        chosen = _choose(logits, temperature)
        chosen = torch.where(goes_on, chosen, pad)
        written[:, place] = chosen
        mask[:, place] = goes_on
        goes_on = goes_on & (chosen != end)
        if place + 1 == longest or not goes_on.any():
            break
        attended = F.pad(attended, (0, 1), value=1)
        logits = (
            model(
                input_ids=chosen.unsqueeze(1),
                attention_mask=attended,
                position_ids=position + place,
                past_key_values=cache,
                use_cache=True,
            )
            .logits[:, -1]
            .float()
        )
    used = int(mask.sum(0).count_nonzero())
    return Samples(
        prompts=tokens,
        prompt_mask=prompt_mask,
        completions=written[:, :used],
        attended=mask[:, :used].long(),
        mask=mask[:, :used],
        is_cut=goes_on,
    )


def _choose(logits: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return torch.multinomial(probabilities, 1).squeeze(1)


def _positions(mask: Tensor) -> Tensor:
    """Position of each token, not counting what fills up on the left."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def completion_log_probs(model: Any, samples: Samples, temperature: float = 1.0) -> Tensor:
    """[B, C] log-probabilities of the completions' tokens under the model."""
    return _chosen(_read(model, samples).logits[:, :-1], samples, temperature)


def completion_states(
    model: Any, samples: Samples, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Likewise, and [B, C, H] the last hidden states that the tokens were chosen from."""
    found = _read(model, samples, output_hidden_states=True)
    kept = samples.completions.shape[1]
    states: Tensor = found.hidden_states[-1][:, -kept - 1 : -1]
    return _chosen(found.logits[:, :-1], samples, temperature), states


def _read(model: Any, samples: Samples, **more: Any) -> Any:
    tokens = torch.cat([samples.prompts, samples.completions], dim=1)
    attended = torch.cat([samples.prompt_mask, samples.attended], dim=1)
    return model(
        input_ids=tokens,
        attention_mask=attended,
        position_ids=_positions(attended),
        use_cache=False,
        logits_to_keep=samples.completions.shape[1] + 1,
        **more,
    )


def _chosen(logits: Tensor, samples: Samples, temperature: float) -> Tensor:
    logits = logits.float() / temperature
    chosen = logits.gather(-1, samples.completions.unsqueeze(-1)).squeeze(-1)
    found: Tensor = chosen - torch.logsumexp(logits, dim=-1)
    return found
