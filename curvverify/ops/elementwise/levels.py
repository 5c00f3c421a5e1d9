"""What a function declares about itself and its derivatives, and the ranges that follow on one branch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.ops.elementwise.accuracy import value_error
from curvverify.types import Interval

LITERAL = 2.0**-51
"""Relative error of a declared number, 2 ulp: a literal is correctly rounded, and up to three operations may follow."""

HUGE = 1e308
"""What a value that overflowed is certainly beyond."""


@dataclass(frozen=True)
class Level:
    """f = sigma^(k) on one branch: strictly monotone, or constant, between neighbouring extremes."""

    value: Callable[[Tensor], Tensor]
    """f in float64 inside the branch, as accurate as `accuracy` assumes with `scale`."""
    limits: tuple[float, float] = (0.0, 0.0)
    """One-sided limits of f at the branch's ends; a zero is exact."""
    extremes: tuple[tuple[float, float], ...] = ()
    """(point, value) of all local extremes inside, that is of all roots of sigma^(k + 1) where it changes sign."""
    scale: float = 0.0
    """Size to which the absolute error of a value is relative."""
    exact: bool = False
    """Values, limits and extremes carry no rounding error at all."""


@dataclass(frozen=True)
class Branch:
    """sigma on ]left, right[, where it is three times differentiable; levels[k] is sigma^(k)."""

    levels: tuple[Level, Level, Level, Level]
    left: float = -math.inf
    right: float = math.inf

    def at(self, order: int, z: Tensor) -> Tensor:
        """sigma^(order), its limits at and beyond the ends of the branch."""
        level = self.levels[order]
        value = torch.where(z <= self.left, level.limits[0], level.value(z))
        return torch.where(z >= self.right, level.limits[1], value)

    def error(self, order: int, value: Tensor) -> Tensor:
        """Upper bound on |value - exact value| for a value of `at`."""
        level = self.levels[order]
        return torch.zeros_like(value) if level.exact else value_error(value, level.scale)

    def bounded(self, x: Interval) -> Tensor:
        """Where sigma has no pole at an end of the branch that the interval contains."""
        poles = [
            (x.lower <= end) & (x.upper >= end)
            for end, limit in zip((self.left, self.right), self.levels[0].limits, strict=True)
            if math.isfinite(end) and not math.isfinite(limit)
        ]
        return ~torch.stack(poles).any(0) if poles else torch.ones_like(x.lower, dtype=torch.bool)

    def meets(self, x: Interval) -> Tensor:
        """Where interval and branch share more than a point, or the interval is a point of the closed branch."""
        point = (x.lower == x.upper) & (self.left <= x.lower) & (x.upper <= self.right)
        return (x.lower < self.right) & (x.upper > self.left) & (x.lower < x.upper) | point

    def range(self, order: int, x: Interval) -> Interval:
        """Bounds on sigma^(order) over the part of the interval in the branch, which it must meet.

        Sound because: a function that is monotone between its extremes is largest at an end of the interval or at an
        extreme inside; an extreme that is not inside only loosens, so it counts up to the error of its position.
        """
        level = self.levels[order]
        ends = torch.stack([self.at(order, x.lower), self.at(order, x.upper)])
        error = self.error(order, ends.clamp(-HUGE, HUGE))
        low, high = (ends.clamp(max=HUGE) - error).amin(0), (ends.clamp(min=-HUGE) + error).amax(0)
        numbers = [*level.limits, *(value for _, value in level.extremes)]
        for point, value in level.extremes:
            reach = LITERAL * abs(point)
            inside = (x.lower <= point + reach) & (x.upper >= point - reach)
            below, above = declared(value, level.exact)
            low = torch.where(inside & (low > below), below, low)
            high = torch.where(inside & (high < above), above, high)
        least, most = declared(min(numbers), level.exact)[0], declared(max(numbers), level.exact)[1]
        return Interval(low.clamp(min=least), high.clamp(max=most))  # keeps NaN


def declared(value: float, exact: bool) -> tuple[float, float]:
    """Bounds on the number that a declared one stands for."""
    error = 0.0 if exact or math.isinf(value) else LITERAL * abs(value)
    return value - error, value + error


def constant(value: float, exact: bool = True) -> Level:
    return Level(lambda z: torch.full_like(z, value), (value, value), exact=exact)


ZERO = constant(0.0)


def straight(slope: float, value: Callable[[Tensor], Tensor], limits: tuple[float, float], scale: float) -> tuple:
    """The levels of an affine part."""
    return Level(value, limits, scale=scale), constant(slope), ZERO, ZERO


def everywhere(value: Level, slope: Level, second: Level, third: Level) -> tuple[Branch, ...]:
    """One branch, the whole line."""
    return (Branch((value, slope, second, third)),)


def continuous(left: Branch, right: Branch, order: int) -> bool:
    """Whether sigma, ..., sigma^(order) are continuous where two branches meet."""
    return all(
        math.isfinite(a.limits[1]) and a.limits[1] == b.limits[0]
        for a, b in zip(left.levels[: order + 1], right.levels[: order + 1], strict=True)
    )
