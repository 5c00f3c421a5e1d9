"""The ReLU family: two straight parts that meet at 0."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.numerics.rounding import TINY, nan_is_unbounded, round_down
from curvverify.ops.base import Elementwise, Envelope, Lines
from curvverify.ops.elementwise.accuracy import CONDITION_SLACK, value_error
from curvverify.ops.elementwise.facts import LARGEST
from curvverify.ops.elementwise.select import Pair, mask
from curvverify.types import Interval


def ramp(distance: Tensor, width: Tensor, smoothing: float) -> Tensor:
    """How far the slope has turned at a kink: clip(1/2 + distance / (2 smoothing width), 0, 1)."""
    return torch.addcmul(torch.full_like(distance, 0.5), distance, 0.5 / (smoothing * width)).clamp(0.0, 1.0)


@dataclass(frozen=True, eq=False)
class HingeEnvelope(Envelope):
    """Lines `start + turn * ramp` through the kink on the convex side, the chord on the other side (turn = 0).

    Sound because: a line through the kink whose slope is between the two parts' slopes is on the convex side of both;
    `turn` is rounded so that start + turn does not pass the larger slope.  The chord's intercept is moved to the
    proved side of both ends of the interval, between which sigma lies on the other side of it.
    """

    start: Pair
    turn: Pair
    intercept: Pair
    width: Tensor
    adaptive: Tensor
    """1 where u > -l, else 0: the ramp without smoothing, CROWN's rule."""

    def lines(self, point: Tensor, below: Tensor, smoothing: float) -> Lines:
        side = mask(below, self.width.dtype)
        turned = ramp(point.to(self.width.dtype), self.width, smoothing) if smoothing > 0.0 else self.adaptive
        slope = torch.addcmul(self.start.choose(side), self.turn.choose(side), turned)
        return Lines(slope, self.intercept.choose(side))

    def to(self, dtype: torch.dtype) -> HingeEnvelope:
        return HingeEnvelope(**{f.name: getattr(self, f.name).to(dtype) for f in fields(self)})


