"""Clipping to a range."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from curvverify.ops.base import Envelope
from curvverify.ops.elementwise.branches import Branched
from curvverify.ops.elementwise.levels import ZERO, Branch, Level, constant
from curvverify.ops.elementwise.polygon import polygon_envelope
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Clip(Branched):
    """min(max(z, lower), upper); the bounds may be infinite.  ReLU6 and hard tanh are of this form."""

    lower: float = -math.inf
    upper: float = math.inf

    def __post_init__(self) -> None:
        if not self.lower <= self.upper:
            raise ValueError(f"clip needs lower <= upper, got {self.lower} and {self.upper}")

    @property
    def branches(self) -> tuple[Branch, ...]:
        line = Level(lambda z: z, (self.lower, self.upper), exact=True)
        parts = [
            Branch((constant(self.lower), ZERO, ZERO, ZERO), right=self.lower),
            Branch((line, constant(1.0), ZERO, ZERO), self.lower, self.upper),
            Branch((constant(self.upper), ZERO, ZERO, ZERO), left=self.upper),
        ]
        return tuple(part for part in parts if part.left < part.right)

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(self.lower, self.upper)

    def interval(self, x: Interval) -> Interval:
        """Bounds on sigma, exact: it is monotone and needs no arithmetic."""
        return Interval(self.forward(x.lower), self.forward(x.upper))

    def curved(self, x: Interval, saturation: float = 0.0) -> Tensor:
        return super().curved(x, saturation) & ((x.lower < self.lower) | (x.upper > self.upper))

    def envelope(self, x: Interval, saturation: float = 0.0) -> Envelope:
        """Sound because: sigma is straight between the ends of the interval and the corners inside it."""
        corners = [x.lower, *(x.lower.clamp(min=c).minimum(x.upper) for c in (self.lower, self.upper)), x.upper]
        values = [self.forward(c) for c in corners]
        return polygon_envelope(corners, values, values, self.interval(x), saturation)
