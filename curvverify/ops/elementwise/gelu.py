"""GELU, exact and in its tanh form: concave, convex, concave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvverify.numerics.rounding import outward
from curvverify.ops.elementwise import logistic
from curvverify.ops.elementwise.accuracy import RELATIVE_ERROR
from curvverify.ops.elementwise.facts import Facts
from curvverify.ops.elementwise.levels import Branch, Level, everywhere
from curvverify.ops.elementwise.smooth import Smooth
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Gelu(Smooth):
    """z Phi(z), Phi the normal distribution function: Phi(z) = erfc(-z / sqrt 2) / 2, which does not cancel for z < 0.

    Slope: Phi(z) + z phi(z), phi(z) = exp(-z^2 / 2) / sqrt(2 pi).  sigma'' = (2 - z^2) phi(z).
    """

    @property
    def facts(self) -> Facts:
        return Facts(
            inflections=(-math.sqrt(2.0), math.sqrt(2.0)),
            convex_first=False,
            limits=(0.0, math.inf),
            minimum=(-0.7517915246935644574579049, -0.1699712074799036616938685),
            value_scale=1.0,
            slope_scale=1.0,
        )

    @property
    def branches(self) -> tuple[Branch, ...]:
        """sigma''' = (z^3 - 4 z) phi(z)."""
        a, b, c = math.sqrt(2.0), 0.7922869913932612777937432, 2.52433779896213857132119
        low, middle, side = -0.1079819330263761039011284, 0.7787696350557322866955203, 0.09874165861146963595444194
        return everywhere(
            Level(self.forward, (0.0, math.inf), scale=1.0),
            Level(
                self.slope,
                (0.0, 1.0),
                extremes=((-a, -0.1289041451851547863407444), (a, 1.128904145185154786340744)),
                scale=1.0,
            ),
            Level(
                lambda z: (2.0 - _near(z).square()) * _density(z),
                extremes=((-2.0, low), (0.0, 0.7978845608028653558798921), (2.0, low)),
                scale=1.0,
            ),
            Level(
                lambda z: (_near(z).square() - 4.0) * _near(z) * _density(z),
                extremes=((-c, -side), (-b, middle), (b, -middle), (c, side)),
                scale=1.0,
            ),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return 0.5 * x * torch.special.erfc(x * -math.sqrt(0.5))

    def slope(self, z: Tensor) -> Tensor:
        return torch.addcmul(0.5 * torch.special.erfc(z * -math.sqrt(0.5)), z, _density(z))

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        gate = 0.5 + 0.5 * (z * math.sqrt(0.5)).erf()  # 1 ulp of 1 wrong: harmless up to |z| = 10, and 0 from there
        return z.clamp(min=-10.0) * gate, torch.addcmul(gate, z, _density(z))


def _density(z: Tensor) -> Tensor:
    return (z * z * -0.5).exp() * (1.0 / math.sqrt(2.0 * math.pi))


def _near(z: Tensor) -> Tensor:
    """Beyond 40 the density times a cubic polynomial is below 1e-300, and must not be 0 inf."""
    return z.clamp(-40.0, 40.0)


@dataclass(frozen=True, eq=False)
class GeluTanh(Smooth):
    """z (1 + tanh(y / 2)) / 2 = z sigmoid(y) with y = 2 sqrt(2 / pi) (z + 0.044715 z^3), up to +-`deviation`.

    The bounds hold for every function within `deviation` of it: for one with a slightly different cubic coefficient.
    """

    deviation: float = 0.0

    CUBIC: ClassVar[float] = 0.044715

    @staticmethod
    def deviation_of(relative: float) -> float:
        """Upper bound on the change of the function when 0.044715 changes by a small relative amount.

        Sound because: y changes by at most relative 2 sqrt(2 / pi) 0.044715 |z|^3, and z sigmoid(y) by |z| times that
        times sigmoid' <= exp(-|y|) <= exp(-1.595 |z|); |z|^4 exp(-1.595 |z|) <= 0.73, and 0.73 * 0.0714 < 0.06.
        """
        return 0.06 * relative

    @property
    def facts(self) -> Facts:
        return Facts(
            inflections=(-1.418504008790828355548, 1.418504008790828355548),
            convex_first=False,
            limits=(0.0, math.inf),
            minimum=(-0.7524614220710162584879544, -0.1700407505712540506390674 - 1.01 * self.deviation),
            value_scale=1.0 + 1.01 * self.deviation / RELATIVE_ERROR,
            slope_scale=1.0,
        )

    @property
    def branches(self) -> tuple[Branch, ...]:
        """sigma'' = 2 g' + z g'', sigma''' = 3 g'' + z g''' with g = s(y), s the logistic function."""
        a, b, c, d = (
            1.418504008790828355548034,
            2.013480724624257928080151,
            0.7875761864188940101318753,
            2.553417914329442901669801,
        )
        low, middle, side = -0.1079135158903679192861824, 0.7766914503985404519905547, 0.09878746231394216136815364
        return everywhere(
            Level(self.forward, (0.0, math.inf), scale=1.0),
            Level(
                self.slope,
                (0.0, 1.0),
                extremes=((-a, -0.1289930686587717654559045), (a, 1.128993068658771765455904)),
                scale=1.0,
            ),
            Level(
                lambda z: torch.addcmul(2.0 * _gate(z, 1), z.clamp(-20.0, 20.0), _gate(z, 2)),
                extremes=((-b, low), (0.0, 0.7978845608028653558798921), (b, low)),
                scale=1.0,
            ),
            Level(
                lambda z: torch.addcmul(3.0 * _gate(z, 2), z.clamp(-20.0, 20.0), _gate(z, 3)),
                extremes=((-d, -side), (-c, middle), (c, -middle), (d, side)),
                scale=2.0,
            ),
        )

    def derivative(self, order: int, x: Interval) -> Interval:
        return self._widened(order, super().derivative(order, x))

    def secant(self, order: int, at: Tensor, x: Interval) -> Interval:
        return self._widened(order, super().secant(order, at, x)).intersect(self.derivative(order, x))

    def _widened(self, order: int, bounds: Interval) -> Interval:
        """The same bounds for every function within `deviation`.

        Sound because: sigma^(order), and with it every mean of it, moves by at most max |c d/dc sigma^(order)| times
        the relative change of the coefficient c = 0.044715.  The maxima are 0.0284, 0.0603, 0.1603 and within 2 % of
        that while c is within 1 % of its value; `deviation` is 0.06 times the relative change.
        """
        if self.deviation == 0.0:
            return bounds
        room = 1.01 * self.deviation * (0.5, 1.05, 2.8)[order - 1] if self.deviation <= 6e-4 else math.inf
        return outward(bounds.lower - room, bounds.upper + room)

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return x * _argument(x).sigmoid()

    def slope(self, z: Tensor) -> Tensor:
        return self.value_and_slope(z)[1]

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        near = z.clamp(-20.0, 20.0)  # beyond, sigmoid is 0 or 1 to 250 decimals; its slope times y' must not be 0 inf
        y = _argument(near)
        e = y.abs().neg().exp()
        gate = y.sigmoid()
        rise = _ROOT * (1.0 + 3.0 * _CUBIC * near * near) * e / (1.0 + e) ** 2
        return z * gate, torch.addcmul(gate, near, rise)


_ROOT = 2.0 * math.sqrt(2.0 / math.pi)
_CUBIC = GeluTanh.CUBIC


def _argument(z: Tensor) -> Tensor:
    return _ROOT * z * (1.0 + _CUBIC * z * z)


def _gate(z: Tensor, order: int) -> Tensor:
    """The derivatives of s(y(z)): s' y', s'' y'^2 + s' y'', s''' y'^3 + 3 s'' y' y'' + s' y'''; s is logistic."""
    near = z.clamp(-20.0, 20.0)  # beyond, they are below 1e-250
    y, rise = _argument(near), _ROOT * (1.0 + 3.0 * _CUBIC * near * near)
    bend, twist = (6.0 * _ROOT * _CUBIC) * near, 6.0 * _ROOT * _CUBIC
    if order == 1:
        return logistic.first(y) * rise
    if order == 2:
        return logistic.second(y) * rise.square() + logistic.first(y) * bend
    return logistic.third(y) * rise**3 + 3.0 * logistic.second(y) * rise * bend + logistic.first(y) * twist
