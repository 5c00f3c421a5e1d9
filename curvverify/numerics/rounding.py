"""Outward rounding: what floating-point evaluation may have lost, bounded from above.

Everything that decides is evaluated in float64.  Two devices are used: one-ulp steps outward for single
operations, and the a-priori bound gamma_n = n u / (1 - n u) for sums of n products in any order, with or
without fused multiply-add (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvverify.types import Interval

UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
TINY = 1e-300
"""Absolute slack that covers underflow in float64, where relative bounds do not hold."""


def gamma(n: int, dtype: torch.dtype = torch.float64) -> float:
    """Upper bound on the relative error of a dot product of length n in the dtype."""
    nu = n * UNIT_ROUNDOFF[dtype]
    if nu >= 0.01:
        raise ValueError(f"a sum of {n} terms is too long for an error bound in {dtype}")
    return 1.0001 * nu / (1.0 - nu)


def round_down(x: Tensor) -> Tensor:
    """The next float below: a lower bound of the exact result of the correctly rounded operation that gave x."""
    return torch.nextafter(x, torch.full_like(x, -torch.inf))


def round_up(x: Tensor) -> Tensor:
    """The next float above."""
    return torch.nextafter(x, torch.full_like(x, torch.inf))


def float32_below(x: Tensor) -> Tensor:
    """Lower bounds in float32 of float64 numbers, one ulp below at most."""
    near = x.float()
    return torch.where(near > x, round_down(near), near)


def radius_upper(x: Interval) -> Tensor:
    """Upper bound on the distance from `x.centre`, itself rounded, to any value of the interval."""
    return round_up(torch.maximum(x.upper - x.centre, x.centre - x.lower))


def outward(lower: Tensor, upper: Tensor) -> Interval:
    """One ulp outward on both sides."""
    return Interval(round_down(lower), round_up(upper))


def nan_is_unbounded(bounds: Interval) -> Interval:
    """NaN proves nothing: it becomes -inf below and +inf above."""
    return Interval(
        torch.where(bounds.lower.isnan(), -torch.inf, bounds.lower),
        torch.where(bounds.upper.isnan(), torch.inf, bounds.upper),
    )
