"""Many LoRA adapters over one base, row by row in the same batch.

Each adapted linear layer holds the low-rank matrices of all adapters stacked, and every row of a
batch gathers its own: two batched products, however many adapters a batch mixes (Punica's
gather-BMM, arXiv:2310.18547). Slot 0 is all zeros: the base.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from loomos.errors import InvalidModel

BASE_SLOT = 0
_PREFIX = "base_model.model."


class LowRank(NamedTuple):
    """One layer's part of an adapter."""

    down: Tensor
    """[rank, in]"""
    up: Tensor
    """[out, rank], scaled."""


class AdaptedLinear(nn.Module):
    """A linear layer with the matrices of every adapter."""

    def __init__(self, base: nn.Linear, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self._bank = [bank]  # in a list, so that it is no submodule
        self.down = base.weight.new_zeros(1, 1, base.in_features)
        self.up = base.weight.new_zeros(1, base.out_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, in] -> [rows, tokens, out], each row with its own adapter."""
        y: Tensor = self.base(x)
        rows = self._bank[0].rows
        if rows is None:
            return y
        down, up = self.down[rows], self.up[rows]
        return y + torch.bmm(torch.bmm(x, down.transpose(1, 2)), up.transpose(1, 2))

    def put(self, slot: int, part: LowRank | None) -> None:
        """Fill a slot; without a part the adapter does nothing here."""
        rank = max(self.down.shape[1], part.down.shape[0] if part else 1)
        slots = max(self.down.shape[0], slot + 1)
        down = self.down.new_zeros(slots, rank, self.down.shape[2])
        up = self.up.new_zeros(slots, self.up.shape[1], rank)
        down[: self.down.shape[0], : self.down.shape[1]] = self.down
        up[: self.up.shape[0], :, : self.up.shape[2]] = self.up
        down[slot], up[slot] = 0, 0
        if part is not None:
            down[slot, : part.down.shape[0]] = part.down
            up[slot, :, : part.up.shape[1]] = part.up
        self.down, self.up = down, up


class AdapterBank:
    """The adapters of one model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers: dict[str, AdaptedLinear] = {}
        self._free: list[int] = []
        self._slots = 1
        self.rows: Tensor | None = None
        """Slot of each row of the batch at hand; None if all are the base."""

    @property
    def slots(self) -> int:
        """Slots there are, those that are free included; 0 is the base."""
        return self._slots

    def select(self, slots: list[int]) -> None:
        """Choose the adapter of each row of the next forward pass."""
        self.rows = None if not any(slots) else torch.tensor(slots)

    def load(self, folder: Path) -> int:
        """Load an adapter that PEFT saved; returns its slot.

        Raises:
            InvalidModel: it is not plain LoRA on linear layers of this model.
        """
        parts = read_adapter(folder)
        modules = dict(self._model.named_modules())
        for path in parts:
            if path not in self._layers and not isinstance(modules.get(path), nn.Linear):
                raise InvalidModel(f"{folder.name}: the base model has no linear layer {path!r}")
        for path in parts:
            if path not in self._layers:
                self._layers[path] = self._adapt(path, modules)
        slot = self._free.pop() if self._free else self._slots
        self._slots = max(self._slots, slot + 1)
        for path, layer in self._layers.items():
            layer.put(slot, parts.get(path))
        return slot

    def unload(self, slot: int) -> None:
        """Free a slot."""
        for layer in self._layers.values():
            layer.put(slot, None)
        self._free.append(slot)

    def _adapt(self, path: str, modules: dict[str, nn.Module]) -> AdaptedLinear:
        parent, _, name = path.rpartition(".")
        linear = modules[path]
        assert isinstance(linear, nn.Linear)
        layer = AdaptedLinear(linear, self)
        for slot in range(1, self._slots):
            layer.put(slot, None)
        setattr(modules[parent], name, layer)
        return layer


def read_adapter(folder: Path) -> dict[str, LowRank]:
    """The matrices of a PEFT adapter, by the path of the layer they belong to.

    Raises:
        InvalidModel: it has parts other than plain LoRA.
    """
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    unusual = [
        key
        for key in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")
        if config.get(key)
    ]
    if config.get("peft_type") != "LORA" or unusual or config.get("bias", "none") != "none":
        raise InvalidModel(f"{folder.name}: not plain LoRA ({', '.join(unusual) or 'peft_type'})")
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    tensors = load_file(folder / "adapter_model.safetensors")
    parts: dict[str, LowRank] = {}
    for name, tensor in tensors.items():
        if not name.endswith(".lora_A.weight"):
            if name.endswith(".lora_B.weight"):
                continue
            raise InvalidModel(f"{folder.name}: {name!r} is no part of plain LoRA")
        path = name.removesuffix(".lora_A.weight")
        up = tensors[f"{path}.lora_B.weight"]
        parts[path.removeprefix(_PREFIX)] = LowRank(tensor.float(), up.float() * scale)
    return parts
