"""Scalar outputs: bounds on their gradients and on the eigenvalues of their Hessians."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.forms import Forms
from curvverify.bounding.constants.gradients import derivatives
from curvverify.bounding.constants.maps import CentredMaps
from curvverify.bounding.constants.second_order import Bends
from curvverify.bounding.constants.setting import Setting
from curvverify.bounding.constants.values import Constants, scaled
from curvverify.graph.layers import Graph
from curvverify.numerics.norms import matrix_row_norms_upper
from curvverify.numerics.norms.scaling import enlarge
from curvverify.numerics.rounding import gamma
from curvverify.ops.linear import Dense

BATCH = 2**25
"""Rows are taken together as long as R matrices of the widest node's side have at most so many entries."""


@dataclass(frozen=True, eq=False)
class RowConstants:
    """Of R rows of the output, over the region: bounds (R) on the gradient's norm and on d^T Hessian d, ||d|| <= 1."""

    lipschitz: Tensor
    upper: Tensor
    """Upper bound on the quadratic form, at least 0: the largest eigenvalue M for the l_2 norm."""
    lower: Tensor
    """Lower bound, at most 0: the smallest eigenvalue m."""
    exact: bool
    """Whether upper and lower come from the two-layer formula, which is exact for unrelated neurons."""

    @property
    def curvature(self) -> Tensor:
        return torch.maximum(self.upper, -self.lower)


def difference_rows(classes: int, y: Tensor, t: Tensor) -> Tensor:
    """Rows (N, K) of z_y - z_t."""
    rows = torch.zeros(len(y), classes, dtype=torch.float64)
    rows.scatter_(1, y.unsqueeze(1), 1.0)
    return rows.scatter_add_(1, t.unsqueeze(1), torch.full((len(t), 1), -1.0, dtype=torch.float64))


def row_constants(
    setting: Setting, rows: Tensor, known: dict[int, Constants], maps: CentredMaps | None, bends: Bends
) -> RowConstants:
    """Bounds for R rows (R, *S_out): R linear functions of the output, such as its entries or differences of them."""
    widest = max(node.size for node in setting.graph.nodes)
    parts = [_row_constants(setting, part, known, maps, bends) for part in rows.split(max(1, BATCH // widest**2))]
    joined = (torch.cat([getattr(p, name) for p in parts]) for name in ("lipschitz", "upper", "lower"))
    return RowConstants(*joined, exact=all(p.exact for p in parts))


def _row_constants(
    setting: Setting, rows: Tensor, known: dict[int, Constants], maps: CentredMaps | None, bends: Bends
) -> RowConstants:
    backward = derivatives(setting, rows, maps)
    forms = Forms(setting, known, maps, bends)
    upper, exact_upper = forms.upper(backward, 1)
    lower, exact_lower = forms.upper(backward, -1)
    lipschitz = torch.zeros(len(rows), dtype=torch.float64)
    if 0 in backward.ranges:
        gradient = scaled(backward.ranges[0].magnitude.flatten(1), setting.scale.flatten())
        size = gradient.square().sum(1).sqrt() if setting.norm == 2.0 else gradient.sum(1)
        lipschitz = enlarge(size, gamma(gradient.shape[1] + 8))
    lipschitz = lipschitz.minimum(_by_output(setting.graph, rows, known))
    output = setting.graph.output
    if maps is not None and output in maps.targets:
        lipschitz = lipschitz.minimum(maps.row_lipschitz(output, rows.flatten(1), known))
    return RowConstants(lipschitz, upper, -lower, exact_upper and exact_lower)


def _by_output(graph: Graph, rows: Tensor, known: dict[int, Constants]) -> Tensor:
    """(R,): ||row|| times the constant of the output as a whole, or ||row W|| times that of a last layer's input.

    Sound because: a product with W errs by at most gamma_n of its absolute terms, and a norm by gamma_n.
    """
    node = graph.nodes[graph.output]
    sizes = [(rows.flatten(1), known[graph.output])]
    if isinstance(node.op, Dense):
        weight = node.op.weight
        through = (rows @ weight).abs() + gamma(len(weight) + 2) * (rows.abs() @ weight.abs())
        sizes.append((through.flatten(1), known[node.inputs[0]]))
    found = [matrix_row_norms_upper(size) * constants.lipschitz.value for size, constants in sizes]
    return enlarge(torch.stack(found).amin(0), gamma(8))
