"""Convex functions of exponentials: exp and softplus."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.ops.elementwise import logistic
from curvverify.ops.elementwise.facts import Facts
from curvverify.ops.elementwise.levels import Branch, Level, everywhere
from curvverify.ops.elementwise.smooth import Smooth


@dataclass(frozen=True, eq=False)
class Exp(Smooth):
    """exp(z)."""

    @property
    def facts(self) -> Facts:
        return Facts(limits=(0.0, math.inf), range=(0.0, math.inf), largest=700.0)

    @property
    def branches(self) -> tuple[Branch, ...]:
        level = Level(self.forward, (0.0, math.inf))
        return everywhere(level, level, level, level)

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].exp()

    def slope(self, z: Tensor) -> Tensor:
        return z.exp()

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        e = z.exp()
        return e, e


@dataclass(frozen=True, eq=False)
class Softplus(Smooth):
    """log(1 + exp(beta z)) / beta with beta > 0; torch's linear threshold is not part of the function.

    The product beta z is rounded: that costs |beta z| exp(-|beta z|) / beta ulp at most, an absolute error.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta < math.inf:
            raise ValueError(f"softplus needs 0 < beta < inf, got {self.beta}")

    @property
    def facts(self) -> Facts:
        return Facts(limits=(0.0, math.inf), range=(0.0, math.inf), value_scale=1.0 / self.beta, slope_scale=1.0)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """sigma^(k) = beta^(k - 1) s^(k - 1)(beta z) with the logistic function s."""
        b, a, most = self.beta, 1.316957896924816708625046, 0.09622504486493762741819146
        return everywhere(
            Level(self.forward, (0.0, math.inf), scale=1.0 / b),
            Level(self.slope, (0.0, 1.0), scale=1.0),
            Level(lambda z: b * logistic.first(b * z), extremes=((0.0, 0.25 * b),), scale=b),
            Level(
                lambda z: b * b * logistic.second(b * z),
                extremes=((-a / b, b * b * most), (a / b, -b * b * most)),
                scale=b * b,
            ),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        z = self.beta * inputs[0]
        return torch.logaddexp(z, torch.zeros_like(z)) / self.beta

    def slope(self, z: Tensor) -> Tensor:
        return (self.beta * z).sigmoid()

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = self.beta * z
        return (z.relu() + z.abs().neg().exp().log1p()) / self.beta, z.sigmoid()
