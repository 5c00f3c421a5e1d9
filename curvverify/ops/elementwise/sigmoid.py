"""Functions that are convex before 0 and concave after it: sigmoid, tanh, erf, atan."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.ops.elementwise.facts import Facts
from curvverify.ops.elementwise.smooth import Smooth


@dataclass(frozen=True, eq=False)
class Sigmoid(Smooth):
    """1 / (1 + exp(-z)); its slope is e / (1 + e)^2 with e = exp(-|z|)."""

    @property
    def facts(self) -> Facts:
        return Facts(inflections=(0.0,), limits=(0.0, 1.0), range=(0.0, 1.0))

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sigmoid()

    def slope(self, z: Tensor) -> Tensor:
        e = z.abs().neg().exp()
        return e / (1.0 + e) ** 2


@dataclass(frozen=True, eq=False)
class Tanh(Smooth):
    """tanh(z); its slope is 1 / cosh(z)^2 = 4 e / (1 + e)^2 with e = exp(-2 |z|)."""

    @property
    def facts(self) -> Facts:
        return Facts(inflections=(0.0,), limits=(-1.0, 1.0), range=(-1.0, 1.0), value_scale=1.0)

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].tanh()

    def slope(self, z: Tensor) -> Tensor:
        e = (-2.0 * z.abs()).exp()
        return 4.0 * e / (1.0 + e) ** 2

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        e = (-2.0 * z.abs()).exp()  # one exponential instead of tanh and cosh; 1 - e is exact only in absolute terms
        r = (1.0 + e).reciprocal()
        return torch.copysign((1.0 - e) * r, z), 4.0 * e * (r * r)


@dataclass(frozen=True, eq=False)
class Erf(Smooth):
    """erf(z) = 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to z."""

    @property
    def facts(self) -> Facts:
        return Facts(inflections=(0.0,), limits=(-1.0, 1.0), range=(-1.0, 1.0), slope_scale=1.0)

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].erf()

    def slope(self, z: Tensor) -> Tensor:
        return (2.0 / math.sqrt(math.pi)) * (-z * z).exp()


@dataclass(frozen=True, eq=False)
class Atan(Smooth):
    """atan(z); its slope is 1 / (1 + z^2)."""

    @property
    def facts(self) -> Facts:
        half_pi = math.nextafter(math.pi / 2.0, math.inf)
        return Facts(inflections=(0.0,), limits=(-half_pi, half_pi), range=(-half_pi, half_pi))

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].atan()

    def slope(self, z: Tensor) -> Tensor:
        return (1.0 + z * z).reciprocal()
