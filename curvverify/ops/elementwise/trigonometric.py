"""sine and cosine, on intervals of any length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvverify.numerics.rounding import nan_is_unbounded
from curvverify.ops.elementwise.accuracy import value_error
from curvverify.ops.elementwise.facts import Facts, Piece, Pieces
from curvverify.ops.elementwise.smooth import Smooth
from curvverify.types import Interval

_PERIOD = 2.0 * math.pi


@dataclass(frozen=True, eq=False)
class _Wave(Smooth):
    """A unit wave of period 2 pi whose minima are at `phase` + 2 pi k, maxima half a period later."""

    phase: ClassVar[float]

    @property
    def facts(self) -> Facts:
        return Facts(limits=(math.nan, math.nan), range=(-1.0, 1.0), value_scale=1.0, slope_scale=1.0, largest=_LARGEST)

    def interval(self, x: Interval) -> Interval:
        """Bounds on sigma: -1 and 1 where a minimum or a maximum may be inside, else the ends."""
        ends = torch.stack(self.at_ends(x))
        low, high = ends.amin(0), ends.amax(0)
        low, high = low - value_error(low, 1.0), high + value_error(high, 1.0)
        near = x.magnitude <= _LARGEST
        low = torch.where(near & ~_meets(x, self.phase), low, -1.0)
        high = torch.where(near & ~_meets(x, self.phase + math.pi), high, 1.0)
        return nan_is_unbounded(Interval(low.clamp(-1.0, 1.0), high.clamp(-1.0, 1.0)))

    def derivative(self, order: int, x: Interval) -> Interval:
        """The range of another wave: a derivative moves the wave left by a quarter of its period."""
        shifted: _Wave = (Sin(), Cos())[(order + isinstance(self, Cos)) % 2]
        x = x.to(torch.float64)
        bounds, known = shifted.interval(x), x.lower <= x.upper
        if (order + isinstance(self, Cos)) % 4 >= 2:
            bounds = Interval(-bounds.upper, -bounds.lower)
        return Interval(torch.where(known, bounds.lower, -math.inf), torch.where(known, bounds.upper, math.inf))

    def secant(self, order: int, at: Tensor, x: Interval) -> Interval:
        return self.derivative(order, x)

    def pieces(self, x: Interval, sign: int) -> Pieces:
        """One or two convex pieces: around the first and the last minimum, or what lies beside a maximum.

        Sound because: where there is a minimum inside, the tangents before the first one (its own included) do not
        rise, so they stay below the minimum's value from there on; likewise after the last.  Without a minimum the
        interval is between two of them, its convex parts are at its ends, and there sigma rises, then falls, so a
        tangent at the left part is above sigma nowhere in the right part if not at u.  `margin` exceeds the rounding
        error of the minima's positions.  Chords only serve the second case.
        """
        start = self.phase if sign > 0 else self.phase + math.pi
        l, u = x.lower, x.upper  # noqa: E741
        margin = 1e-14 * (1.0 + x.magnitude)
        first = start + _PERIOD * torch.ceil((l - start) / _PERIOD)
        last = start + _PERIOD * torch.floor((u - start) / _PERIOD)
        inside = first <= last
        previous = first - _PERIOD
        quarter = 0.5 * math.pi
        left = torch.where(inside, torch.maximum(first - quarter + margin, l), l)
        left_end = torch.where(inside, first - margin, torch.minimum(previous + quarter - margin, u))
        right = torch.where(inside, last + margin, torch.maximum(first - quarter + margin, l))
        right_end = torch.where(inside, torch.minimum(last + quarter - margin, u), u)
        return Pieces((Piece(left, left_end, left, left_end), Piece(right, right_end, right, right_end)), ~inside)


def _meets(x: Interval, start: float) -> Tensor:
    """Where the interval, widened by the rounding error, contains start + 2 pi k for some k."""
    margin = 1e-14 * (1.0 + x.magnitude)
    return torch.ceil((x.lower - margin - start) / _PERIOD) <= torch.floor((x.upper + margin - start) / _PERIOD)


_LARGEST = 1e6


@dataclass(frozen=True, eq=False)
class Sin(_Wave):
    """sin(z)."""

    phase: ClassVar[float] = -0.5 * math.pi

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sin()

    def slope(self, z: Tensor) -> Tensor:
        return z.cos()


@dataclass(frozen=True, eq=False)
class Cos(_Wave):
    """cos(z)."""

    phase: ClassVar[float] = math.pi

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].cos()

    def slope(self, z: Tensor) -> Tensor:
        return z.sin().neg()
