"""Certified radii in three pictures: accuracy over radius, their distribution, first against second order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curvverify.certificates.record import SampleRadius
from curvverify.plots.style import BLUE, GREEN, GREY, ORANGE, RED, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.floating]
MOST_POINTS = 5000


def radii_figure(samples: Sequence[SampleRadius], norm: str, path: Path) -> None:
    """Write the picture in the format of the path's suffix."""
    figure, axes = new_figure(3, 14.0, 4.0)
    columns = {
        "Lipschitz": (np.array([s.radius_lipschitz for s in samples]), ORANGE),
        "Taylor": (np.array([s.radius_taylor for s in samples]), GREEN),
        "certified": (np.array([s.radius_certified for s in samples]), BLUE),
        "attacked": (np.array([s.radius_attacked for s in samples]), RED),
    }
    unit = {"l2": "l2", "linf": "l-infinity"}[norm]
    _accuracy(axes[0], columns, unit)
    _histogram(axes[1], columns, unit)
    _scatter(axes[2], columns, unit)
    save(figure, path)


def _accuracy(axis: Axes, columns: dict[str, tuple[Array, str]], unit: str) -> None:
    for name, (radii, colour) in columns.items():
        finite = np.sort(radii[np.isfinite(radii)])
        share = 1.0 - np.arange(1, len(finite) + 1) / max(len(radii), 1)
        label = "not attacked" if name == "attacked" else name
        axis.step(np.r_[0.0, finite], np.r_[1.0, share] * 100.0, where="post", color=colour, label=label)
    axis.set_xlabel(f"{unit} radius")
    axis.set_ylabel("samples that keep their label, %")
    axis.set_ylim(0.0, 100.0)
    axis.legend(frameon=False)


def _histogram(axis: Axes, columns: dict[str, tuple[Array, str]], unit: str) -> None:
    finite = {name: r[np.isfinite(r) & (r > 0)] for name, (r, _) in columns.items()}
    top = max((float(r.max()) for r in finite.values() if len(r)), default=1.0)
    for name, (_, colour) in columns.items():
        axis.hist(finite[name], np.linspace(0.0, top, 60).tolist(), color=colour, histtype="step", label=name)
    axis.set_xlabel(f"{unit} radius (where positive)")
    axis.set_ylabel("samples")
    axis.legend(frameon=False)


def _scatter(axis: Axes, columns: dict[str, tuple[Array, str]], unit: str) -> None:
    first = columns["Lipschitz"][0][:MOST_POINTS]
    for name in ("Taylor", "certified"):
        second, colour = columns[name]
        axis.plot(first, second[:MOST_POINTS], ".", color=colour, markersize=2, label=name)
    top = float(first.max()) if len(first) else 1.0
    axis.plot([0.0, top], [0.0, top], "-", color=GREY, linewidth=0.8, label="equal")
    axis.set_xlabel(f"first order: {unit} radius by Lipschitz constants")
    axis.set_ylabel("second order, and all methods together")
    axis.legend(frameon=False)
