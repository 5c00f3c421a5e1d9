"""A scalar function on a grid: enclosed at the points, and how far it may leave the chords in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY
from curvverify.ops.base import Elementwise
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Grid:
    """sigma on intervals [l, u], every tensor (..., cells + 1) for points and (..., cells) for cells.

    On a cell of width h, slope is sigma' and bend sigma'', both enclosed; bend may be infinite (at a kink).
    """

    points: Tensor
    value: Interval
    slope: Interval
    bend: Interval

    @property
    def width(self) -> Tensor:
        """Upper bound on the cells' widths."""
        return (self.points[..., 1:] - self.points[..., :-1]) * (1.0 + 1e-15) + TINY

    def sag(self, sign: int, kappa: Tensor | float = 0.0) -> Tensor:
        """Upper bound on how far sign * sigma + kappa/2 (z - z0)^2 falls below its chord, cell by cell.

        Sound because: F - chord is 0 at both ends; with F'' <= M it is at least -M h^2 / 8, and with F' in [a, b] at
        least -h (b - a) / 4, since two lines of slopes a and b through the ends meet no lower than that.
        """
        h = self.width
        bend, slope = (self.bend.upper, self.slope) if sign > 0 else (-self.bend.lower, self.slope)
        curved = h * h / 8.0 * (bend + kappa).clamp(min=0.0)
        kinked = h * (slope.upper - slope.lower + h * kappa) / 4.0
        return 1.0000001 * torch.fmin(curved, kinked).nan_to_num(nan=torch.inf, posinf=torch.inf) + TINY


def make_grid(op: Elementwise, x: Interval, cells: int) -> Grid:
    """The function over finite intervals of any shape, with a point at the kink that `op.cut` tells of."""
    t = torch.linspace(0.0, 1.0, cells + 1, dtype=torch.float64)
    lower, upper = x.lower.unsqueeze(-1), x.upper.unsqueeze(-1)
    points = torch.minimum(torch.maximum(torch.lerp(lower, upper, t), lower), upper)
    points[..., 0], points[..., -1] = x.lower, x.upper
    cut = op.cut(x).unsqueeze(-1)
    inner = points[..., 1:-1]
    nearest = (inner - cut).abs().argmin(-1, keepdim=True)
    inside = (cut > lower) & (cut < upper)
    points[..., 1:-1] = inner.scatter(-1, nearest, torch.where(inside, cut, inner.gather(-1, nearest)))
    points = points.cummax(-1).values
    steps = Interval(points[..., :-1], points[..., 1:])
    return Grid(
        points,
        _along_batch(op.interval, Interval(points, points)),
        _along_batch(lambda c: op.derivative(1, c), steps),
        _along_batch(lambda c: op.derivative(2, c), steps),
    )


def _along_batch(rule: Callable[[Interval], Interval], x: Interval) -> Interval:
    """A rule for (B, *S) applied to (B, *S, m): the last axis joins the batch."""
    m, shape = x.shape[-1], x.shape[:-1]
    flat = rule(Interval(*(t.movedim(-1, 0).reshape(-1, *shape[1:]) for t in (x.lower, x.upper))))
    return Interval(*(t.reshape(m, *shape).movedim(0, -1) for t in (flat.lower, flat.upper)))
