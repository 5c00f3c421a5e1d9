"""GELU, exact and in its tanh form: concave, convex, concave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvverify.ops.elementwise.accuracy import RELATIVE_ERROR
from curvverify.ops.elementwise.facts import Facts
from curvverify.ops.elementwise.smooth import Smooth


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
