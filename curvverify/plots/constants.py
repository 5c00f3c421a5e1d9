"""Lipschitz constant and curvature over the depth of a network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from curvverify.plots.style import BLUE, GREY, ORANGE, new_figure, save

if TYPE_CHECKING:
    from curvverify.bounding.constants.report import CurvatureReport


def draw_constants(report: CurvatureReport, path: Path) -> None:
    """Both constants of every node, on a logarithmic scale; nodes where one is infinite are marked at the top."""
    figure, (axis,) = new_figure(1, 7.5, 4.0)
    for name, label, colour in (
        ("lipschitz_upper", "Lipschitz constant", BLUE),
        ("curvature_upper", "curvature", ORANGE),
    ):
        values = [getattr(node, name) for node in report.nodes]
        shown = [(i, v) for i, v in enumerate(values) if 0.0 < v < math.inf]
        axis.plot([i for i, _ in shown], [v for _, v in shown], marker="o", ms=3, color=colour, label=label)
        infinite = [i for i, v in enumerate(values) if v == math.inf]
        if infinite:
            top = [1.0 if name == "lipschitz_upper" else 0.97] * len(infinite)
            transform = axis.get_xaxis_transform()
            axis.plot(infinite, top, "^", color=colour, ms=5, transform=transform, clip_on=False, label=f"{label}: inf")
    axis.set_yscale("log")
    axis.set_xlabel("node, in topological order")
    axis.set_ylabel(f"upper bound, {report.norm} to l2")
    axis.set_title(f"{report.model}: {report.region}", color=GREY, fontsize=9)
    axis.grid(True, axis="y", alpha=0.3)
    axis.legend(frameon=False)
    save(figure, path)
