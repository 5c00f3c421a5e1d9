"""Functions described branch by branch: bounds on their derivatives and difference quotients follow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from curvverify.numerics.rounding import nan_is_unbounded
from curvverify.ops.base import Elementwise
from curvverify.ops.elementwise.levels import HUGE, Branch, continuous
from curvverify.ops.elementwise.secants import secants
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Branched(Elementwise):
    """A function that says what its derivatives are on each of its branches."""

    @property
    def branches(self) -> tuple[Branch, ...]:
        """From left to right, adjacent; () where nothing is known."""
        return ()

    def _defined(self, x: Interval) -> Tensor:
        """Where sigma is defined and bounded on every bounded part of the interval."""
        if not self.branches:
            return torch.zeros_like(x.lower, dtype=torch.bool)
        defined = (x.lower >= self.branches[0].left) & (x.upper <= self.branches[-1].right) & (x.lower <= x.upper)
        for branch in self.branches:
            defined = defined & branch.bounded(x)
        return defined

    def derivative(self, order: int, x: Interval) -> Interval:
        """Sound because: where all joints inside the interval leave sigma^(order - 1) continuous, it is the integral of
        sigma^(order), which is within the ranges over the branches; elsewhere nothing is claimed.
        """
        x = x.to(torch.float64)
        low, high = torch.full_like(x.lower, math.inf), torch.full_like(x.lower, -math.inf)
        branches = self.branches
        claimed = self._defined(x)
        for branch in branches:
            part, meets = branch.range(order, x), branch.meets(x)
            low = torch.where(meets, torch.minimum(low, part.lower), low)
            high = torch.where(meets, torch.maximum(high, part.upper), high)
        for left, right in pairwise(branches):
            if not continuous(left, right, order - 1):
                claimed &= ~((x.lower < left.right) & (x.upper > left.right))
        claimed &= (low < HUGE) & (high > -HUGE)
        low, high = torch.where(claimed, low, -math.inf), torch.where(claimed, high, math.inf)
        return nan_is_unbounded(Interval(low, high))

    def secant(self, order: int, at: Tensor, x: Interval) -> Interval:
        """See `secants`; within the derivative's bounds where those hold."""
        x, at = x.to(torch.float64), at.double()
        bounds = self.derivative(order, x)
        known = self._defined(x) & (x.lower <= at) & (at <= x.upper) & (x.lower < x.upper) & at.isfinite()
        where = known.flatten().nonzero()[:, 0]
        l, u, at = (t.expand_as(known).flatten()[where] for t in (x.lower, x.upper, at))  # noqa: E741
        found = nan_is_unbounded(secants(self.branches, order, at, Interval(l, u)))
        low = bounds.lower.flatten().index_put((where,), torch.maximum(bounds.lower.flatten()[where], found.lower))
        high = bounds.upper.flatten().index_put((where,), torch.minimum(bounds.upper.flatten()[where], found.upper))
        return Interval(low.reshape(known.shape), high.reshape(known.shape))
