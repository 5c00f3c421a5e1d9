"""Cactus plot: how many instances are decided within how many seconds each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from curvverify.plots.style import COLOURS, count_along, new_figure, save, seconds_up
from curvverify.report.batch import Record

DASHES = ("-", "--", ":")
"""Where there are more curves than colours."""


def cactus(runs: Mapping[str, Iterable[Record]], path: Path) -> None:
    """One curve per named run: the k-th fastest decided instance at (k, its seconds)."""
    figure, (axis,) = new_figure(1, 6.0, 4.0)
    for i, (name, records) in enumerate(runs.items()):
        everything = list(records)
        seconds = np.sort([record.seconds for record in everything if record.decided])
        label = f"{name}: {len(seconds)} of {len(everything)} decided"
        colour, dashes = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        count = np.arange(1, len(seconds) + 1)
        axis.plot(count, seconds, ".", linestyle=dashes, color=colour, markersize=4, label=label)
    seconds_up(axis)
    count_along(axis)
    axis.set_xlabel("instances decided")
    axis.set_ylabel("seconds per instance, whole process")
    axis.grid(True, axis="y", alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
    save(figure, path)
