"""Functions with known minima, to try a search on before it costs anything.

Source: Dixon and Szegő 1978, as in Surjanovic and Bingham's Virtual Library of Simulation
Experiments (sfu.ca/~ssurjano).
"""

from __future__ import annotations

import math

from loomos.weaver.trial import Trial

BRANIN_MINIMUM = 0.39788735772973816
HARTMANN6_MINIMUM = -3.322368011391339

_ALPHA = (1.0, 1.2, 3.0, 3.2)
_A = (
    (10.0, 3.0, 17.0, 3.5, 1.7, 8.0),
    (0.05, 10.0, 17.0, 0.1, 8.0, 14.0),
    (3.0, 3.5, 1.7, 10.0, 17.0, 8.0),
    (17.0, 8.0, 0.05, 10.0, 0.1, 14.0),
)
_P = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)


def noop(trial: Trial) -> float:
    """Zero, at once."""
    return 0.0


def branin(trial: Trial) -> float:
    """Branin's function of `x` in [-5, 10] and `y` in [0, 15]; its least value is 0.3979."""
    return branin_at(float(trial.params["x"]), float(trial.params["y"]))


def branin_at(x: float, y: float) -> float:
    """Branin's function at a point."""
    curve = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return curve**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def hartmann6(trial: Trial) -> float:
    """Hartmann's function of `x0` to `x5` in [0, 1]; its least value is -3.3224."""
    return hartmann6_at([float(trial.params[f"x{i}"]) for i in range(6)])


def hartmann6_at(point: list[float]) -> float:
    """Hartmann's function at a point of six coordinates."""
    total = 0.0
    for alpha, weights, center in zip(_ALPHA, _A, _P, strict=True):
        distance = sum(w * (x - c) ** 2 for w, x, c in zip(weights, point, center, strict=True))
        total += alpha * math.exp(-distance)
    return -total
