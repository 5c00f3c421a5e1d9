"""Smooth functions: an operator declares facts about its function, interval and envelope follow from them."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from curvverify.numerics.rounding import nan_is_unbounded
from curvverify.ops.base import Envelope
from curvverify.ops.elementwise.accuracy import value_error
from curvverify.ops.elementwise.branches import Branched
from curvverify.ops.elementwise.facts import Facts, Piece, Pieces
from curvverify.ops.elementwise.tangents import smooth_envelope
from curvverify.types import Interval

INSIDE = 1.0
"""A point in the domain of every function."""


@dataclass(frozen=True, eq=False)
class Smooth(Branched):
    """A smooth function, or one whose kinks are concave where they meet its convex part."""

    @property
    @abstractmethod
    def facts(self) -> Facts: ...

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """sigma'(z), relatively accurate (up to `slope_scale` near a root of sigma')."""

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """sigma(z) and sigma'(z), as fast as possible within the declared scales."""
        return self.forward(z), self.slope(z)

    def at_ends(self, x: Interval) -> tuple[Tensor, Tensor]:
        """sigma(lower) and sigma(upper), limits at infinity; NaN outside of the domain."""
        at = []
        for end in (x.lower, x.upper):
            value = self.forward(torch.where(end.isinf(), INSIDE, end))
            for infinity, limit in zip((-math.inf, math.inf), self.facts.limits, strict=True):
                value = torch.where(end == infinity, limit, value)
            at.append(value)
        return at[0], at[1]

    def interval(self, x: Interval) -> Interval:
        """Bounds on sigma over the interval.

        Sound because: a function that is monotone, or decreases and then increases, has its extremes at the ends and
        at its minimum.
        """
        facts = self.facts
        at_lower, at_upper = self.at_ends(x)
        low, high = torch.minimum(at_lower, at_upper), torch.maximum(at_lower, at_upper)
        low, high = low - value_error(low, facts.value_scale), high + value_error(high, facts.value_scale)
        if facts.minimum is not None:
            point, value = facts.minimum
            reach = 1e-9 * (1.0 + abs(point))  # the minimum's value is a lower bound in any case
            inside = (x.lower <= point + reach) & (x.upper >= point - reach)
            low = torch.where(inside, math.nextafter(value, -math.inf), low)
        return nan_is_unbounded(Interval(low.clamp(*facts.range), high.clamp(*facts.range)))

    def pieces(self, x: Interval, sign: int) -> Pieces:
        """The parts of the interval where sign * sigma is convex, an ulp inside the declared inflections.

        An ulp, so that no point of a piece lies beyond the true inflection; what is left out is covered by the slack.
        """
        borders = (-math.inf, *self.facts.inflections, math.inf)
        found = []
        for number, (start, end) in enumerate(pairwise(borders)):
            convex = (number % 2 == 0) == self.facts.convex_first
            if convex == (sign > 0):
                left = x.lower.clamp(min=_inward(start, 1)) if math.isfinite(start) else x.lower
                right = x.upper.clamp(max=_inward(end, -1)) if math.isfinite(end) else x.upper
                found.append(Piece(left, right, left, right))
        return Pieces(tuple(found))

    def envelope(self, x: Interval, saturation: float = 0.0) -> Envelope:
        return smooth_envelope(self, x, saturation)


def _inward(border: float, direction: int) -> float:
    return border + direction * (2.0**-52 * abs(border) or 1e-300)
