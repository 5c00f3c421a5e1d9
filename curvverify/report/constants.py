"""Constants and curvature estimates as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from curvverify.report.tables import shape_text

if TYPE_CHECKING:
    from curvverify.bounding.constants.estimates import CurvatureEstimates
    from curvverify.bounding.constants.report import CurvatureReport

COLUMNS = ("node", "operator", "shape", "L", "C", "T", "formula (L / C)")


def constants_table(report: CurvatureReport) -> Table:
    """One row per node, and the output last."""
    kind = "anchored constants" if report.anchored else "constants"
    table = Table(title=f"{report.model}: {kind} over {report.region}, {report.norm} to l2, {report.seconds:.2f} s")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if 3 <= i < 6 else "left", overflow="fold")
    for node in report.nodes:
        numbers = (number(v) for v in (node.lipschitz_upper, node.curvature_upper, node.third_order_upper))
        table.add_row(Text(node.name), node.op, shape_text(node.shape), *numbers, Text(node.formula))
    output = report.output
    table.add_section()
    numbers = (number(v) for v in (output.lipschitz_upper, output.curvature_upper, output.third_order_upper))
    table.add_row(Text("output", style="bold"), "", "", *numbers, Text(output.formula))
    return table


def remarks(report: CurvatureReport) -> list[str]:
    """What the table leaves out: the eigenvalues, and why a constant is infinite."""
    low, high = number(report.output.eigenvalue_lower), number(report.output.eigenvalue_upper)
    what = "the Hessian of every output" if report.norm == "l2" else "d^T Hessian d, ||d||_inf <= 1, of every output"
    lines = [f"{what} is between {low} and {high}"]
    lines += [f"{node.name}: {node.reason}" for node in report.nodes if node.reason]
    return lines


def estimates_table(model: str, estimates: CurvatureEstimates) -> Table:
    """Mean and standard deviation over the samples; nothing here is proved."""
    count = estimates.gradient_norm_estimate.count
    table = Table(title=f"{model}: estimates (not bounds) for the {estimates.function}, {count} samples")
    for i, column in enumerate(("estimate", "mean", "deviation", "largest")):
        table.add_column(column, justify="left" if i == 0 else "right")
    for label, values in (
        ("gradient norm", estimates.gradient_norm_estimate),
        ("Hessian norm", estimates.hessian_norm_estimate),
        ("Hessian norm by power iteration", estimates.rayleigh_quotient_estimate),
        ("normalised curvature", estimates.normalised_curvature_estimate),
    ):
        mean, deviation = values.mean_estimate.value, values.deviation_estimate.value
        table.add_row(label, number(mean), number(deviation), number(float(values.values.max())))
    return table


def number(value: float) -> str:
    """Six significant digits; "inf" where infinite."""
    return f"{value:.6g}" if math.isfinite(value) else ("inf" if value > 0 else "-inf" if value < 0 else "nan")
