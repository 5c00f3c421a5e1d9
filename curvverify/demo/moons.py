"""The task of the demo: two interleaved half circles with noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOISE = 0.12


def moons(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points (count, 2) and labels (count,): 0 on the upper half circle, 1 on the lower."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    angle = random.uniform(0.0, np.pi, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    points = np.where(labels[:, None] == 0, upper, lower)
    return points + NOISE * random.standard_normal((count, 2)), labels
