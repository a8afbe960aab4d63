"""WEAVE: weighted exploration, adaptive value estimation."""

from __future__ import annotations

from loomos.rl.weave.agent import Mixture, WeaveAgent
from loomos.rl.weave.weave import Weave

__all__ = ["Mixture", "Weave", "WeaveAgent"]
