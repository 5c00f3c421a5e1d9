"""Records as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from curvverify.report.batch import Summary, cells

if TYPE_CHECKING:
    from curvverify.verification.node_bounds import BoundsReport, NodeBounds

SUMMARY_COLUMNS = ("family", "decided", "sat", "unsat", "open", "failed", "median s", "max s", "peak GiB", "wrong?")
BOUNDS_COLUMNS = ("node", "operator", "shape", "min lower", "max upper", "mean width", "loose")


def summary_table(summaries: Iterable[Summary]) -> Table:
    """One row per family; verdicts that contradict known ones stand out."""
    table = Table(title="verdicts per family")
    for i, column in enumerate(SUMMARY_COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i > 0, overflow="fold")
    for summary in summaries:
        style = "bold red" if summary.contradictions else None
        table.add_row(*cells(summary), style=style)
    return table


def bounds_table(report: BoundsReport) -> Table:
    """One row per node; `loose` counts the entries whose relaxation is not exact, of those the node has."""
    table = Table(title=f"{report.model}: {report.method} bounds, {report.seconds:.2f} s")
    for i, column in enumerate(BOUNDS_COLUMNS):
        table.add_column(column, justify="left" if i < 3 else "right", overflow="fold")
    for node in report.nodes:
        table.add_row(*bounds_row(node))
    return table


def shape_text(shape: tuple[int, ...]) -> str:
    """`1x28x28`, or `scalar`."""
    return "x".join(str(n) for n in shape) or "scalar"


def bounds_row(node: NodeBounds) -> list[str | Text]:
    """The cells of one node."""
    lower, upper = float(node.lower.min()), float(node.upper.max())
    width = float((node.upper - node.lower).mean())
    loose = f"{node.loose} of {node.lower.numel()}" if node.nonlinear else ""
    return [Text(node.name), node.op, shape_text(node.shape), f"{lower:.6g}", f"{upper:.6g}", f"{width:.6g}", loose]
