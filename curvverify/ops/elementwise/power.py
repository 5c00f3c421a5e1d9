"""Powers and the logarithm."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from curvverify.ops.elementwise.facts import LARGEST, Facts, Piece, Pieces
from curvverify.ops.elementwise.levels import ZERO, Branch, Level, constant, everywhere
from curvverify.ops.elementwise.smooth import Smooth
from curvverify.types import Interval

_TRIM = 1e-6
"""Tangents are taken at 1e-6 of the interval's far end or beyond: at 0 the slope may be infinite."""


@dataclass(frozen=True, eq=False)
class _Branches(Smooth):
    """Convex or concave on z > 0, and, where it is defined there, on z < 0; 0 may be a pole or an end point."""

    @property
    @abstractmethod
    def convex(self) -> tuple[bool, bool]:
        """On z < 0 and on z > 0."""

    def pieces(self, x: Interval, sign: int) -> Pieces:
        """All of the interval or nothing; not where the tangent nearest to 0 overflows."""
        negative, positive = (c if sign > 0 else not c for c in self.convex)
        l, u = x.lower, x.upper  # noqa: E741
        right_branch = l >= 0
        first = torch.where(right_branch, torch.maximum(l, _TRIM * u), l)
        last = torch.where(right_branch, u, torch.minimum(u, _TRIM * l))
        nearest = torch.where(right_branch, first, last)
        value, slope = self.value_and_slope(nearest)
        finite = (value - slope * nearest).isfinite()
        convex = right_branch & positive | ~right_branch & negative
        left = torch.where(convex & finite, l, math.inf)
        return Pieces((Piece(left, u, torch.where(convex & finite, first, math.inf), last),), finite | ~convex)


def monomial(factor: float, exponent: float, times: int = 0, side: int = 1) -> Level:
    """factor z^(exponent - times) on z > 0 or, for an integer exponent, on z < 0 (side -1) or everywhere (side 0).

    Where the exponent's difference is rounded it is divided by z instead: z^q changes by |log z| as much as q does.
    """
    q = exponent - times
    if factor == 0.0:
        return ZERO
    if q == 0.0:
        return constant(factor, exact=factor.is_integer())

    def value(z: Tensor) -> Tensor:
        if Fraction(exponent) - times == Fraction(q):
            return factor * z.pow(q)
        power = z.pow(exponent)
        for _ in range(times):
            power = power / z
        return factor * power

    near, far = (0.0, math.inf) if q > 0.0 else (math.inf, 0.0)
    sign = -1.0 if q % 2.0 == 1.0 else 1.0
    below, above = (factor * sign * near, factor * sign * far), (factor * near, factor * far)
    if side == 0:
        return Level(value, (below[1], above[1]), extremes=((0.0, 0.0),) if sign > 0.0 else ())
    return Level(value, above if side > 0 else (below[1], below[0]))


@dataclass(frozen=True, eq=False)
class Log(_Branches):
    """log(z) on z > 0."""

    @property
    def convex(self) -> tuple[bool, bool]:
        return False, False

    @property
    def facts(self) -> Facts:
        return Facts(limits=(math.nan, math.inf), value_scale=1.0)

    @property
    def branches(self) -> tuple[Branch, ...]:
        log = Level(self.forward, (-math.inf, math.inf), scale=1.0)
        return (Branch((log, monomial(1.0, -1.0), monomial(-1.0, -2.0), monomial(2.0, -3.0)), left=0.0),)

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].log()

    def slope(self, z: Tensor) -> Tensor:
        return z.reciprocal()


@dataclass(frozen=True, eq=False)
class Sqrt(_Branches):
    """sqrt(z) on z >= 0."""

    @property
    def convex(self) -> tuple[bool, bool]:
        return False, False

    @property
    def facts(self) -> Facts:
        return Facts(limits=(math.nan, math.inf), range=(0.0, math.inf))

    @property
    def branches(self) -> tuple[Branch, ...]:
        root = Level(self.forward, (0.0, math.inf))
        return (Branch((root, monomial(0.5, -0.5), monomial(-0.25, -1.5), monomial(0.375, -2.5)), left=0.0),)

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sqrt()

    def slope(self, z: Tensor) -> Tensor:
        return 0.5 * z.rsqrt()


@dataclass(frozen=True, eq=False)
class Power(_Branches):
    """z^exponent for a real exponent: everywhere for 0, 1, 2, ..., except 0 for -1, -2, ..., else on z > 0 (z >= 0)."""

    exponent: float

    def __post_init__(self) -> None:
        if not abs(self.exponent) <= 100.0:
            raise ValueError(f"powers are supported up to |exponent| = 100, not {self.exponent}")

    @property
    def _integer(self) -> bool:
        return float(self.exponent).is_integer()

    @property
    def _odd(self) -> bool:
        return self._integer and self.exponent % 2 == 1

    @property
    def _polynomial(self) -> bool:
        return self._integer and self.exponent >= 0

    @property
    def convex(self) -> tuple[bool, bool]:
        return not self._odd, not 0.0 < self.exponent < 1.0

    @property
    def facts(self) -> Facts:
        p = self.exponent
        far = 1.0 if p == 0 else math.inf if p > 0 else 0.0
        even = self._polynomial and not self._odd and p > 0
        return Facts(
            inflections=(0.0,) if self._odd and p > 1 else (),
            convex_first=not (self._odd and p > 1),
            limits=((-far if self._odd else far) if self._integer else math.nan, far),
            minimum=(0.0, 0.0) if even else None,
            range=(-math.inf if self._odd else 0.0, math.inf),
            largest=min(LARGEST, 1e300 ** (1.0 / (abs(p) + 2.0))),
        )

    @property
    def branches(self) -> tuple[Branch, ...]:
        """sigma^(k) = p (p - 1) ... (p - k + 1) z^(p - k)."""
        p = float(self.exponent)
        factors = [math.prod(p - j for j in range(k)) for k in range(4)]

        def levels(side: int) -> tuple[Level, Level, Level, Level]:
            first, second, third = (monomial(factors[k], p, k, side) for k in (1, 2, 3))
            return monomial(1.0, p, 0, side), first, second, third

        if self._polynomial:
            return everywhere(*levels(0))
        positive = Branch(levels(1), left=0.0)
        return (Branch(levels(-1), right=0.0), positive) if self._integer else (positive,)

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].pow(self.exponent)

    def slope(self, z: Tensor) -> Tensor:
        p = float(self.exponent)
        return monomial(p, p, 1).value(z)

    def at_ends(self, x: Interval) -> tuple[Tensor, Tensor]:
        at_lower, at_upper = super().at_ends(Interval(x.lower + 0.0, x.upper + 0.0))  # no -0, whose powers are negative
        if not self._integer or self._polynomial:
            return at_lower, at_upper
        pole = (x.lower <= 0) & (x.upper >= 0)
        return torch.where(pole, math.nan, at_lower), torch.where(pole, math.nan, at_upper)

    def pieces(self, x: Interval, sign: int) -> Pieces:
        return Smooth.pieces(self, x, sign) if self._polynomial else super().pieces(x, sign)


@dataclass(frozen=True, eq=False)
class Reciprocal(Power):
    """1 / z on intervals that do not contain 0."""

    exponent: float = field(default=-1.0, init=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reciprocal()

    def slope(self, z: Tensor) -> Tensor:
        return z.square().reciprocal().neg()

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r = z.reciprocal()
        return r, -r * r
