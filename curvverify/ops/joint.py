"""Operators of many variables that are bounded around their tangent: products of matrices, and softmax.

A tangent is one affine form for all bound rows, so that rows pass through it by matrix products, whereas supporting
planes of single products take a tensor of all products for every row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from curvverify.numerics.norms import matrix_norm_upper
from curvverify.numerics.rounding import TINY, gamma, nan_is_unbounded, radius_upper, round_up
from curvverify.ops.base import Op
from curvverify.types import Interval

ROUND = 2.0**-52


@dataclass(frozen=True, eq=False)
class Form:
    """The entries x of a node over B boxes: x = centre + G xi + eps with |xi| <= 1 and |eps| <= error.

    interval, centre, error: (B, *S); columns: (B, *S, N), with one xi for all nodes of a relaxation.
    """

    interval: Interval
    centre: Tensor
    error: Tensor
    columns: Tensor

    @property
    def radius(self) -> Tensor:
        """Upper bound (B, *S) on |x - centre|, by the interval and by the columns."""
        by_columns = self.columns.abs().sum(-1) * (1.0 + gamma(self.columns.shape[-1] + 2)) + self.error
        low, high = self.interval.lower, self.interval.upper
        by_interval = round_up(torch.maximum(high - self.centre, self.centre - low))
        return torch.minimum(round_up(by_columns), by_interval.clamp(min=0.0))


@dataclass(frozen=True, eq=False)
class Tangent(ABC):
    """|f(x) - (J x + middle)| <= radius on the box; `size` bounds the absolute terms |J| |x| + |middle| + radius.

    All of them (B, *S), in f's output shape.
    """

    middle: Tensor
    radius: Tensor
    size: Tensor

    @property
    @abstractmethod
    def terms(self) -> int:
        """How many products one entry of J x or J^T y is summed from."""

    @abstractmethod
    def adjoint(self, row: Tensor) -> tuple[Tensor, ...]:
        """J^T y for rows (B, R, *S): one (B, R, *S_i) for each input."""

    @abstractmethod
    def linear(self, *inputs: Tensor) -> Tensor:
        """J x for points (B, R, *S_i)."""

    def mapped(self, what: Callable[[Tensor], Tensor]) -> Tangent:
        """The same with a function applied to all tensors."""
        return replace(self, **{f.name: what(getattr(self, f.name)) for f in fields(self)})

    def __getitem__(self, boxes: Tensor) -> Tangent:
        """The tangent of some of the boxes, which holds on parts of them too."""
        return self.mapped(lambda t: t[boxes])


def stacked(tangents: list[Tangent]) -> Tangent:
    """The tangents of one operator over several sets of boxes, one set after the other."""
    first = tangents[0]
    return replace(first, **{f.name: torch.cat([getattr(t, f.name) for t in tangents]) for f in fields(first)})


class Joint(Op):
    """y = f(x_1, ..., x_k), bounded around its tangent."""

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """Bounds (B, *S) over the boxes, rounded outward."""

    @abstractmethod
    def tangent(self, *inputs: Form) -> Tangent:
        """The affine form at the inputs' centres, and how far the operator may be from it."""


# -- products of matrices ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MatMul(Joint):
    """y = u v^T for u (*L, n, k) and v (*L, m, k)."""

    def forward(self, *inputs: Tensor) -> Tensor:
        u, v = inputs
        return u @ v.mT

    def interval(self, *inputs: Interval) -> Interval:
        """Bounds from centres and radii: (u0 + du)(v0 + dv), every product of absolute values added up."""
        (u, v), (ru, rv) = inputs, (radius_upper(x) for x in inputs)
        centre = u.centre @ v.centre.mT
        spread = ru @ v.centre.abs().mT + u.centre.abs() @ rv.mT + ru @ rv.mT
        spread = spread + gamma(4 * u.shape[-1] + 16) * (spread + u.centre.abs() @ v.centre.abs().mT) + TINY
        return nan_is_unbounded(Interval(centre - spread, centre + spread))

    def tangent(self, *inputs: Form) -> Tangent:
        """u v^T = u0 v^T + u v0^T - u0 v0^T + (u - u0)(v - v0)^T, the last product bounded entry by entry.

        By the radii of its factors, and by their ellipsoids jointly, whichever is less.
        """
        u, v = inputs
        ru, rv = u.radius, v.radius
        enlarge = 1.0 + gamma(u.centre.shape[-1] + 8)
        radius = ru @ rv.mT * enlarge
        rest = u.error @ rv.mT + (ru + u.error) @ v.error.mT  # |G xi| <= |u - u0| + error
        spectral = _bilinear_upper(u, v) + rest * enlarge
        radius = torch.minimum(radius, torch.where(spectral.isnan(), torch.inf, spectral))
        middle = -(u.centre @ v.centre.mT)
        centres = u.centre.abs() @ v.centre.abs().mT
        size = u.interval.magnitude @ v.centre.abs().mT + u.centre.abs() @ v.interval.magnitude.mT + centres + radius
        radius = radius + gamma(u.centre.shape[-1] + 8) * centres + TINY
        return _Bilinear(middle, radius, size * enlarge, u.centre, v.centre)


