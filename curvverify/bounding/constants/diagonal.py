"""A diagonal that dominates the Hessian from below on a box: what underestimators of the function add."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from curvverify.bounding.constants.analysis import Analysis, analyse
from curvverify.bounding.constants.report import setting_over
from curvverify.bounding.constants.setting import Structure
from curvverify.bounding.linear import Effort
from curvverify.bounding.region import RegionLike, region_of
from curvverify.errors import UsageError
from curvverify.graph.layers import Graph
from curvverify.numerics.rounding import round_up


@torch.no_grad()
def hessian_diagonal(graph: Graph, region: RegionLike, row: Tensor, effort: Effort | None = None) -> Tensor:
    """q (*S_in) >= 0 with Hessian + diag(q) positive semidefinite on the box, for f = row . output; row (*S_out).

    Hence f(x) + sum_i q_i / 2 ((x_i - x0_i)^2 - r_i^2) is convex and below f on [x0 - r, x0 + r].  0 for coordinates
    that are fixed; inf where no finite curvature is known.  Of two scalings the one with the least sum of q_i r_i^2.
    Sound because: with x = x0 + D xi, D^T Hessian D >= -lambda I gives Hessian >= -lambda D^-2, for any diagonal D > 0.
    Source: Adjiman et al., Computers and Chemical Engineering 22 (1998) (alpha-BB), with spectral bounds for their
    interval Hessian.
    Raises UsageError for a region that is no bounded box.
    """
    graph = graph.to(torch.float64)
    where = region_of(region, graph.input_shape)
    if where.ball is not None or not where.bounded:
        raise UsageError("a diagonal bound on the Hessian belongs to a bounded box")
    radius = round_up(0.5 * (where.box.upper - where.box.lower)) * where.free
    setting = replace(setting_over(Structure(graph), where, effort=effort), scale=radius)
    first = analyse(setting)
    best = _diagonal(first, row, radius)
    scale = radius / _weights(first, radius).sqrt()
    second = _diagonal(analyse(replace(setting, scale=scale)), row, scale)
    price = [float((q * radius.square()).sum()) for q in (best, second)]
    return second if price[1] < price[0] else best


def _diagonal(analysis: Analysis, row: Tensor, scale: Tensor) -> Tensor:
    """lambda / scale^2, rounded up; 0 for fixed coordinates."""
    amount = -float(analysis.of_rows(row.to(torch.float64)).lower[0])
    q = round_up(round_up(amount / scale) / scale) if amount else torch.zeros_like(scale)
    return torch.where(scale > 0, q.nan_to_num(nan=torch.inf, posinf=torch.inf), 0.0)


def _weights(analysis: Analysis, radius: Tensor) -> Tensor:
    """p (*S_in) > 0: how strongly every input moves the first nonlinear nodes, over its box; ones where unknown."""
    maps = analysis.maps
    size = torch.zeros(radius.numel(), dtype=torch.float64)
    if maps is not None:
        for z in maps.targets:
            if maps.affine(z) and (z, 0) in maps.maps:
                size = size + maps.maps[z, 0].matrix.square().sum(0)
    size = size.sqrt()
    if not bool((size > 0).any()):
        return torch.ones_like(radius)
    return (size / size.max()).clamp(min=1e-3).reshape(radius.shape)
