"""Evaluated models as one table, a column for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from curvverify.report.constants import number
from curvverify.report.radii import percent

if TYPE_CHECKING:
    from curvverify.train.evaluate import Evaluation


def evaluation_table(found: Sequence[Evaluation]) -> Table:
    """What is proved, attacked and estimated; the models must have been asked the same."""
    first = found[0]
    table = Table(title=f"{first.samples} samples")
    table.add_column("")
    for evaluation in found:
        table.add_column(Text(evaluation.model), justify="right", overflow="fold")
    table.add_row("clean accuracy", *(percent(e.clean) for e in found))
    for k, at in enumerate(first.at):
        table.add_row(f"certified, l2 {at.eps:g}", *(percent(e.at[k].certified) for e in found))
        table.add_row(f"attacked, l2 {at.eps:g}", *(percent(e.at[k].attacked) for e in found))
    if first.linf is not None:
        table.add_row(f"attacked, linf {first.linf:g}", *(percent(e.attacked_linf or 0.0) for e in found))
    table.add_section()
    table.add_row("Lipschitz constant, proved", *(number(e.lipschitz_upper) for e in found))
    table.add_row("curvature, proved", *(number(e.curvature_upper) for e in found))
    table.add_section()
    for label, name in (
        ("gradient norm of the margin", "gradient_norm_estimate"),
        ("Hessian norm", "hessian_norm_estimate"),
        ("normalised curvature", "normalised_curvature_estimate"),
    ):
        table.add_row(f"{label}, mean estimate", *(number(getattr(e, name)) for e in found))
    return table
