"""Step functions: floor and sign."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.ops.base import Elementwise, Envelope
from curvverify.ops.elementwise.polygon import polygon_envelope
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Step(Elementwise):
    """Constant between its jumps."""

    def derivative(self, order: int, x: Interval) -> Interval:
        """0 where sigma is constant on the interval, as its values at the ends decide; elsewhere nothing is claimed."""
        x = x.to(torch.float64)
        bounds = self.interval(x)
        flat = (bounds.lower == bounds.upper) & (x.lower <= x.upper)
        high = torch.zeros_like(x.lower).masked_fill(~flat, math.inf)
        return Interval(-high, high)


@dataclass(frozen=True, eq=False)
class Floor(Step):
    """The largest integer not above z."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].floor()

    def interval(self, x: Interval) -> Interval:
        """Bounds on sigma, exact: it is monotone."""
        return Interval(x.lower.floor(), x.upper.floor())

    def envelope(self, x: Interval, saturation: float = 0.0) -> Envelope:
        """Sound because: with m, n the first and last step in ]l, u], sigma is floor(l) on [l, m[ and n on [n, u], and
        between m and n it is above z - 1 and not above z: the hulls of its corners at l, m, n and u contain it.
        """
        bounds = self.interval(x)
        first, last = bounds.lower + 1.0, bounds.upper
        steps = first <= last
        m, n = (torch.where(steps, t, x.upper) for t in (first, last))
        corners = [x.lower, m, n, x.upper]
        lower = [bounds.lower, *(torch.where(steps, t - 1.0, bounds.lower) for t in (m, n)), bounds.upper]
        upper = [bounds.lower, *(torch.where(steps, t, bounds.lower) for t in (m, n)), bounds.upper]
        return polygon_envelope(corners, lower, upper, bounds, saturation)


@dataclass(frozen=True, eq=False)
class Sign(Step):
    """-1, 0 or 1."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sign()

    def interval(self, x: Interval) -> Interval:
        """Bounds on sigma, exact: it is monotone."""
        return Interval(x.lower.sign(), x.upper.sign())

    def envelope(self, x: Interval, saturation: float = 0.0) -> Envelope:
        """Sound because: the hulls of the corners at l, 0 and u, on the outer side of the jump, contain the steps."""
        bounds = self.interval(x)
        middle = x.lower.clamp(min=0.0).minimum(x.upper)
        corners = [x.lower, middle, x.upper]
        return polygon_envelope(
            corners,
            [bounds.lower, bounds.lower, bounds.upper],
            [bounds.lower, bounds.upper, bounds.upper],
            bounds,
            saturation,
        )
