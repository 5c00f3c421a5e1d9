"""What a smooth operator declares, and what the envelope asks of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from curvverify.types import Interval

LARGEST = 1e100
"""Intervals that reach farther from 0 get constant bounds: differences and products must not overflow."""


@dataclass(frozen=True)
class Facts:
    """What is true of one function sigma on its domain.

    Convexity: it alternates at the `inflections`, starting with convex where `convex_first`.  An inflection may be a
    concave kink.  With two inflections, the slopes of the two outer parts never agree (no line touches both).
    """

    limits: tuple[float, float]
    """Limits at -inf and +inf (NaN where the function is not defined there)."""
    inflections: tuple[float, ...] = ()
    """Inflection points, correctly rounded."""
    convex_first: bool = True
    minimum: tuple[float, float] | None = None
    """(point, value): decreasing before, increasing after; None: monotone on every interval of the domain."""
    range: tuple[float, float] = (-math.inf, math.inf)
    """Bounds on every value, exact or rounded outward."""
    value_scale: float = 0.0
    """Size to which the absolute error of a value is relative, see `accuracy`."""
    slope_scale: float = 0.0
    """The same for slopes in `value_and_slope`."""
    largest: float = LARGEST
    """Up to this |z|, at most LARGEST, neither value nor slope overflows."""


@dataclass(frozen=True)
class Piece:
    """Per entry, a part [left, right] of the interval where the function is convex; empty where left > right.

    Supporting tangents are looked for in [first, last], inside [left, right].
    """

    left: Tensor
    right: Tensor
    first: Tensor
    last: Tensor


@dataclass(frozen=True)
class Pieces:
    """The convex pieces of an interval, one or two, in order.

    `complete`, where given, tells the entries whose convex parts are all among the pieces; None: all of them.
    """

    pieces: tuple[Piece, ...]
    complete: Tensor | None = None


class SmoothFunction(Protocol):
    """The view that `tangents` and `envelope` have of an operator."""

    @property
    def facts(self) -> Facts: ...

    def slope(self, z: Tensor) -> Tensor: ...

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]: ...

    def at_ends(self, x: Interval) -> tuple[Tensor, Tensor]: ...

    def interval(self, x: Interval) -> Interval: ...

    def pieces(self, x: Interval, sign: int) -> Pieces: ...
