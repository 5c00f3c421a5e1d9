"""Gated functions z g(z): SiLU, Mish and hard-swish; concave, convex, concave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.ops.base import Envelope
from curvverify.ops.elementwise import logistic
from curvverify.ops.elementwise.facts import Facts
from curvverify.ops.elementwise.levels import ZERO, Branch, Level, constant, everywhere
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
            inflections=(-2.39935728051546766783274, 2.39935728051546766783274),
            convex_first=False,
            limits=(0.0, math.inf),
            minimum=(-1.278464542761073795109359, -0.2784645427610737951093587),
            value_scale=1.0,
            slope_scale=1.0,
        )

    @property
    def branches(self) -> tuple[Branch, ...]:
        """sigma'' = 2 s' + z s'', sigma''' = 3 s'' + z s'''."""
        a, b, c, d = (
            2.39935728051546766783274,
            3.435840993535110688951641,
            1.031958241780749123401266,
            4.429235100557227979566417,
        )
        low, middle, side = -0.03691437319989318563829178, 0.3081815157964791204172652, 0.01386229765547033912966686
        return everywhere(
            Level(self.forward, (0.0, math.inf), scale=1.0),
            Level(
                self.slope,
                (0.0, 1.0),
                extremes=((-a, -0.09983932012886691695818492), (a, 1.099839320128866916958185)),
                scale=1.0,
            ),
            Level(
                lambda z: torch.addcmul(2.0 * logistic.first(z), z, logistic.second(z)),
                extremes=((-b, low), (0.0, 0.5), (b, low)),
                scale=0.5,
            ),
            Level(
                lambda z: torch.addcmul(3.0 * logistic.second(z), z, logistic.third(z)),
                extremes=((-d, -side), (-c, middle), (c, -middle), (d, side)),
                scale=0.5,
            ),
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

    @property
    def branches(self) -> tuple[Branch, ...]:
        """sigma'' = 2 w' + z w'', sigma''' = 3 w'' + z w'''."""
        return everywhere(
            Level(self.forward, (0.0, math.inf), scale=1.0),
            Level(
                self.slope,
                (0.0, 1.0),
                extremes=(
                    (-2.256376396360793120005749, -0.1125261223894625564073279),
                    (1.490571179485428459294419, 1.088498161251727861228294),
                ),
                scale=1.0,
            ),
            Level(
                lambda z: torch.addcmul(2.0 * _gate(z, 1), z.clamp(max=40.0), _gate(z, 2)),
                extremes=(
                    (-3.267337846520404576124851, -0.04173207070661102541728641),
                    (-0.0879344313149142113266859, 0.644204637236972429517659),
                    (2.114842563020877108592514, -0.05903335695393629297877502),
                ),
                scale=1.0,
            ),
            Level(
                lambda z: torch.addcmul(3.0 * _gate(z, 2), z.clamp(max=40.0), _gate(z, 3)),
                extremes=(
                    (-4.255411333668564181879946, -0.01559463005399535131732804),
                    (-0.8819460768319225974544539, 0.4538611812135794779114528),
                    (0.7155058867000298021744879, -0.5884120448690196788113245),
                    (2.694215867768823710165253, 0.04089338354759358176186345),
                ),
                scale=1.0,
            ),
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


def _gate(z: Tensor, order: int) -> Tensor:
    """The derivatives of Mish's w = 1 - 2 / q with q = a^2 + 1 = e^2 + 2 e + 2, e = exp(z).

    With p_k = q^(k) / q: w' = 2 p_1 / q, w'' = 2 (p_2 - 2 p_1^2) / q, w''' = 2 (p_3 - 6 p_1 p_2 + 6 p_1^3) / q.
    """
    e = z.clamp(max=40.0).exp()
    r = (e * (e + 2.0) + 2.0).reciprocal()
    first, second, third = (2.0 * e * (h * e + 1.0) * r for h in (1.0, 2.0, 4.0))
    if order == 1:
        return 2.0 * r * first
    if order == 2:
        return 2.0 * r * (second - 2.0 * first.square())
    return 2.0 * r * (third - 6.0 * first * (second - first.square()))


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

    @property
    def branches(self) -> tuple[Branch, ...]:
        parabola = (
            Level(self.forward, (0.0, 3.0), extremes=((-1.5, -0.375),), scale=1.0),
            Level(lambda z: (2.0 * z + 3.0) / 6.0, (-0.5, 1.5), scale=1.0),
            constant(1.0 / 3.0, exact=False),
            ZERO,
        )
        line = Level(lambda z: z, (3.0, math.inf), exact=True)
        return (
            Branch((ZERO, ZERO, ZERO, ZERO), right=-3.0),
            Branch(parabola, -3.0, 3.0),
            Branch((line, constant(1.0), ZERO, ZERO), left=3.0),
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
