"""Envelopes with corners: the hull of a few points per entry, and one envelope for each side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY
from curvverify.ops.base import Envelope, Lines
from curvverify.ops.elementwise.accuracy import CONDITION_SLACK
from curvverify.ops.elementwise.facts import LARGEST
from curvverify.ops.elementwise.hinge import ramp
from curvverify.ops.elementwise.select import Pair, blend, mask
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class PolygonEnvelope(Envelope):
    """Lines supporting the lower hull of some points of every entry, and the upper hull of others above them.

    The points (x_i, y_i), i = 0..n, have x_i in ascending order, x_0 = l and x_n = u.  The slope turns at x_i by
    `turns[i-1]` from `start`, the slope of the hull's first edge.

    Sound because: for any slope s the line with intercept min_i (y_i - s x_i) is below the lower hull of the points,
    and the operator vouches that sigma is above that hull; each y_i - s x_i is rounded by 3 U (|y_i| + |s x_i|).
    """

    start: Pair
    turns: tuple[Pair, ...]
    x: tuple[Tensor, ...]
    y: tuple[Pair, ...]
    width: Tensor
    reach: Tensor
    size: Tensor
    """Upper bound on every |y_i|."""

    def lines(self, point: Tensor, below: Tensor, smoothing: float) -> Lines:
        dtype = self.width.dtype
        point, side = point.to(dtype), mask(below, dtype)
        slope = self.start.choose(side)
        for corner, turn in zip(self.x[1:-1], self.turns, strict=True):
            if smoothing > 0.0:
                turned = ramp(point - corner, self.width, smoothing)
            else:
                turned = (self.x[-1] - corner > corner - self.x[0]).to(dtype)
            slope = torch.addcmul(slope, turn.choose(side), turned)
        sign = (side | 1).to(dtype)  # -1 below, +1 above
        highest = torch.stack(
            [sign * torch.addcmul(y.choose(side), slope, x, value=-1.0) for x, y in zip(self.x, self.y, strict=True)]
        )
        slack = CONDITION_SLACK * torch.addcmul(self.size, slope.abs(), self.reach) + TINY
        return Lines(slope, sign * (highest.amax(0) + slack))

    def to(self, dtype: torch.dtype) -> PolygonEnvelope:
        return PolygonEnvelope(
            start=self.start.to(dtype),
            turns=tuple(t.to(dtype) for t in self.turns),
            x=tuple(x.to(dtype) for x in self.x),
            y=tuple(y.to(dtype) for y in self.y),
            width=self.width.to(dtype),
            reach=self.reach.to(dtype),
            size=self.size.to(dtype),
        )


def polygon_envelope(
    x: Sequence[Tensor], lower: Sequence[Tensor], upper: Sequence[Tensor], bounds: Interval, saturation: float
) -> PolygonEnvelope:
    """The envelope between the lower hull of (x_i, lower_i) and the upper hull of (x_i, upper_i), (B, *S) each.

    Constant `bounds` where the interval is infinite (or huge) or sigma varies by at most `saturation`.
    """
    usable = (x[0] >= -LARGEST) & (x[0] <= x[-1]) & (x[-1] <= LARGEST)
    constant = ~usable | (bounds.upper - bounds.lower <= saturation)
    x = [torch.where(constant, 0.0, t) for t in x]
    lower = [torch.where(constant, bounds.lower, t) for t in lower]
    upper = [torch.where(constant, bounds.upper, t) for t in upper]
    below = hull_slopes(x, lower)
    above = [-s for s in hull_slopes(x, [-t for t in upper])]
    slopes = [Pair.of(b.unsqueeze(1), a.unsqueeze(1)) for b, a in zip(below, above, strict=True)]
    turns = [
        Pair.of(*(after - before for after, before in zip(s.both, r.both, strict=True))) for r, s in pairwise(slopes)
    ]
    return PolygonEnvelope(
        start=slopes[0],
        turns=tuple(turns),
        x=tuple(t.unsqueeze(1) for t in x),
        y=tuple(Pair.of(a.unsqueeze(1), b.unsqueeze(1)) for a, b in zip(lower, upper, strict=True)),
        width=(x[-1] - x[0]).clamp(min=1e-30).unsqueeze(1),
        reach=torch.maximum(x[0].abs(), x[-1].abs()).unsqueeze(1),
        size=torch.stack([t.abs() for t in (*lower, *upper)]).amax(0).unsqueeze(1),
    )


def hull_slopes(x: Sequence[Tensor], y: Sequence[Tensor]) -> list[Tensor]:
    """Slopes of the lower convex hull of the points over each of their steps, a neighbour's over an empty step.

    They are the isotonic regression of the slopes between neighbours, for which the min-max formula holds:
    max over j <= i of min over k > i of the slope from point j to point k (Robertson, Wright, Dykstra 1988).
    """
    n = len(x) - 1
    at, value = torch.stack(list(x), -1), torch.stack(list(y), -1)
    between = (value.unsqueeze(-2) - value.unsqueeze(-1)) / (at.unsqueeze(-2) - at.unsqueeze(-1))  # [j, k]
    least = between.flip(-1).cummin(-1).values.flip(-1)[..., :-1, 1:]  # [j, i], over k > i
    first = least.masked_fill(torch.ones(n, n, dtype=torch.bool).tril(-1), -torch.inf).amax(-2)
    slopes = list(torch.where(at[..., 1:] > at[..., :-1], first, torch.nan).unbind(-1))
    for i in range(1, n):
        slopes[i] = torch.where(slopes[i].isnan(), slopes[i - 1], slopes[i])
    for i in range(n - 2, -1, -1):
        slopes[i] = torch.where(slopes[i].isnan(), slopes[i + 1], slopes[i])
    return [s.nan_to_num(0.0, 0.0, 0.0) for s in slopes]


@dataclass(frozen=True, eq=False)
class TwoSided(Envelope):
    """The lines below from one envelope, the lines above from another."""

    lower: Envelope
    upper: Envelope

    def lines(self, point: Tensor, below: Tensor, smoothing: float) -> Lines:
        under, over = self.lower.lines(point, below, smoothing), self.upper.lines(point, below, smoothing)
        side = mask(below, under.slope.dtype)
        return Lines(blend(under.slope, over.slope, side), blend(under.intercept, over.intercept, side))

    def to(self, dtype: torch.dtype) -> TwoSided:
        return TwoSided(self.lower.to(dtype), self.upper.to(dtype))
