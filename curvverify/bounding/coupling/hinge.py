"""Lower hulls of a ReLU-like function plus a square, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from curvverify.bounding.coupling.hulls import Hulls, Support, mixture_square
from curvverify.numerics.rounding import TINY
from curvverify.types import Interval

ROUNDING = 2.0**-47
"""Relative slack of an intercept: 64 roundings, where some twenty take part."""

SMALLEST = 1e-12
"""Coefficients below this share of the full one count as 0."""


@dataclass(frozen=True, eq=False)
class HingeHulls(Hulls):
    """sigma(z) = p z for z < 0 and q z for z >= 0 on intervals around 0; every tensor (B, 1, n).

    With L = |q - p| and a concave kink, F = e sigma + kappa/2 (z - z0)^2 is two parabolas whose slope falls by L at 0.
    Its hull bridges the kink from -L / (2 kappa) to L / (2 kappa), wherever z0 is; where that leaves the interval, the
    bridge starts (ends) at the interval's end and touches the other parabola.

    Sound because: for any slope k, F - k z has its minimum over [l, u] on one of the parabolas over [l, 0] and [0, u],
    at its vertex or at an end; the intercept is that minimum less the rounding of its evaluation.  An error in a vertex
    within reach moves the minimum by its square, and one that is far out of reach is clamped all the same.
    """

    start: ClassVar[tuple[float, float]] = (0.2, 0.3)

    lower: Tensor
    upper: Tensor
    left_slope: Tensor
    right_slope: Tensor
    centre: Tensor
    curvature: Tensor
    """The full coefficient where the kink is concave."""

    def _concave(self, below: Tensor) -> Tensor:
        return (self.right_slope < self.left_slope) == below

    def full(self, below: Tensor) -> Tensor:
        return torch.where(self._concave(below), self.curvature, 0.0)

    def support(self, point: Tensor, below: Tensor, kappa: Tensor) -> Support:
        full = self.full(below)
        kappa = torch.where((full > 0) & (kappa > SMALLEST * full), kappa, 0.0)
        safe = torch.where(kappa > 0, kappa, 1.0)
        sign = torch.where(below, 1.0, -1.0).to(point.dtype)
        p, q = sign * self.left_slope, sign * self.right_slope
        a, b = self._bridge(safe)
        z = torch.minimum(torch.maximum(point, self.lower), self.upper)
        at_a = 0.5 * safe * (a - self.centre) ** 2 + p * a
        at_b = 0.5 * safe * (b - self.centre) ** 2 + q * b
        bridge = (at_b - at_a) / (b - a).clamp(min=1e-30)
        rise = safe * (z - self.centre)
        slope = torch.where(z <= a, rise + p, torch.where(z >= b, rise + q, bridge))
        intercept = torch.minimum(
            self._lowest(safe, p - slope, self.lower, torch.zeros_like(self.lower)),
            self._lowest(safe, q - slope, torch.zeros_like(self.upper), self.upper),
        )
        distance, outside = z - self.centre, (z <= a) | (z >= b)
        square = mixture_square(a - self.centre, b - self.centre, distance)
        return Support(slope, intercept, kappa, torch.where(outside, distance * distance, square))

    def _bridge(self, kappa: Tensor) -> tuple[Tensor, Tensor]:
        turn = (self.right_slope - self.left_slope).abs()
        half = 0.5 * turn / kappa
        short = -half < self.lower
        a = torch.where(short, self.lower, -half)
        b = torch.where(short, self.lower + (2.0 * turn * self.lower.neg() / kappa).sqrt(), half)
        long = b > self.upper
        back = torch.maximum(self.upper - (2.0 * turn * self.upper / kappa).sqrt(), self.lower)
        return torch.where(long, back, a), torch.where(long, self.upper, b)

    def _lowest(self, kappa: Tensor, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Lower bound on min over [start, end] of kappa/2 (z - z0)^2 + slope z."""
        z = torch.minimum(torch.maximum(self.centre - slope / kappa, start), end)
        distance = z - self.centre
        reach = torch.maximum(start.abs(), end.abs()) + self.centre.abs()
        size = (kappa * reach + slope.abs()) * reach
        return 0.5 * kappa * distance * distance + slope * z - ROUNDING * size - TINY

    def to(self, dtype: torch.dtype) -> HingeHulls:
        return HingeHulls(**{f.name: getattr(self, f.name).to(dtype) for f in fields(self)})


def hinge_hulls(slopes: tuple[Tensor, Tensor], x: Interval, centre: Tensor, present: Tensor) -> HingeHulls:
    """The hulls over the intervals (B, n) of functions with the slopes (B, n) beside their kink at 0."""
    p, q = slopes
    kinked = present & (x.lower < 0) & (x.upper > 0) & (p != q)
    lower, upper = torch.where(kinked, x.lower, -1.0), torch.where(kinked, x.upper, 1.0)
    arm = torch.minimum(4.0 * torch.minimum(-lower, upper), upper - lower)
    full = torch.where(kinked, 8.0 * (q - p).abs() / arm, 0.0)
    return HingeHulls(*(t.unsqueeze(1) for t in (lower, upper, p, q, centre, full)))
