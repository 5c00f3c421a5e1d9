"""The demo's picture: where its two boxes lie, and what is proved about the outputs over each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curvverify.plots.style import BLUE, ORANGE, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.floating]
Labels = NDArray[np.integer]

SAMPLES = 5000


@dataclass(frozen=True)
class Panel:
    """One property: its box, proved bounds (2,), (2,) of the outputs over it, and the witness's (x, y)."""

    title: str
    box: tuple[Array, Array]
    bounds: tuple[Array, Array]
    witness: tuple[Array, Array] | None


def demo_figure(panels: list[Panel], network: Callable[[Array], Array], points: Array, labels: Labels) -> Figure:
    """The input plane with both boxes; then, per property, the proved bounds of both outputs over the samples."""
    figure, (plane, *axes) = new_figure(1 + len(panels), 5.0 * (1 + len(panels)), 4.2)
    _input_plane(plane, panels, network, points, labels)
    for axis, panel in zip(axes, panels, strict=True):
        _outputs(axis, panel, network)
    return figure


def _input_plane(
    axis: Axes, panels: list[Panel], network: Callable[[Array], Array], points: Array, labels: Labels
) -> None:
    x, y = np.linspace(-1.7, 2.7, 160), np.linspace(-1.2, 1.7, 120)
    grid = np.stack(np.meshgrid(x, y), -1)
    scores = network(grid.reshape(-1, 2))
    score = (scores[:, 0] - scores[:, 1]).reshape(grid.shape[:2])
    axis.contourf(x, y, score, levels=[-np.inf, 0.0, np.inf], colors=[ORANGE, BLUE], alpha=0.15)
    axis.contour(x, y, score, levels=[0.0], colors="black", linewidths=0.8)
    for label, colour in ((0, BLUE), (1, ORANGE)):
        axis.plot(*points[labels == label].T, ".", color=colour, markersize=3, label=f"class {label}")
    for panel, style in zip(panels, ("-", "--"), strict=False):
        _rectangle(axis, *panel.box, edgecolor="black", linestyle=style, label=panel.title)
        if panel.witness is not None:
            axis.plot(*panel.witness[0], "*", color=RED, markersize=11, label="witness")
    axis.set_xlabel("input X[0,0]")
    axis.set_ylabel("input X[0,1]")
    axis.set_title("two moons, the two boxes")
    axis.legend(frameon=False, fontsize=7, loc="lower left")


def _outputs(axis: Axes, panel: Panel, network: Callable[[Array], Array]) -> None:
    lower, upper = panel.box
    samples = network(lower + (upper - lower) * np.random.default_rng(0).uniform(size=(SAMPLES, 2)))
    low, high = panel.bounds
    cells = np.linspace(low.min(), high.max(), 60)
    top = 0.0
    for k, colour in enumerate((BLUE, ORANGE)):
        counts, *_ = axis.hist(samples[:, k], cells, color=colour, alpha=0.5, label=f"Y{k}: {SAMPLES} samples")
        top = max(top, float(np.max(counts)))
    for k, colour in enumerate((BLUE, ORANGE)):
        height = (1.08 + 0.08 * k) * top
        axis.plot([low[k], high[k]], [height, height], "|-", color=colour, markersize=12, label=f"Y{k}: proved bounds")
        axis.vlines([low[k], high[k]], 0.0, height, color=colour, linewidth=0.8, linestyle=":")
    if panel.witness is not None:
        for value, colour in zip(panel.witness[1], (BLUE, ORANGE), strict=True):
            axis.plot(value, 0.04 * top, "*", color=colour, markeredgecolor=RED, markersize=13)
        axis.plot([], [], "*", color="white", markeredgecolor=RED, markersize=11, label="witness, replayed: Y1 > Y0")
    axis.set_xlabel("output")
    axis.set_yticks([])
    axis.set_title(panel.title)
    axis.set_ylim(0.0, 1.55 * top)
    axis.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)


def _rectangle(axis: Axes, lower: Array, upper: Array, **style: str) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((lower[0], lower[1]), *(upper - lower), fill=False, linewidth=1.5, **style))  # type: ignore[arg-type]
