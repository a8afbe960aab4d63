"""Rows that are generated together, with their keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from loomos.serving.rows import Row


class Batch:
    """Rows that are generated together, with their keys and values."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.is_padded = True
        self.mask: Tensor = torch.empty(0)
        self.cache: Any = None

    @property
    def can_grow(self) -> bool:
        """Whether caches of this model can be joined: plain keys and values in every layer."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def keep(self, indices: set[int]) -> None:
        """Drop the other rows, and the columns that only they needed."""
        if len(indices) == len(self.rows):
            return
        kept = sorted(indices)
        self.rows = [self.rows[i] for i in kept]
        if not kept:
            return
        chosen = torch.tensor(kept)
        self.mask = self.mask[chosen]
        # Not `batch_select_indices`: layers that keep a state per sequence have no such thing.
        self.cache.reorder_cache(chosen)
        if self.can_grow:
            self._trim()

    def _trim(self) -> None:
        unused = int((self.mask.cumsum(1) == 0).all(0).sum())
        if unused:
            self.mask = self.mask[:, unused:]
            for layer in self.cache.layers:
                layer.keys = layer.keys[:, :, unused:]
                layer.values = layer.values[:, :, unused:]
        self.is_padded = not bool(self.mask.all())

    def join(self, other: Batch) -> None:
        """Take in the rows of another batch; the shorter one is padded on the left."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([_pad(self.mask, 1, length), _pad(other.mask, 1, length)])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_pad(mine.keys, 2, length), _pad(theirs.keys, 2, length)])
            mine.values = torch.cat([_pad(mine.values, 2, length), _pad(theirs.values, 2, length)])
        self.rows = self.rows + other.rows
        self.is_padded = not bool(self.mask.all())


def _pad(tensor: Tensor, dim: int, length: int) -> Tensor:
    """Zeros before `tensor` along `dim`, up to `length`."""
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim)
