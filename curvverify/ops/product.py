"""The product of two variables, with McCormick planes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY, outward
from curvverify.ops.base import Op
from curvverify.types import Interval


@dataclass(frozen=True)
class Planes:
    """slope_u * u + slope_v * v + intercept for every entry."""

    slope_u: Tensor
    slope_v: Tensor
    intercept: Tensor


@dataclass(frozen=True, eq=False)
class Product(Op):
    """y = u * v, entry by entry."""

    def forward(self, *inputs: Tensor) -> Tensor:
        u, v = inputs
        return u * v

    def interval(self, u: Interval, v: Interval) -> Interval:
        """Bounds on u v over the box: the extremes are at the corners."""
        corners = torch.stack([u.lower * v.lower, u.lower * v.upper, u.upper * v.lower, u.upper * v.upper])
        return outward(corners.amin(0), corners.amax(0))

    def planes(self, u: Interval, v: Interval, at_u: Tensor, at_v: Tensor, below: Tensor) -> Planes:
        """Where `below`, the larger at (at_u, at_v) of the two planes of the convex envelope of u v on the box.

        Elsewhere the smaller of the two planes of the concave envelope.  u, v: (B, *S); points and signs (B, R, *S).

        Sound because: (u - ul)(v - vl) >= 0 and (uu - u)(vu - v) >= 0 give u v >= vl u + ul v - ul vl and
        u v >= vu u + uu v - uu vu; (u - ul)(vu - v) >= 0 and (uu - u)(v - vl) >= 0 give the planes above.  The
        intercept is one rounded product: it moves by u |p q| <= 2^-52 |p q| to the proved side.

        Source: McCormick, Mathematical Programming 10 (1976).
        """
        ul, uu, vl, vu = (t.unsqueeze(1) for t in (u.lower, u.upper, v.lower, v.upper))
        first_u, second_u = torch.where(below, vl, vu), torch.where(below, vu, vl)
        first_v, second_v = ul, uu
        first = first_u * at_u + first_v * at_v - first_u * first_v
        second = second_u * at_u + second_v * at_v - second_u * second_v
        take_first = torch.where(below, first >= second, first <= second)
        slope_u = torch.where(take_first, first_u, second_u)
        slope_v = torch.where(take_first, first_v, second_v)
        intercept = -slope_u * slope_v
        slack = 2.0 * torch.finfo(intercept.dtype).eps * intercept.abs() + TINY
        return Planes(slope_u, slope_v, torch.where(below, intercept - slack, intercept + slack))
