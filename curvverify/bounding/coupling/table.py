"""Lower hulls of any function plus a square, tabulated: entry, side, coefficient of the square, cell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.bounding.coupling.chain import ends, lower_chain
from curvverify.bounding.coupling.grid import Grid, make_grid
from curvverify.bounding.coupling.hulls import Hulls, Support, mixture_square
from curvverify.numerics.rounding import TINY
from curvverify.ops.base import Elementwise
from curvverify.types import Interval

CELLS = 64
"""Cells per interval."""

LEVELS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.27, 0.35, 0.43, 0.52, 0.62, 0.72, 0.83, 0.92, 1.0)
"""Coefficients of the square relative to the full one; a coefficient is rounded down to a level."""

KINK = 16.0
"""Full coefficient at a kink, times the turn of the slope over the interval's width."""

ROUNDING = 2.0**-48
"""Relative slack of a sampled value and of an intercept: 32 roundings, where at most ten take part."""


@dataclass(frozen=True, eq=False)
class TableHulls(Hulls):
    """The table (B * n * 2 * LEVELS * CELLS, 4): slope, intercept, and the ends of the hull's segment less z0.

    Sound because: let y_i be a lower bound of F at the grid points, lowered by what F may sag in the cells beside it;
    then F is nowhere below the polygon through the (z_i, y_i), nor below a line that is below all of them, and every
    intercept is min_i (y_i - slope z_i), whatever the slope.
    """

    table: Tensor
    curvature: Tensor
    """(B, n, 2): the full coefficient on the lower and on the upper side; 0 where there is nothing to gain."""
    lower: Tensor
    width: Tensor
    centre: Tensor
    """(B, 1, n) each: the interval's lower end and width, and z0."""
    levels: Tensor

    def full(self, below: Tensor) -> Tensor:
        first, second = self.curvature.unbind(-1)
        return torch.where(below, first.unsqueeze(1), second.unsqueeze(1))

    def support(self, point: Tensor, below: Tensor, kappa: Tensor) -> Support:
        full = self.full(below)
        level = torch.bucketize(kappa / full.clamp(min=1e-30) * 1.000001, self.levels, right=True) - 1
        level = level.clamp(0, len(LEVELS) - 1)
        cell = ((point - self.lower) / self.width * CELLS).to(torch.long).clamp_(0, CELLS - 1)
        boxes, entries = self.curvature.shape[:2]
        entry = torch.arange(boxes * entries).reshape(boxes, 1, entries)
        index = ((entry * 2 + (~below).to(torch.long)) * len(LEVELS) + level) * CELLS + cell
        slope, intercept, left, right = self.table[index].unbind(-1)
        distance = point - self.centre
        return Support(slope, intercept, full * self.levels[level], mixture_square(left, right, distance))

    def to(self, dtype: torch.dtype) -> TableHulls:
        names = ("table", "curvature", "lower", "width", "centre", "levels")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})


def table_hulls(op: Elementwise, x: Interval, centre: Tensor, present: Tensor) -> TableHulls:
    """The table over the intervals (B, n) of an operator without attributes of its own per entry."""
    grid = make_grid(op, x, CELLS)
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    sides = []
    for sign in (1, -1):
        full = torch.where(present, full_curvature(grid, sign), 0.0)
        kappa = full.unsqueeze(-1) * levels
        lines = _lines(grid, sign, kappa, centre)
        full = torch.where(lines[..., 1].isfinite().flatten(2).all(2), full, 0.0)
        sides.append((full, lines))
    curvature = torch.stack([full for full, _ in sides], -1)
    table = torch.stack([lines for _, lines in sides], 2).reshape(-1, 4)
    width = x.width.clamp(min=1e-30)
    return TableHulls(table, curvature, x.lower.unsqueeze(1), width.unsqueeze(1), centre.unsqueeze(1), levels)


def full_curvature(grid: Grid, sign: int) -> Tensor:
    """The coefficient from which on sign * sigma + kappa/2 z^2 is convex; at kinks, where none is, a large one."""
    bend = -grid.bend.lower if sign > 0 else grid.bend.upper
    width = (grid.points[..., -1] - grid.points[..., 0]).clamp(min=1e-30)
    turn = grid.slope.upper.amax(-1) - grid.slope.lower.amin(-1)
    most = bend.amax(-1).clamp(min=0.0)
    return torch.where(most.isfinite(), most, KINK * turn / width).nan_to_num(0.0, 0.0, 0.0)


def _lines(grid: Grid, sign: int, kappa: Tensor, centre: Tensor) -> Tensor:
    """Lines (B, n, Q, CELLS, 4) for the coefficients (B, n, Q)."""
    z = grid.points.unsqueeze(-2)
    distance = z - centre[..., None, None]
    value = grid.value.lower if sign > 0 else -grid.value.upper
    square = 0.5 * kappa.unsqueeze(-1) * distance * distance
    spread = kappa.unsqueeze(-1) * distance.abs() * (z.abs() + centre[..., None, None].abs())
    sag = Grid(z, grid.value, _widen(grid.slope), _widen(grid.bend)).sag(sign, kappa.unsqueeze(-1))
    drop = torch.nn.functional.pad(sag, (1, 1)).unfold(-1, 2, 1).amax(-1)
    y = value.unsqueeze(-2) + square - drop - ROUNDING * (value.abs().unsqueeze(-2) + square + spread) - TINY
    shape = y.shape
    x, flat = z.expand(shape).reshape(-1, CELLS + 1), y.reshape(-1, CELLS + 1)
    finite = flat.isfinite().all(-1, keepdim=True)
    flat = torch.where(finite, flat, 0.0)
    left, right = ends(lower_chain(x, flat))
    xa, xb = x.gather(1, left), x.gather(1, right)
    slope = ((flat.gather(1, right) - flat.gather(1, left)) / (xb - xa)).nan_to_num(0.0, 0.0, 0.0)
    intercept = torch.full_like(slope, torch.inf)
    for i in range(CELLS + 1):
        intercept = torch.minimum(intercept, torch.addcmul(flat[:, i : i + 1], slope, x[:, i : i + 1], value=-1.0))
    reach = x.abs().amax(-1, keepdim=True)
    intercept = intercept - ROUNDING * (flat.abs().amax(-1, keepdim=True) + slope.abs() * reach) - TINY
    intercept = torch.where(finite, intercept, -torch.inf)
    z0 = centre.unsqueeze(-1).expand(shape[:-1]).reshape(-1, 1)
    return torch.stack([slope, intercept, xa - z0, xb - z0], -1).reshape(*shape[:-1], CELLS, 4)


def _widen(x: Interval) -> Interval:
    return Interval(x.lower.unsqueeze(-2), x.upper.unsqueeze(-2))
