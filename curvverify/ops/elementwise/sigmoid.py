"""Functions that are convex before 0 and concave after it: sigmoid, tanh, erf, atan."""

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
class Sigmoid(Smooth):
    """1 / (1 + exp(-z)); its slope is e / (1 + e)^2 with e = exp(-|z|)."""

    @property
    def facts(self) -> Facts:
        return Facts(inflections=(0.0,), limits=(0.0, 1.0), range=(0.0, 1.0))

    @property
    def branches(self) -> tuple[Branch, ...]:
        a, b = 1.316957896924816708625046, 2.292431669561177687800787  # s = (3 -+ sqrt 3) / 6 and (6 -+ sqrt 24) / 12
        return everywhere(
            Level(self.forward, (0.0, 1.0)),
            Level(self.slope, extremes=((0.0, 0.25),)),
            Level(logistic.second, extremes=((-a, 0.09622504486493762741819146), (a, -0.09622504486493762741819146))),
            Level(logistic.third, extremes=((-b, 1.0 / 24.0), (0.0, -0.125), (b, 1.0 / 24.0)), scale=0.125),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sigmoid()

    def slope(self, z: Tensor) -> Tensor:
        return logistic.first(z)


@dataclass(frozen=True, eq=False)
class Tanh(Smooth):
    """tanh(z); its slope is 1 / cosh(z)^2 = 4 e / (1 + e)^2 with e = exp(-2 |z|)."""

    @property
    def facts(self) -> Facts:
        return Facts(inflections=(0.0,), limits=(-1.0, 1.0), range=(-1.0, 1.0), value_scale=1.0)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """tanh(z) = 2 s(2 z) - 1 with the logistic function s."""
        a, b = 0.6584789484624083543125232, 1.146215834780588843900394
        return everywhere(
            Level(self.forward, (-1.0, 1.0)),
            Level(self.slope, extremes=((0.0, 1.0),)),
            Level(
                lambda z: 8.0 * logistic.second(2.0 * z),
                extremes=((-a, 0.7698003589195010193455317), (a, -0.7698003589195010193455317)),
            ),
            Level(
                lambda z: 16.0 * logistic.third(2.0 * z),
                extremes=((-b, 2.0 / 3.0), (0.0, -2.0), (b, 2.0 / 3.0)),
                scale=2.0,
            ),
        )

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

    @property
    def branches(self) -> tuple[Branch, ...]:
        """sigma'' = -2 z sigma', sigma''' = (4 z^2 - 2) sigma'; beyond |z| = 30 all are below 1e-300."""
        a, b = math.sqrt(0.5), 1.224744871391589049098642
        return everywhere(
            Level(self.forward, (-1.0, 1.0)),
            Level(self.slope, extremes=((0.0, 1.128379167095512573896159),), scale=1.0),
            Level(
                lambda z: -2.0 * z.clamp(-30.0, 30.0) * self.slope(z),
                extremes=((-a, 0.9678828980765733991913208), (a, -0.9678828980765733991913208)),
                scale=1.0,
            ),
            Level(
                lambda z: (4.0 * z.clamp(-30.0, 30.0).square() - 2.0) * self.slope(z),
                extremes=(
                    (-b, 1.007101697048694330557305),
                    (0.0, -2.256758334191025147792318),
                    (b, 1.007101697048694330557305),
                ),
                scale=2.0,
            ),
        )

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

    @property
    def branches(self) -> tuple[Branch, ...]:
        """With r = sigma' = 1 / (1 + z^2): sigma'' = -2 z r^2, sigma''' = 6 r^2 - 8 r^3."""
        a = 0.5773502691896257645091488
        return everywhere(
            Level(self.forward, (-0.5 * math.pi, 0.5 * math.pi)),
            Level(self.slope, extremes=((0.0, 1.0),)),
            Level(
                lambda z: -2.0 * (z * self.slope(z)) * self.slope(z),
                extremes=((-a, 0.6495190528383289850727924), (a, -0.6495190528383289850727924)),
            ),
            Level(
                lambda z: self.slope(z).square() * (6.0 - 8.0 * self.slope(z)),
                extremes=((-1.0, 0.5), (0.0, -2.0), (1.0, 0.5)),
                scale=2.0,
            ),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].atan()

    def slope(self, z: Tensor) -> Tensor:
        return (1.0 + z * z).reciprocal()
