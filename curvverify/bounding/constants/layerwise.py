"""The layer-wise, data-free figure that low-curvature networks are trained by."""

from __future__ import annotations

import math

import torch

from curvverify.bounding.constants.analysis import Analysis
from curvverify.bounding.constants.values import largest
from curvverify.numerics.norms import Estimate
from curvverify.ops.base import Elementwise
from curvverify.types import Interval

CELLS, REACH = 4096, 30.0
"""How finely sigma'' / sigma' is looked at, and how far from 0."""


def layerwise_estimate(analysis: Analysis) -> Estimate:
    """sum_j kappa_j L_j over the activations: kappa_j = sup|sigma'' / sigma'| and L_j the Lipschitz constant before it.

    An upper bound on ||f''|| / |f'| for a chain of scalar functions, where f''/f' is the sum of the layers' own; for
    vectors an indicator only, since a gradient may cancel where the Hessian does not.  Hence an estimate, inf where a
    slope vanishes (GELU, SiLU, sin).
    Source: Srinivas, Matoba, Lakkaraju and Fleuret, NeurIPS 2022, theorem 1 (with the product of norms replaced by the
    best Lipschitz constant known).
    """
    graph = analysis.setting.graph
    total = 0.0
    for node in graph.nodes:
        if isinstance(node.op, Elementwise):
            (z,) = node.inputs
            total += _ratio(node.op, node.shape, analysis.setting.ranges[z]) * analysis.nodes[z].lipschitz.value
    return Estimate(total, CELLS)


def _ratio(op: Elementwise, shape: tuple[int, ...], x: Interval) -> float:
    """sup|sigma''| / |sigma'| over cells of the range; inf where a slope is 0 in one of them."""
    low, high = max(float(x.lower.min()), -REACH), min(float(x.upper.max()), REACH)
    worst = 0.0
    edges = torch.linspace(low, max(low, high), CELLS + 1, dtype=torch.float64)
    wide = (-1, *(1 for _ in shape))
    for a, b in zip(edges[:-1].split(1024), edges[1:].split(1024), strict=True):
        cells = Interval(a.reshape(wide), b.reshape(wide))
        slope, second = op.derivative(1, cells), op.derivative(2, cells).magnitude
        flattest = torch.where(slope.lower > 0, slope.lower, (-slope.upper).clamp(min=0.0))
        worst = max(worst, largest(torch.where(second == 0, 0.0, second / flattest)))
    return math.inf if math.isnan(worst) else worst