@dataclass(frozen=True, eq=False)
class _Bilinear(Tangent):
    u: Tensor
    v: Tensor

    @property
    def terms(self) -> int:
        return 2 * max(self.u.shape[-2:] + self.v.shape[-2:])

    def adjoint(self, row: Tensor) -> tuple[Tensor, ...]:
        return row @ self.v.unsqueeze(1), row.mT @ self.u.unsqueeze(1)

    def linear(self, *inputs: Tensor) -> Tensor:
        u, v = inputs
        return u @ self.v.unsqueeze(1).mT + self.u.unsqueeze(1) @ v.mT


def _bilinear_upper(u: Form, v: Form) -> Tensor:
    """Upper bound (B, *L, n, m) on |(G_i xi).(H_j xi)| over |xi| <= 1, for the rows i of u and j of v.

    Sound because: for any p > 0 is G diag(1/p) G^T below A A^T, so that G xi = A a with |a|^2 <= sum_i p_i xi_i^2;
    likewise H xi = B b; and a.(A^T B) b <= ||A^T B|| |a| |b|.
    """
    (A, a), (B, b) = (_ellipsoid(x.columns) for x in (u, v))
    product = A.mT.unsqueeze(-3) @ B.unsqueeze(-4)
    sizes = [x.square().sum((-2, -1)).sqrt() for x in (A, B)]
    rounding = gamma(A.shape[-1] + 16) * sizes[0].unsqueeze(-1) * sizes[1].unsqueeze(-2)
    norm = matrix_norm_upper(product, rounding)
    return norm * (a.unsqueeze(-1) * b.unsqueeze(-2)).sqrt() * (1.0 + 16 * ROUND) + TINY


def _ellipsoid(G: Tensor) -> tuple[Tensor, Tensor]:
    """A (..., k, k) and s (...) such that G xi, |xi| <= 1, is A a with |a|^2 <= s, for G (..., k, N).

    NaN where rounding leaves that unproved, or numbers are so small or large that it may.
    Sound because: A A^T = C + d I + E with C = G diag(1/p) G^T up to rounding, and |E| <= d in the Frobenius norm.
    """
    k, count = G.shape[-2:]
    p = G.square().sum(-2).sqrt()
    usable = (p.sum(-1) < 1e100) & (p.sum(-1) > 1e-60)
    G = torch.where(usable[..., None, None], G, 1.0)
    p = torch.where(usable.unsqueeze(-1), p, 1.0)
    p = torch.where(p > 0, p.clamp(min=1e-100), 1.0)
    total = torch.where(G.any(-2), p, 0.0).sum(-1) * (1.0 + gamma(count + 2))
    scaled = G / p.sqrt().unsqueeze(-2)
    C = scaled @ scaled.mT
    trace = C.diagonal(dim1=-2, dim2=-1).sum(-1)
    rounding = 1.01 * gamma(count + k + 16) * trace + TINY
    shift = 1e-9 * trace + TINY
    values, vectors = torch.linalg.eigh(C)
    A = vectors * (values.clamp(min=0.0) + shift.unsqueeze(-1)).sqrt().unsqueeze(-2)
    residual = A @ A.mT - C
    residual.diagonal(dim1=-2, dim2=-1).sub_(shift.unsqueeze(-1))
    error = residual.square().sum((-2, -1)).sqrt() + rounding + gamma(2 * k + 16) * 3.0 * (trace + k * shift)
    return torch.where((usable & (error <= shift))[..., None, None], A, torch.nan), total


