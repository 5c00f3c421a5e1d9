"""Gated functions z g(z): SiLU, Mish and hard-swish; concave, convex, concave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.ops.base import Envelope
from curvverify.ops.elementwise.facts import Facts
from curvverify.ops.elementwise.polygon import TwoSided, polygon_envelope
from curvverify.ops.elementwise.smooth import Smooth
from curvverify.ops.elementwise.tangents import smooth_envelope
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Silu(Smooth):
    """z s(z), s = sigmoid; slope s + z s (1 - s) with s (1 - s) = e / (1 + e)^2, e = exp(-|z|)."""

    @property
    def facts(self) -> Facts:
        return Facts(
            inflections=(-2.39935728052297478334, 2.39935728052297478334),
            convex_first=False,
            limits=(0.0, math.inf),
            minimum=(-1.278464542761073795109359, -0.2784645427610737951093587),
            value_scale=1.0,
            slope_scale=1.0,
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.silu(inputs[0])

    def slope(self, z: Tensor) -> Tensor:
        return self.value_and_slope(z)[1]

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        e = z.abs().neg().exp()
        gate = z.sigmoid()
        return z * gate, torch.addcmul(gate, z, e / (1.0 + e) ** 2)


@dataclass(frozen=True, eq=False)
class Mish(Smooth):
    """z w(z), w = tanh(softplus(z)) = (a^2 - 1) / (a^2 + 1) with a = 1 + exp(z); w' = 4 a exp(z) / (a^2 + 1)^2."""

    @property
    def facts(self) -> Facts:
        return Facts(
            inflections=(-2.256376396360793120006, 1.490571179485428459294),
            convex_first=False,
            limits=(0.0, math.inf),
            minimum=(-1.192431214515495212137588, -0.3088434130172504066287602),
            value_scale=1.0,
            slope_scale=1.0,
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.mish(inputs[0])

    def slope(self, z: Tensor) -> Tensor:
        return self.value_and_slope(z)[1]

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        near = z.clamp(max=40.0)  # beyond, w = 1 and z w' = 0 far below one ulp, and exp must not overflow
        e = near.exp()
        excess = e * (e + 2.0)  # a^2 - 1 without cancellation
        r = (excess + 2.0).reciprocal()
        gate = excess * r
        return z * gate, torch.addcmul(gate, near, 4.0 * ((1.0 + e) * r) * (e * r))


@dataclass(frozen=True, eq=False)
class HardSwish(Smooth):
    """z min(max(z + 3, 0), 6) / 6: 0, then a parabola from -3 to 3, then z; both kinks are concave.

    Upper side: the hull of the points at l, -3, 3 and u, because the function is convex or straight between them.
    """

    @property
    def facts(self) -> Facts:
        return Facts(
            inflections=(-3.0, 3.0),
            convex_first=False,
            limits=(0.0, math.inf),
            minimum=(-1.5, -0.375),
            value_scale=1.0,
            slope_scale=1.0,
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.hardswish(inputs[0])

    def slope(self, z: Tensor) -> Tensor:
        near = z.clamp(-3.0, 3.0)
        return near / 3.0 + 0.5 - 0.5 * (z - near).sign()

    def curved(self, x: Interval, saturation: float = 0.0) -> Tensor:
        return super().curved(x, saturation) & ~((x.upper <= -3.0) | (x.lower >= 3.0))

    def envelope(self, x: Interval, saturation: float = 0.0) -> Envelope:
        corners = [x.lower, *(x.lower.clamp(min=c).minimum(x.upper) for c in (-3.0, 3.0)), x.upper]
        values = [self.forward(c) for c in corners]
        upper = polygon_envelope(corners, values, values, self.interval(x), saturation)
        return TwoSided(smooth_envelope(self, x, saturation), upper)
