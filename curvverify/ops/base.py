"""What an operator is: a bundle of mathematical facts that the passes ask for.

The layer graph knows four kinds of nodes, and everything the front end reads is made of them:

* `Input`: the network's input.
* `Linear`: y = sum_i L_i x_i + c, with one or several inputs.
* `Elementwise`: y = sigma(x), one scalar function per entry.
* `Product`: y = u * v, entry by entry.

Softmax, layer normalisation, attention, max-pooling and division are decomposed into these by the front end.
Tensors carry one leading batch dimension B in front of the node's own shape S, which is the shape the ONNX file
gives it (a leading 1 included): values are (B, *S).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY, gamma, nan_is_unbounded, round_up
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Op(ABC):
    """An operator with its attributes and constants; immutable."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """The value, (B, *S_in) -> (B, *S_out); differentiable by autograd where the function is."""

    def to(self, dtype: torch.dtype) -> Op:
        """The same operator with its constants in another dtype."""
        return self


@dataclass(frozen=True, eq=False)
class Input(Op):
    """The network's input; the only node without inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        raise TypeError("the input node has no value of its own")


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """y = sum_i L_i x_i + c."""

    nonnegative: ClassVar[bool] = False
    """True where all entries of every L_i are nonnegative and c = 0, so that |L| = L."""

    @abstractmethod
    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        """sum_i L_i x_i, plus c where `bias`."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        """(L_1^T y, ..., L_k^T y): (B, *S_out) -> one (B, *S_i) per input."""

    def absolute(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        """sum_i |L_i| x_i, plus |c| where `bias`; meant for x >= 0."""
        if not self.nonnegative:
            raise NotImplementedError(f"{self.name} must implement absolute()")
        return self.forward(*inputs, bias=bias)

    def interval(self, *inputs: Interval) -> Interval:
        """Bounds (B, *S_out) on sum_i L_i x_i + c over the boxes, rounded outward; infinite where an input is.

        Sound because: with centre m and radius r the range is L m + c +- |L| r, r is rounded up to cover what rounding
        did to m, and each of the two sums errs by at most gamma_n times the sum of its absolute terms.
        """
        centres = [x.centre for x in inputs]
        radii = [
            round_up(round_up(0.5 * (x.upper - x.lower)) + 2.0**-52 * c.abs())
            for x, c in zip(inputs, centres, strict=True)
        ]
        centre = self.forward(*centres)
        terms = self.absolute(*(c.abs() + r for c, r in zip(centres, radii, strict=True)))
        radius = self.absolute(*radii, bias=False) + (2.0 * gamma(self.terms + 8)) * terms + TINY
        return nan_is_unbounded(Interval(centre - radius, centre + radius))

    def magnitude(self, *inputs: Interval) -> Tensor:
        """Upper bound (B, *S_out) on sum_i |L_i| |x_i| + |c|, the absolute terms that the value is a sum of."""
        terms = self.absolute(*(x.magnitude for x in inputs))
        return (terms * (1.0 + 2.0 * gamma(self.terms + 8))).nan_to_num(nan=torch.inf, posinf=torch.inf)

    @property
    def offset(self) -> Tensor | None:
        """c, broadcastable to S_out; None where it is zero."""
        return None

    @property
    @abstractmethod
    def terms(self) -> int:
        """Largest number of products summed for one entry, in `forward` (c included) or in `adjoint`."""


@dataclass(frozen=True)
class Lines:
    """slope * z + intercept for every entry: on the proved side of the function over the whole interval."""

    slope: Tensor
    intercept: Tensor


class Envelope(ABC):
    """Supporting lines of one elementwise function over one interval per entry.

    Built once per interval, asked many times.  All tensors have the interval's shape (B, *S); points and signs
    come as (B, R, *S), R bound rows per box.
    """

    @abstractmethod
    def lines(self, point: Tensor, below: Tensor, smoothing: float) -> Lines:
        """Where `below`, a line below sigma on the interval; elsewhere a line above it.

        The line supports the convex (concave) envelope at `point`, clamped into the interval.  `smoothing` in [0, 1]
        spreads the choice of slope at a kink: 0 decides by the sign, larger values by the position of the point
        relative to the interval's width (functions without kinks ignore it).

        Sound in float64, where the intercept carries a slack for every rounding error; a float32 copy only searches.
        """

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Envelope:
        """The same lines in another dtype."""


@dataclass(frozen=True, eq=False)
class Elementwise(Op):
    """y = sigma(x), entry by entry."""

    @abstractmethod
    def interval(self, x: Interval) -> Interval:
        """Bounds on sigma over the interval, rounded outward; +-inf where sigma is not defined or unbounded."""

    @abstractmethod
    def envelope(self, x: Interval, saturation: float = 0.0) -> Envelope:
        """Supporting lines over the interval, from float64 bounds.

        Entries on which sigma varies by at most `saturation` get slope 0 and sigma's interval bound: a product with
        their zero column can be skipped.
        """

    def derivative(self, order: int, x: Interval) -> Interval:
        """Bounds (B, *S) on sigma', sigma'' or sigma''' (order 1, 2, 3) over the interval, in float64, rounded outward.

        They bound the difference quotients of sigma^(order - 1) between any two points of the interval.  At a kink of
        sigma^(order - 1) they contain both one-sided derivatives.  They are infinite on both sides where
        sigma^(order - 1) jumps inside the interval, and where sigma is not defined or unbounded on it.  At an end of
        the interval only the side of the interval counts: ReLU has 0 for order 2 on [0, 1], and [1, 1] for order 1.
        """
        everything = torch.full_like(x.lower, torch.inf, dtype=torch.float64)
        return Interval(-everything, everything)

    def secant(self, order: int, at: Tensor, x: Interval) -> Interval:
        """Bounds (B, *S) on (f(y) - f(at)) / (y - at), f = sigma^(order - 1), for all y != at in the interval.

        Order 1 or 2; `at` (B, *S) inside the interval.  Where f jumps elsewhere than at `at`, y takes the
        limits from both sides.
        """
        return self.derivative(order, x)

    def cut(self, x: Interval) -> Tensor:
        """Where to cut the interval (B, *S) in two so that the lines on both parts gain: the middle, or a kink."""
        return x.centre

    @property
    def straight(self) -> bool:
        """Whether sigma is made of straight parts: it has no curvature but at kinks."""
        return False

    def bow(self, x: Interval) -> Interval:
        """Bounds (B, *S) on sigma(z) - chord(z), between sigma's values at both ends; lower <= 0 <= upper.

        Sound because: with k the chord's slope, w the width and [p, q] bounds on sigma', sigma - chord vanishes at
        the ends and changes at rates in [p - k, q - k], so it stays below w (k - p) (q - k) / (q - p), which is at
        most w (q - p) / 4; and with bounds [g, h] on sigma'' it is within [-h, -g] (z - l) (u - z) / 2.
        """
        l, u = self.interval(Interval(x.lower, x.lower)), self.interval(Interval(x.upper, x.upper))  # noqa: E741
        slope, second, w = self.derivative(1, x), self.derivative(2, x), x.upper - x.lower
        turn, steepest, least = slope.upper - slope.lower, (u.upper - l.lower) / w, (u.lower - l.upper) / w
        above = (steepest - slope.lower).clamp(min=0.0) + 2.0**-50 * (steepest.abs() + slope.lower.abs())
        below = (slope.upper - least).clamp(min=0.0) + 2.0**-50 * (least.abs() + slope.upper.abs())
        gap = torch.fmin(w * above * below / turn, 0.25 * w * turn)
        eighth = 0.125 * w * w
        grown = 1.0 + 2.0**-48
        low = torch.fmin(gap, eighth * second.upper.clamp(min=0.0))
        high = torch.fmin(gap, eighth * -second.lower.clamp(max=0.0))
        return nan_is_unbounded(Interval(-(grown * low + TINY), grown * high + TINY))

    def curved(self, x: Interval, saturation: float = 0.0) -> Tensor:
        """Entries (B, *S) whose interval matters: those where sigma is neither affine nor constant to `saturation`."""
        return ~(self.interval(x).width <= saturation)
