"""Clipping: what is left of a box where several rows must all be small at once.

A row that is bounded from below by a sum of functions of one coordinate each stays above a limit except in a part of
the box, which a smaller box encloses: coordinate by coordinate, with the others at their own minima.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.linear import RowBounds
from curvverify.bounding.taylor import Form, Monomials
from curvverify.numerics.rounding import TINY, gamma
from curvverify.types import Interval

SWEEPS = 3
"""Sweeps over the coordinates towards a quadratic function's minimum."""

ROUNDING = 1e-11
"""Relative to the numbers a limit is compared with: covers the roundings of its coordinate's share."""

LARGEST = 1e100
"""Entries beyond this are left out of decompositions, which might fail."""


@dataclass(frozen=True, eq=False)
class Minorants:
    """row >= lower + sum_i (a_i xi_i + q_i xi_i^2 - its minimum over |xi_i| <= 1), for R rows over B boxes."""

    monomials: Monomials
    lower: Tensor
    """(B, R): rigorous."""
    linear: Tensor
    square: Tensor
    """a and q, (B, n, R)."""
    least: Tensor
    """(B, n, R): the minimum of every coordinate's part, up to two roundings."""
    size: Tensor
    """(B, R): what roundings are relative to."""

    @classmethod
    def of_forms(cls, rows: Form, lower: Tensor) -> Minorants:
        """Of forms (B, T, R) with bounds (B, R) on them."""
        n = rows.monomials.count
        square = rows.quadratic[:, :n] if rows.quadratic.shape[1] else torch.zeros_like(rows.linear)
        return cls(rows.monomials, lower, rows.linear, square, rows.extremes()[0], rows.size + rows.error)

    @classmethod
    def convexified(cls, rows: Form, slack: Tensor) -> Minorants:
        """Of forms (B, T, R) with their quadratic part, less the slack (B, R): its convex part by a tangent plane.

        Sound because: with any matrix W, Q = W W^T + E, and xi^T W W^T xi is above its tangent plane at any point;
        xi^T E xi is at least the sum of E_ii xi_i^2 - sum of |E_ij| over i != j, E being what is left in floating
        point.  W W^T is the part of Q with positive eigenvalues, the point where the form is about smallest.
        """
        monomials, n = rows.monomials, rows.monomials.count
        i, j = monomials.pairs
        full = torch.zeros(len(rows.terms), rows.terms.shape[2], n, n, dtype=torch.float64)
        full[:, :, i, j] = full[:, :, j, i] = rows.quadratic.mT
        full[:, :, i[n:], j[n:]] *= 0.5
        full[:, :, j[n:], i[n:]] *= 0.5
        full = full.nan_to_num(0.0, 0.0, 0.0)
        tame = full.abs().amax((2, 3), keepdim=True) < LARGEST
        values, vectors = torch.linalg.eigh(torch.where(tame, full, 0.0))
        factor = vectors * values.clamp(min=0.0).sqrt().unsqueeze(2)
        convex = factor @ factor.mT
        rest = full - convex
        a = rows.linear.mT
        at = _descended(a, full)
        push = (convex @ at.unsqueeze(3)).squeeze(3)
        linear, square = (a + 2.0 * push).mT, rest.diagonal(dim1=2, dim2=3).mT
        outside = rest.abs().sum((2, 3)) - square.abs().sum(1)
        form = Form(monomials, torch.cat([rows.terms[:, :1], linear, square], 1), rows.error)
        least = form.extremes()[0]
        size = rows.size + rows.error + 4.0 * n * convex.abs().sum((2, 3))
        lower = rows.terms[:, 0] - (at * push).sum(2) + least.sum(1) - outside - rows.error
        lower = lower - gamma(8 * n * n + 32) * size - TINY - slack
        return cls(monomials, lower.nan_to_num(-torch.inf, neginf=-torch.inf), linear, square, least, size)

    @classmethod
    def of_bounds(cls, rows: RowBounds, lower: Tensor, monomials: Monomials) -> Minorants:
        """Of linear bounds, whose forms are those of the input's entries."""
        slope = rows.slope.flatten(2)[:, :, monomials.free]
        linear = slope.mT * monomials.radius.unsqueeze(2)
        size = linear.abs().sum(1) + (slope * monomials.centre.unsqueeze(1)).abs().sum(2) + lower.abs()
        return cls(monomials, lower, linear, torch.zeros_like(linear), -linear.abs(), size)

    def __getitem__(self, boxes: Tensor) -> Minorants:
        """The same for some of the boxes."""
        parts = (self.lower, self.linear, self.square, self.least, self.size)
        return Minorants(self.monomials[boxes], *(t[boxes] for t in parts))

    @property
    def minimiser(self) -> Tensor:
        """xi (B, n, R) of the minimum."""
        inner = -self.linear / (2.0 * self.square)
        corner = -torch.where(self.linear >= 0, 1.0, -1.0).to(inner.dtype)
        return torch.where((self.square > 0) & (inner.abs() < 1.0), inner, corner)

    def within(self, box: Tensor, row: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """For pairs of boxes and rows (M,), bounds (M, n) on xi wherever the row is at most the limit (M,).

        Sound because: where the row is at most the limit, a xi + q xi^2 <= tau = limit - (lower - least).  Then
        a xi <= tau - min(q, 0), since q xi^2 >= min(q, 0), and, for q > 0, xi is between the roots of
        q xi^2 + a xi - tau.  The roots are taken where q is not small against a, so that their discriminant's
        roundings are below those that tau allows for.
        """
        a, q, least = (t[box, :, row] for t in (self.linear, self.square, self.least))
        lower, size = self.lower[box, row].unsqueeze(1), self.size[box, row].unsqueeze(1)
        limit = limit.unsqueeze(1)
        tau = limit - lower + least
        tau = tau + ROUNDING * (size + limit.abs() + lower.abs())
        end = (tau - q.clamp(max=0.0)) / a
        high = torch.where(a > 0, end, torch.inf)
        low = torch.where(a < 0, end, -torch.inf)
        root = (a.square() + 4.0 * q * tau).clamp(min=0.0).sqrt()
        curved = q > 1e-3 * a.abs()
        high = torch.where(curved, torch.fmin(high, (root - a) / (2.0 * q)), high)
        low = torch.where(curved, torch.fmax(low, (-root - a) / (2.0 * q)), low)
        return (low - 1e-9).nan_to_num(-torch.inf, neginf=-torch.inf), (high + 1e-9).nan_to_num(torch.inf, torch.inf)


def _descended(linear: Tensor, matrix: Tensor) -> Tensor:
    """About where linear . xi + xi^T matrix xi is smallest over |xi_i| <= 1, (..., n), by coordinates in turn."""
    n = linear.shape[-1]
    at = -linear.sign()
    for _ in range(SWEEPS):
        for i in range(n):
            diagonal = matrix[..., i, i]
            pull = linear[..., i] + 2.0 * ((matrix[..., i, :] * at).sum(-1) - diagonal * at[..., i])
            inner = (-pull / (2.0 * diagonal)).clamp(-1.0, 1.0)
            at[..., i] = torch.where(diagonal > 0, inner, -pull.sign())
    return at.nan_to_num(0.0, 0.0, 0.0)


def around(monomials: Monomials, boxes: Interval, low: Tensor, high: Tensor) -> Interval:
    """The parts low <= xi <= high (B, n) of the boxes (B, m), rounded outward."""
    free = monomials.free
    slack = 2.0**-50 * (monomials.centre.abs() + monomials.radius)
    lower, upper = boxes.lower.clone(), boxes.upper.clone()
    below = monomials.centre + monomials.radius * low.clamp(-1.0, 1.0) - slack
    above = monomials.centre + monomials.radius * high.clamp(-1.0, 1.0) + slack
    lower[:, free] = torch.minimum(torch.maximum(lower[:, free], below), upper[:, free])
    upper[:, free] = torch.maximum(torch.minimum(upper[:, free], above), lower[:, free])
    return Interval(lower, upper)
