"""Piecewise linear functions of one variable, which exports spell out as sums of ReLUs of shifted copies."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY, gamma, nan_is_unbounded
from curvverify.ops.base import Elementwise, Envelope
from curvverify.ops.elementwise.polygon import polygon_envelope
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Ramps(Elementwise):
    """sum_k weight_k max(z - knot_k, 0) for all entries z; weight (K,), knots (K,) in ascending order."""

    weight: Tensor
    knots: Tensor

    def to(self, dtype: torch.dtype) -> Ramps:
        return replace(self, weight=self.weight.to(dtype), knots=self.knots.to(dtype))

    def forward(self, *inputs: Tensor) -> Tensor:
        (z,) = inputs
        return (z.unsqueeze(-1) - self.knots).clamp(min=0.0) @ self.weight

    def _enclosure(self, z: Tensor) -> Interval:
        """Sound because: every term takes a difference, a product and its place in a sum."""
        value, size = self.forward(z), replace(self, weight=self.weight.abs()).forward(z)
        error = gamma(2 * len(self.knots) + 8) * size + TINY
        return Interval(value - error, value + error)

    def _pieces(self, x: Interval) -> tuple[Tensor, Tensor]:
        """The first and last straight piece (B, *S) that an interval meets; piece k begins at the k-th knot.

        At the ends only the interval's side counts; at a point that is a knot, both sides do.
        """
        first = torch.searchsorted(self.knots, x.lower.contiguous(), right=True)
        last = torch.searchsorted(self.knots, x.upper.contiguous())
        return torch.minimum(first, last), torch.maximum(first, last)

    def _corners(self, x: Interval) -> Tensor:
        """(B, *S, n): the ends of the interval, and the knots between them, some of them more than once."""
        first, last = self._pieces(x)
        most = int((last - first).max()) if first.numel() else 0
        inner = self.knots[(first.unsqueeze(-1) + torch.arange(most)).clamp(max=len(self.knots) - 1)]
        low, high = x.lower.unsqueeze(-1), x.upper.unsqueeze(-1)
        return torch.cat([low, inner.maximum(low).minimum(high), high], -1)

    def interval(self, x: Interval) -> Interval:
        """Bounds on sigma.  Sound because: its extremes are at the ends and at knots."""
        return _hull(self._enclosure(self._corners(x)))

    def derivative(self, order: int, x: Interval) -> Interval:
        """The slopes of the pieces that the interval meets, or 0; infinite for order 2 and 3 where there is a kink."""
        x = x.to(torch.float64)
        first, last = self._pieces(x)
        nothing = ~(x.lower <= x.upper)
        if order == 1:
            slopes = torch.nn.functional.pad(self.weight.cumsum(0), (1, 0))
            error = gamma(len(self.knots) + 4) * self.weight.abs().sum()
            piece = torch.arange(len(slopes))
            met = (piece >= first.unsqueeze(-1)) & (piece <= last.unsqueeze(-1))
            low = torch.where(met, slopes, math.inf).amin(-1) - error
            high = torch.where(met, slopes, -math.inf).amax(-1) + error
        else:
            low = high = torch.zeros_like(x.lower)
            nothing = nothing | (first < last)
        return Interval(torch.where(nothing, -math.inf, low), torch.where(nothing, math.inf, high))

    @property
    def straight(self) -> bool:
        return True

    def _off_chord(self, x: Interval) -> tuple[Tensor, Interval]:
        """The corners, and bounds there on sigma less the line between its values at both ends."""
        corners = self._corners(x)
        y = self._enclosure(corners)
        share = ((corners - x.lower.unsqueeze(-1)) / x.width.unsqueeze(-1)).clamp(0.0, 1.0)
        low, high = (torch.lerp(end[..., :1], end[..., -1:], share) for end in (y.lower, y.upper))
        slack = 2.0**-48 * y.magnitude.amax(-1, keepdim=True) + TINY
        return corners, Interval(y.lower - high - slack, y.upper - low + slack)

    def bow(self, x: Interval) -> Interval:
        """Exact up to roundings.  Sound because: sigma - chord is straight between the corners."""
        _, off = self._off_chord(x)
        hull = _hull(off)
        return Interval(hull.lower.clamp(max=0.0), hull.upper.clamp(min=0.0))

    def cut(self, x: Interval) -> Tensor:
        """At the knot that is farthest from the chord."""
        corners, off = self._off_chord(x)
        far = corners.gather(-1, off.magnitude.nan_to_num(0.0, 0.0).argmax(-1, keepdim=True)).squeeze(-1)
        return torch.where((far > x.lower) & (far < x.upper), far, super().cut(x))

    def curved(self, x: Interval, saturation: float = 0.0) -> Tensor:
        first, last = self._pieces(x)
        return super().curved(x, saturation) & (first < last)

    def envelope(self, x: Interval, saturation: float = 0.0) -> Envelope:
        """Sound because: sigma is straight between the ends of the interval and the knots inside it."""
        corners = self._corners(x)
        y = self._enclosure(corners)
        return polygon_envelope(corners.unbind(-1), y.lower.unbind(-1), y.upper.unbind(-1), _hull(y), saturation)


def _hull(values: Interval) -> Interval:
    """Bounds (B, *S) on all of the values (B, *S, n)."""
    return nan_is_unbounded(Interval(values.lower.amin(-1), values.upper.amax(-1)))