@dataclass(frozen=True, eq=False)
class Hinge(Elementwise):
    """p z for z < 0 and q z for z >= 0; p and q are numbers or tensors that broadcast to the node's shape."""

    @property
    @abstractmethod
    def slopes(self) -> tuple[float | Tensor, float | Tensor]:
        """(p, q)."""

    def at(self, z: Tensor) -> Tensor:
        """The value in the dtype of z, 0 * inf being 0."""
        p, q = (torch.as_tensor(s, dtype=z.dtype, device=z.device) for s in self.slopes)
        slope = torch.where(z >= 0, q, p)
        return torch.where(slope == 0, 0.0, slope * z)

    def interval(self, x: Interval) -> Interval:
        """Bounds on sigma: its extremes over an interval are at the ends and at the kink."""
        ends = torch.stack([self.at(x.lower), self.at(x.upper), self.at(x.lower.clamp(min=0.0).minimum(x.upper))])
        low, high = ends.amin(0), ends.amax(0)
        low = torch.where(low == 0, 0.0, low - value_error(low, 0.0))
        high = torch.where(high == 0, 0.0, high + value_error(high, 0.0))
        return nan_is_unbounded(Interval(low, high))

    def derivative(self, order: int, x: Interval) -> Interval:
        """Exact.  Sound because: where 0 is not strictly inside, sigma is affine on the interval."""
        x = x.to(torch.float64)
        p, q = (torch.as_tensor(s, dtype=torch.float64, device=x.lower.device) for s in self.slopes)
        inside = ~((x.lower >= 0) | (x.upper <= 0)) & (p != q)
        left, right = ~(x.lower >= 0) | (x.upper <= 0), ~(x.upper <= 0) | (x.lower >= 0)  # both at the point 0
        nothing = ~(x.lower <= x.upper)
        if order == 1:
            low, high = torch.where(left, p, math.inf), torch.where(left, p, -math.inf)
            low, high = torch.where(right, torch.minimum(low, q), low), torch.where(right, torch.maximum(high, q), high)
        else:
            low = high = torch.zeros_like(x.lower)
            nothing = nothing | inside
        return Interval(torch.where(nothing, -math.inf, low), torch.where(nothing, math.inf, high))

    def secant(self, order: int, at: Tensor, x: Interval) -> Interval:
        """Sound because: the quotients of sigma are monotone in y; at the end beyond 0 they are the mean of the slopes
        with weight end / (end - at) on the far one.  Those of the slope are 0 up to 0, then at most (q - p) / |at|.
        """
        x, at = x.to(torch.float64), at.double()
        bounds = self.derivative(order, x)
        p, q = (torch.as_tensor(s, dtype=torch.float64, device=at.device).expand_as(at) for s in self.slopes)
        right = at > 0
        end = torch.where(right, x.lower, x.upper)
        crossing = ((at > 0) & (x.lower < 0) | (at < 0) & (x.upper > 0)) & (x.lower <= at) & (at <= x.upper)
        own, other = torch.where(right, q, p), torch.where(right, p, q)
        if order == 1:
            weight = torch.where(end.isinf(), 1.0, end / (end - at))
            far = own + (other - own) * weight
            error = CONDITION_SLACK * (p.abs() + q.abs()) + TINY
        else:
            own = torch.zeros_like(own)
            far = (q - p) / at.abs()
            error = CONDITION_SLACK * far.abs() + TINY
        low, high = torch.minimum(own, far - error), torch.maximum(own, far + error)
        low, high = torch.fmax(low, bounds.lower), torch.fmin(high, bounds.upper)
        return Interval(torch.where(crossing, low, bounds.lower), torch.where(crossing, high, bounds.upper))

    @property
    def straight(self) -> bool:
        return True

    def bow(self, x: Interval) -> Interval:
        """Exact up to roundings.  Sound because: the kink, where |q - p| turns, is (q - p) l u / (u - l) off the chord;
        on the other side of the chord there is nothing.
        """
        p, q = (torch.as_tensor(s, dtype=torch.float64, device=x.lower.device) for s in self.slopes)
        inside = (x.lower < 0) & (x.upper > 0)
        kink = (1.0 + 2.0**-48) * (q - p) * x.upper * (x.lower / (x.upper - x.lower))
        kink = torch.where(inside, kink, 0.0)
        return nan_is_unbounded(Interval(kink.clamp(max=0.0), kink.clamp(min=0.0)))

    def cut(self, x: Interval) -> Tensor:
        return torch.where((x.lower < 0) & (x.upper > 0), 0.0, super().cut(x))

    def curved(self, x: Interval, saturation: float = 0.0) -> Tensor:
        return super().curved(x, saturation) & ~((x.lower >= 0) | (x.upper <= 0))

    def envelope(self, x: Interval, saturation: float = 0.0) -> Envelope:
        bounds = self.interval(x)
        usable = (x.magnitude <= LARGEST) & (x.lower <= x.upper)
        constant = ~usable | (bounds.upper - bounds.lower <= saturation)
        l, u = torch.where(usable, x.lower, 0.0), torch.where(usable, x.upper, 0.0)  # noqa: E741
        p, q = (torch.as_tensor(s, dtype=l.dtype, device=l.device).expand_as(l) for s in self.slopes)
        straight = (l >= 0) | (u <= 0)
        own = torch.where(u <= 0, p, q)
        at_l, at_u = self.at(l), self.at(u)
        chord = torch.where(straight, own, (at_u - at_l) / (u - l))
        at_ends = at_l - chord * l, at_u - chord * u
        slack = CONDITION_SLACK * (at_l.abs() + at_u.abs() + chord.abs() * torch.maximum(l.abs(), u.abs())) + TINY
        convex = q >= p
        sides = []
        for below, bound in ((True, bounds.lower), (False, bounds.upper)):
            kinked = ~straight & (convex if below else ~convex)
            start = torch.where(kinked, p, chord)
            turn = torch.where(kinked, _toward_zero(q - p), 0.0)
            cut = torch.minimum(*at_ends) - slack if below else torch.maximum(*at_ends) + slack
            cut = torch.where(straight | kinked, 0.0, cut)
            sides.append([torch.where(constant, c, t) for c, t in ((0.0, start), (0.0, turn), (bound, cut))])
        pairs = [Pair.of(a.unsqueeze(1), b.unsqueeze(1)) for a, b in zip(*sides, strict=True)]
        width = (u - l).clamp(min=1e-30).unsqueeze(1)
        return HingeEnvelope(*pairs, width=width, adaptive=(u > -l).to(l.dtype).unsqueeze(1))


def _toward_zero(x: Tensor) -> Tensor:
    """A float not farther from 0 than the exact result that was rounded to x; x itself where it is 1 or 2."""
    return torch.where((x == 1) | (x == 2) | (x == 0), x, torch.copysign(round_down(x.abs()), x))


@dataclass(frozen=True, eq=False)
class Kinks(Hinge):
    """left z for z < 0 and right z for z >= 0, with tensors of slopes."""

    left: Tensor
    right: Tensor

    @property
    def slopes(self) -> tuple[Tensor, Tensor]:
        return self.left, self.right

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.at(inputs[0])


@dataclass(frozen=True, eq=False)
class Relu(Hinge):
    """max(z, 0)."""

    @property
    def slopes(self) -> tuple[float, float]:
        return 0.0, 1.0

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].relu()


@dataclass(frozen=True, eq=False)
class LeakyRelu(Hinge):
    """z for z >= 0, negative_slope * z for z < 0."""

    negative_slope: float = 0.01

    @property
    def slopes(self) -> tuple[float, float]:
        return self.negative_slope, 1.0

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return F.leaky_relu(x, self.negative_slope)


@dataclass(frozen=True, eq=False)
class PRelu(Hinge):
    """z for z >= 0, negative_slope * z for z < 0, with a slope tensor that broadcasts to the node's shape."""

    negative_slope: Tensor

    @property
    def slopes(self) -> tuple[Tensor, float]:
        return self.negative_slope, 1.0

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return torch.where(x >= 0, x, self.negative_slope.to(x.dtype) * x)

    def to(self, dtype: torch.dtype) -> Self:
        return replace(self, negative_slope=self.negative_slope.to(dtype))


@dataclass(frozen=True, eq=False)
class Abs(Hinge):
    """|z|."""

    @property
    def slopes(self) -> tuple[float, float]:
        return -1.0, 1.0

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].abs()
