"""Proved margins of several methods over the same instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from curvverify.plots.style import COLOURS, GREY, count_along, new_figure, save
from curvverify.report.batch import Key, Record

BESIDE = 0.5
"""The dots of one instance stand side by side over so much of its place: methods often agree."""


def margins_figure(runs: Mapping[str, Sequence[Record]], path: Path) -> None:
    """One row of dots per method's margin, instances from the hardest to the easiest; above 0 they are verified.

    Colours are those of the cactus plot of the same runs.

    Instances with a counterexample are left out, and so are methods that report no margins.
    """
    best: dict[Key, float] = {}
    shown: dict[str, dict[Key, float]] = {}
    refuted = {record.key for records in runs.values() for record in records if record.verdict == "sat"}
    for name, records in runs.items():
        for record in records:
            margin = record.margin_lower
            if margin is not None and np.isfinite(margin) and record.key not in refuted:
                shown.setdefault(name, {})[record.key] = margin
                best[record.key] = max(best.get(record.key, -np.inf), margin)
    place = {key: i for i, key in enumerate(sorted(best, key=lambda key: best[key]), 1)}
    figure, (axis,) = new_figure(1, 7.0, 4.0)
    for i, name in enumerate(runs):
        margins = shown.get(name, {})
        x = [place[key] + BESIDE * (i / max(1, len(runs) - 1) - 0.5) for key in margins]
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(x, list(margins.values()), "o", markersize=4, color=colour, label=name if margins else None)
    axis.axhline(0.0, color=GREY, linewidth=1.0)
    axis.set_yscale("symlog", linthresh=1.0)
    axis.margins(y=0.1)
    count_along(axis)
    axis.set_xlabel("instance, hardest first")
    axis.set_ylabel("proved margin")
    axis.grid(True, axis="y", alpha=0.3)
    if shown:
        axis.legend(frameon=False, fontsize="small")
    save(figure, path)
