"""Exponential below 0 and linear above: ELU, CELU, SELU."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from curvverify.ops.base import Envelope
from curvverify.ops.elementwise.facts import Facts
from curvverify.ops.elementwise.levels import ZERO, Branch, Level, constant
from curvverify.ops.elementwise.polygon import TwoSided, polygon_envelope
from curvverify.ops.elementwise.smooth import Smooth
from curvverify.ops.elementwise.tangents import smooth_envelope
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class ExponentialLinear(Smooth):
    """rate * z for z >= 0 and amplitude * (exp(z / width) - 1) for z < 0.

    Both parts are convex.  The slope jumps at 0 from amplitude / width to rate: up, and the function is convex; or
    down, and 0 is a concave kink, where the upper side is the hull of the three points at l, 0 and u.
    """

    @property
    @abstractmethod
    def parameters(self) -> tuple[float, float, float]:
        """(rate, amplitude, width), finite, rate and width positive, amplitude not negative."""

    def __post_init__(self) -> None:
        rate, amplitude, width = self.parameters
        if not (0.0 < rate < math.inf and 0.0 <= amplitude < math.inf and 0.0 < width < math.inf):
            raise ValueError(f"{self.name} is supported where it does not decrease, not with {self}")

    @property
    def kink_is_concave(self) -> bool:
        rate, amplitude, width = self.parameters
        return amplitude > rate * width

    @property
    def facts(self) -> Facts:
        rate, amplitude, width = self.parameters
        return Facts(
            inflections=(0.0,) if self.kink_is_concave else (),
            limits=(-amplitude, math.inf),
            range=(-math.nextafter(amplitude, math.inf), math.inf),
            value_scale=amplitude,
            slope_scale=rate + amplitude / width,
        )

    @property
    def branches(self) -> tuple[Branch, ...]:
        rate, amplitude, width = self.parameters
        sizes = [amplitude / width**k for k in range(4)]

        def tail(order: int) -> Level:
            return Level(lambda z: sizes[order] * (z / width).exp(), (0.0, sizes[order]), scale=sizes[order])

        low = Level(lambda z: amplitude * (z / width).expm1(), (-amplitude, 0.0), scale=amplitude)
        high = Level(lambda z: rate * z, (0.0, math.inf))
        return (
            Branch((low, tail(1), tail(2), tail(3)), right=0.0),
            Branch((high, constant(rate), ZERO, ZERO), left=0.0),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        rate, amplitude, width = self.parameters
        (x,) = inputs
        return rate * x.relu() + amplitude * (x.clamp(max=0.0) / width).expm1()

    def slope(self, z: Tensor) -> Tensor:
        return self.value_and_slope(z)[1]

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        rate, amplitude, width = self.parameters
        e = (z.clamp(max=0.0) / width).exp()  # 1 for z >= 0
        slope = (amplitude / width) * e
        if rate != amplitude / width:
            slope = slope + (rate - amplitude / width) * (z >= 0.0).to(z.dtype)
        return rate * z.relu() + amplitude * (e - 1.0), slope

    def curved(self, x: Interval, saturation: float = 0.0) -> Tensor:
        return super().curved(x, saturation) & ~(x.lower >= 0)

    def envelope(self, x: Interval, saturation: float = 0.0) -> Envelope:
        smooth = smooth_envelope(self, x, saturation)
        if not self.kink_is_concave:
            return smooth
        corners = [x.lower, x.lower.clamp(min=0.0).minimum(x.upper), x.upper]
        values = [self.forward(c) for c in corners]
        return TwoSided(smooth, polygon_envelope(corners, values, values, self.interval(x), saturation))


@dataclass(frozen=True, eq=False)
class Elu(ExponentialLinear):
    """z for z >= 0, alpha (exp(z) - 1) for z < 0."""

    alpha: float = 1.0

    @property
    def parameters(self) -> tuple[float, float, float]:
        return 1.0, self.alpha, 1.0


@dataclass(frozen=True, eq=False)
class Celu(ExponentialLinear):
    """z for z >= 0, alpha (exp(z / alpha) - 1) for z < 0."""

    alpha: float = 1.0

    @property
    def parameters(self) -> tuple[float, float, float]:
        return 1.0, self.alpha, self.alpha


@dataclass(frozen=True, eq=False)
class Selu(ExponentialLinear):
    """scale * z for z >= 0, scale * alpha (exp(z) - 1) for z < 0; the defaults are torch's, ONNX files carry theirs."""

    alpha: float = 1.6732632423543772848170429916717
    scale: float = 1.0507009873554804934193349852946

    @property
    def parameters(self) -> tuple[float, float, float]:
        return self.scale, self.scale * self.alpha, 1.0
