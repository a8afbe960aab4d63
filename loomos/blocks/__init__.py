"""Blocks: components by name and version, loaded when they are needed."""

from __future__ import annotations

from loomos.blocks.registry import Block, BlockRegistry, BlockSpec

__all__ = ["Block", "BlockRegistry", "BlockSpec"]