# -- softmax -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Softmax(Joint):
    """y_i = exp(x_i) / sum_j exp(x_j) along the last axis."""

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return torch.softmax(x, -1)

    def interval(self, *inputs: Interval) -> Interval:
        """y_i grows in x_i and falls in the others: its extremes are at corners."""
        (x,) = inputs
        relative = _relative(x.upper.amax(-1) - x.lower.amin(-1), x.shape[-1])
        return nan_is_unbounded(
            Interval(
                _at_corner(x.upper, x.lower) * (1.0 - relative) - TINY,
                (_at_corner(x.lower, x.upper) * (1.0 + relative) + TINY).clamp(max=1.0),
            )
        )

    def tangent(self, *inputs: Form) -> Tangent:
        """The tangent at the centre, or a constant where its strip is narrower.

        With |dx_j - dx_i| <= D_ij on the box, mu = sum p_j dx_j and p within [low, high], Taylor's remainder
        1/2 p_i ((dx_i - mu)^2 - sum_j p_j (dx_j - mu)^2), p at a point in between, is at most 1/2 high_i a_i^2 and at
        least -1/2 high_i V: a_i = max_j D_ij or sum_j high_j D_ij, V = max D^2 / 4 (Popoviciu) or
        1/2 sum_jk high_j high_k D_jk^2, whichever is less.
        Sound because: d^2 p_i / dt^2 along dx is p_i ((dx_i - mu)^2 - sum_j p_j (dx_j - mu)^2); [low, high] holds on
        the way from the centre, which may lie outside of the interval, to any x: D scales with the way, and `outer` is
        over the interval with the centre.  `most` and `relative` cover the roundings.
        """
        (x,) = inputs
        D = _differences(x)
        apart = x.centre.unsqueeze(-2) - x.centre.unsqueeze(-1)  # [i, j]: x_j - x_i
        widest = (apart.abs() + D).amax((-2, -1))
        relative = _relative(widest, D.shape[-1])
        outer = self.interval(Interval(x.interval.lower.minimum(x.centre), x.interval.upper.maximum(x.centre)))
        low = 1.0 / torch.exp(apart + D).sum(-1) * (1.0 - relative) - TINY
        high = 1.0 / torch.exp(apart - D).sum(-1) * (1.0 + relative) + TINY
        low, high = nan_is_unbounded(Interval(low, high)).intersect(outer).both
        most = 1.0 + 1e-12
        a = torch.minimum(D.amax(-1), (high.unsqueeze(-2) * D).sum(-1)) * most
        pairs = 0.5 * (high.unsqueeze(-1) * high.unsqueeze(-2) * D.square()).sum((-2, -1))
        V = torch.minimum(pairs, D.amax((-2, -1)).square() / 4.0).unsqueeze(-1) * most
        above, below = 0.5 * high * a.square() * most, 0.5 * high * V * most
        p = torch.softmax(x.centre, -1).nan_to_num(0.0)
        moves = 1.0 + D.amax(-1) + x.radius.amax(-1, keepdim=True)
        strip = 0.5 * (above + below) * most + 8.0 * relative * p * moves
        flat = ~(strip <= 0.5 * (high - low))
        scale = torch.where(flat, 0.0, p)
        shift = scale * (x.centre - (p * x.centre).sum(-1, keepdim=True))
        middle = torch.where(flat, 0.5 * (low + high), p - shift + 0.5 * (above - below))
        most_x = torch.maximum(x.interval.magnitude, x.centre.abs())
        absolute = torch.where(flat, 0.0, scale * (most_x + (p * most_x).sum(-1, keepdim=True)))
        size = most * (absolute + middle.abs() + p + 1.0)
        radius = torch.where(flat, 0.5 * (high - low), strip) + gamma(x.centre.shape[-1] + 32) * size
        return _SoftmaxTangent(middle, radius, size + radius, scale, p)


@dataclass(frozen=True, eq=False)
class _SoftmaxTangent(Tangent):
    """J x = scale * (x - sum_j p_j x_j)."""

    scale: Tensor
    p: Tensor

    @property
    def terms(self) -> int:
        return self.p.shape[-1] + 2

    def adjoint(self, row: Tensor) -> tuple[Tensor, ...]:
        scaled = row * self.scale.unsqueeze(1)
        return (scaled - self.p.unsqueeze(1) * scaled.sum(-1, keepdim=True),)

    def linear(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return self.scale.unsqueeze(1) * (x - (self.p.unsqueeze(1) * x).sum(-1, keepdim=True))


def _relative(widest: Tensor, count: int) -> Tensor:
    """Bound (..., 1) on the relative error of a softmax of so many arguments, at most so far (...) apart.

    Sound because: every difference is rounded to within 2 widest u, exp is within 8 ulp (see `accuracy`), a sum of n
    positive terms within n u.
    """
    return ((4.0 * widest + 2.0 * count + 64.0) * ROUND).unsqueeze(-1)


def _at_corner(others: Tensor, own: Tensor) -> Tensor:
    """1 / (1 + sum_{j != i} exp(others_j - own_i)) (..., n)."""
    n = own.shape[-1]
    terms = torch.exp(others.unsqueeze(-2) - own.unsqueeze(-1))
    rivals = torch.where(torch.eye(n, dtype=torch.bool), 0.0, terms)
    return 1.0 / (1.0 + rivals.sum(-1))


def _differences(x: Form) -> Tensor:
    """D (B, *S, n) with |(x_j - x_i) - (centre_j - centre_i)| <= D[..., i, j]: by the columns, and by the radii."""
    r, G = x.radius, x.columns
    enlarge = 1.0 + gamma(G.shape[-1] + 8)
    rows = [(G - G[..., i : i + 1, :]).abs().sum(-1) for i in range(G.shape[-2])]
    joint = torch.stack(rows, -2) * enlarge + (x.error.unsqueeze(-1) + x.error.unsqueeze(-2)) * enlarge
    D = torch.minimum(joint, (r.unsqueeze(-1) + r.unsqueeze(-2)) * enlarge)
    return torch.where(torch.eye(r.shape[-1], dtype=torch.bool), 0.0, D)
