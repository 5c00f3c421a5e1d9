"""Radii in closed form: first order, second order, third order, and the distance of a certain counterexample.

A margin h has h(x0) >= margin > 0, ||grad h(x0)|| <= slope, and on the region -bend I <= Hessian <= top I.  All
functions take float64 tensors of one shape, are elementwise and round so that the statement holds: 0 is the radius of
what is not known to be positive, NaN included.

Sources: Singla and Feizi, ICML 2020; Entesari, Sharifi and Fazlyab, ICML 2024; the cubic form after HiTaB,
arXiv 2605.10621.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHRINK, GROW = 1.0 - 2e-15, 1.0 + 2e-15
"""Nine ulp: more than the roundings of each formula lose."""

ITERATIONS = 60


def lipschitz_radius(margin: Tensor, lipschitz: Tensor) -> Tensor:
    """No y with ||y - x0|| below it has h(y) <= 0: margin / lipschitz, rounded down."""
    return _radius(margin, margin / lipschitz * SHRINK)


def taylor_radius(margin: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """No y in the region with ||y - x0|| below it has h(y) <= 0: (-g + sqrt(g^2 + 2 K margin)) / K, rounded down.

    Sound because: h(y) >= margin - g r - K r^2 / 2, and the formula is evaluated as 2 margin / (g + sqrt(...)), a
    quotient of sums of nonnegative terms, where every rounding is relative.
    """
    root = (slope * slope + 2.0 * bend * margin).sqrt()
    return _radius(margin, 2.0 * margin / (slope + root) * SHRINK)


def attack_radius(margin_upper: Tensor, slope_lower: Tensor, top: Tensor) -> Tensor:
    """Some y within this distance of x0 has h(y) <= 0; inf where g^2 < 2 M margin.  Rounded up.

    The minimum over a step along -grad h of margin - g r + M r^2 / 2 reaches 0 at (g - sqrt(g^2 - 2 M margin)) / M.
    Sound because: evaluated as 2 margin / (g + sqrt(g^2 - 2 M margin)) with the difference rounded down.  The step
    leaves no region of which M is the bound: with the global M it is a statement about all of R^n.
    """
    square = slope_lower * slope_lower * SHRINK - 2.0 * top * margin_upper * GROW
    possible = (square >= 0.0) & (slope_lower > 0.0)
    root = (square.clamp(min=0.0) * SHRINK).sqrt()
    found = 2.0 * margin_upper.clamp(min=0.0) / (slope_lower + root) * GROW
    return torch.where(possible & ~found.isnan(), found, torch.inf)


def cubic_radius(margin: Tensor, slope: Tensor, bend_here: Tensor, third: Tensor) -> Tensor:
    """No y with ||y - x0|| below it has h(y) <= 0, by h >= margin - g r - K0 r^2 / 2 - T r^3 / 6.

    -K0 I is below the Hessian at x0 itself, T its Lipschitz constant.  Sound because: the polynomial falls with r, and
    the radius returned is one at which it was found positive, with all terms rounded up.
    """
    high = taylor_radius(margin, slope, bend_here)  # without the cubic term
    low = torch.zeros_like(high)
    high = high.clamp(max=1e300)
    for _ in range(ITERATIONS):
        middle = 0.5 * (low + high)
        spent = (slope + (0.5 * bend_here + third / 6.0 * middle) * middle) * middle * GROW
        inside = spent < margin
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return _radius(margin, low)


def _radius(margin: Tensor, radius: Tensor) -> Tensor:
    return torch.where((margin > 0.0) & (radius > 0.0), radius, 0.0)
