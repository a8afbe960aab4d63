"""Widths that follow from the width that was given, for models that start from random weights.

transformers fills what a configuration leaves out with the sizes of the family's first large
model: a llama of `hidden_size: 64` gets an MLP of 11,008 units and 32 heads of 2. Here whatever was
not given keeps the family's proportions to `hidden_size` instead:

- the MLP is as many times wider, rounded up to 8 units (`intermediate_size` and its other names);
- heads are as many as divide the width evenly into heads of at least 16 dimensions, at most the
  family's number; `head_dim` is what each then has;
- keys and values have as many heads fewer as in the family (grouped queries), at least one.

What was given stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MLP_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
"""What families call the width of the MLP."""
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
SMALLEST_HEAD = 16
MLP_UNIT = 8


def with_derived_widths(given: Mapping[str, Any], family: Any) -> dict[str, Any]:
    """A configuration's fields with the widths that follow from its `hidden_size`.

    Args:
        given: fields as a manifest has them.
        family: the family's configuration with its defaults, by transformers.

    Returns:
        The fields, under the names that the family uses.
    """
    aliases: Mapping[str, str] = getattr(family, "attribute_map", {})
    fields = {aliases.get(name, name): value for name, value in given.items()}
    defaults = family.to_dict()
    hidden_name = aliases.get("hidden_size", "hidden_size")
    hidden, usual = fields.get(hidden_name), defaults.get(hidden_name)
    if not _is_size(hidden) or not _is_size(usual):
        return fields
    if "expand" not in defaults:  # state space models compute it from that
        for name in MLP_WIDTHS:
            if _is_size(defaults.get(name)) and name not in fields:
                fields[name] = _rounded_up(defaults[name] * hidden / usual)
    if _is_size(defaults.get("word_embed_proj_dim")):
        fields.setdefault("word_embed_proj_dim", hidden)
    heads_name = aliases.get("num_attention_heads", "num_attention_heads")
    _derive_heads(fields, defaults, heads_name, hidden or 1)
    return fields


def _derive_heads(
    fields: dict[str, Any], defaults: Mapping[str, Any], name: str, hidden: int
) -> None:
    usual = defaults.get(name)
    if not _is_size(usual):
        return
    heads = fields.setdefault(name, _heads_of(hidden, usual or 1))
    if not _is_size(heads):
        return
    for key_value in KEY_VALUE_HEADS:
        if _is_size(defaults.get(key_value)) and key_value not in fields:
            most = max(1, heads * defaults[key_value] // usual)
            fields[key_value] = max(n for n in range(1, most + 1) if heads % n == 0)
    if defaults.get("head_dim") is not None:
        fields.setdefault("head_dim", max(1, hidden // heads))


def _heads_of(hidden: int, most: int) -> int:
    """The most heads that share a width evenly, none of them too small or of an odd size."""
    fitting = [
        heads
        for heads in range(1, most + 1)
        if hidden % heads == 0 and hidden // heads % 2 == 0 and hidden // heads >= SMALLEST_HEAD
    ]
    return max(fitting, default=1)


def _rounded_up(width: float) -> int:
    return max(MLP_UNIT, -(-round(width) // MLP_UNIT) * MLP_UNIT)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
