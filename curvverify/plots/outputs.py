"""Proved output bounds against the outputs of sampled inputs: every sample must lie inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curvverify.plots.style import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_OUTPUTS = 60


def draw_bounds_against_samples(
    axis: Axes, lower: NDArray[np.floating], upper: NDArray[np.floating], samples: NDArray[np.floating]
) -> None:
    """Per output (m,): the proved range as a bar, the samples' (s, m) range inside it, and the samples as dots.

    Only the first outputs are drawn where there are very many.
    """
    lower, upper = lower.ravel()[:MOST_OUTPUTS], upper.ravel()[:MOST_OUTPUTS]
    samples = samples.reshape(len(samples), -1)[:, :MOST_OUTPUTS]
    position = np.arange(len(lower))
    axis.bar(position, upper - lower, 0.6, bottom=lower, color=BLUE, alpha=0.25, label="proved bounds")
    low, high = samples.min(0), samples.max(0)
    axis.bar(position, high - low, 0.3, bottom=low, color=ORANGE, alpha=0.5, label=f"{len(samples)} samples")
    shown = samples[:: max(1, len(samples) // 200)]
    jitter = np.random.default_rng(0).uniform(-0.1, 0.1, shown.shape)
    axis.plot((position + jitter).ravel(), shown.ravel(), ".", color=GREY, markersize=1.5)
    axis.use_sticky_edges = False
    axis.set_xticks(position if len(position) <= 20 else position[::5])
    axis.set_xlabel("output")
    axis.set_ylabel("value")
    axis.legend(frameon=False)
