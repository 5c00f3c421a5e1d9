"""The look all pictures share; matplotlib is imported here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from curvverify.errors import UnsupportedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8c8c8c"
"""Colours that stay apart for colour-blind readers (Okabe and Ito)."""

SKY, PINK, BLACK, YELLOW = "#56b4e9", "#cc79a7", "#000000", "#f0e442"
COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, PINK, BLACK, YELLOW)
"""For many curves in one picture, in turn."""


def new_figure(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side, without a window; UnsupportedError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError("pictures need matplotlib: pip install 'curvverify[plots]'") from error
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def count_along(axis: Axes) -> None:
    """Whole numbers on the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def seconds_up(axis: Axes) -> None:
    """Seconds on a logarithmic vertical axis, written as 0.5, 1, 2, 5, 10."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def save(figure: Figure, path: Path) -> None:
    """Write the picture in the format that the suffix names; UnsupportedError for one matplotlib does not know."""
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UnsupportedError(f"{path}: {error}") from error
