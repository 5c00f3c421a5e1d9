"""Row and column norms of linear operators, and the norms between l_1, l_2 and l_inf and of curvature built on them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from curvverify.numerics.norms import dense
from curvverify.numerics.norms.operators import (
    LinearOperator,
    Matrix,
    Shape,
    absolute_sums_upper,
    materialise,
    spectral_norm_upper,
    weighted_norm_upper,
)
from curvverify.numerics.norms.scaling import UNDERFLOW, enlarge, from_unit_upper, times_upper, to_unit
from curvverify.numerics.rounding import gamma, round_up


@torch.no_grad()
def vector_norms_upper(op: LinearOperator, shape_in: Shape) -> tuple[Tensor, Tensor]:
    """(rows, columns): upper bounds (*S_out) and (*S_in) on the l_2 norms of the operator's rows and columns.

    Exact up to rounding for matrices and kernels, borders included, and for all small operators; otherwise the
    l_1 norms, which are no smaller.
    Sound because: the squares of a row's entries are the same operator's entries with a squared weight, as no entry of
    the matrix is a sum of several weights.
    """
    wide = op.to(torch.float64)
    if not isinstance(wide, Matrix):
        return _generic_vector_norms(wide, shape_in)
    if not bool(wide.weight.isfinite().all()):
        shape_out = wide.forward(torch.zeros(1, *shape_in, dtype=torch.float64), bias=False).shape[1:]
        return torch.full(shape_out, torch.inf), torch.full(tuple(shape_in), torch.inf)
    scaled, exponent = to_unit(wide.weight, wide.weight.dim())
    owner: Any = wide
    squared = dataclasses.replace(owner, weight=scaled.square(), bias=None)
    sums = absolute_sums_upper(squared, shape_in)[0]
    rows, columns = (round_up(enlarge(s, gamma(4)).sqrt()) for s in sums)
    shift, slack = exponent.flatten()[0], (UNDERFLOW if bool(scaled.any()) else 0.0)
    return from_unit_upper(rows + slack, shift), from_unit_upper(columns + slack, shift)


def _generic_vector_norms(op: LinearOperator, shape_in: Shape) -> tuple[Tensor, Tensor]:
    """Row and column norms from the matrix where that is small, with its error added; else the sums of |L|."""
    rows, columns = absolute_sums_upper(op, shape_in)[0]
    found = materialise([op], shape_in)
    if found is None:
        return rows, columns
    by_row = round_up(dense.row_norms_upper(found[0]) + found[1]).reshape(rows.shape)
    by_column = round_up(dense.column_norms_upper(found[0]) + found[1]).reshape(columns.shape)
    return torch.minimum(rows, by_row), torch.minimum(columns, by_column)


def _largest_entry_upper(op: LinearOperator, shape_in: Shape, sums: tuple[Tensor, Tensor]) -> float:
    """Upper bound on the largest |L_ij|: exact for matrices and kernels; else at most the largest row or column sum."""
    if isinstance(op, Matrix):
        bound = float(op.weight.to(torch.float64).abs().max())
        return math.inf if math.isnan(bound) else bound
    bound = min(float(s.max()) for s in sums)
    found = materialise([op], shape_in)
    return (
        bound
        if found is None
        else min(bound, float(round_up(found[0].abs().max() + found[1]).nan_to_num(math.inf, math.inf)))
    )


@torch.no_grad()
def induced_norm_upper(op: LinearOperator, shape_in: Shape, p: float, q: float) -> float:
    """Upper bound on max ||L x||_q over ||x||_p <= 1, p and q in {1, 2, inf}, over all entries of x and of L x.

    Exact up to rounding for (1, 1), (inf, inf) and, where `vector_norms_upper` is, for (1, 2) and (2, inf).  The others
    take the least of sums of row or column norms and the spectral norm times norm equivalences.
    """
    if p not in (1, 2, math.inf) or q not in (1, 2, math.inf):
        raise ValueError(f"no formula for the norm from l_{p} to l_{q}: both must be 1, 2 or inf")
    rows, columns = absolute_sums_upper(op, shape_in)[0]
    if 0 in (rows.numel(), columns.numel()):
        return 0.0
    if p == q == 2:
        return spectral_norm_upper(op, shape_in)
    if p == q:
        return float((columns if p == 1 else rows).max())
    if (p, q) == (1, math.inf):
        return _largest_entry_upper(op, shape_in, (rows, columns))
    if (p, q) in ((1, 2), (2, math.inf)):
        return float(vector_norms_upper(op, shape_in)[0 if q == math.inf else 1].max())
    norm = spectral_norm_upper(op, shape_in)
    m, n = rows.numel(), columns.numel()
    if (p, q) == (math.inf, 1):
        factor, sums = math.sqrt(m) * math.sqrt(n), float(rows.sum()) * (1 + gamma(m + 4))
    else:  # (inf, 2) by rows, (2, 1) by columns
        factor, own = (math.sqrt(n), rows) if q == 2 else (math.sqrt(m), columns)
        sums = float(dense.frobenius_upper(own.reshape(1, -1)))
    return min(math.inf if math.isnan(sums) else sums, times_upper(norm, factor * (1 + gamma(4))))


def row_weighted_norm_upper(op: LinearOperator, shape_in: Shape) -> float:
    """Upper bound on ||diag(||l_i||) L||, l_i the rows: the curvature constant of sigma(L x) for sup|sigma''| = 1."""
    return weighted_norm_upper(op, shape_in, left=vector_norms_upper(op, shape_in)[0])


@torch.no_grad()
def hadamard_norm_upper(outer: LinearOperator, inner: LinearOperator, shape_in: Shape) -> float:
    """Upper bound on ||A||, ||A||^2 = lambda_max((G^T G) o (W W^T)), G the outer and W the inner operator.

    Exact up to rounding where both are small; otherwise the lesser of ||diag(||g_i||) W|| and ||G diag(||w_i||)||, g_i
    the columns of G and w_i the rows of W.
    Sound because: A has the columns g_i (x) w_i; G^T G = D C D with D = diag(||g_i||) and C of unit diagonal, and
    lambda_max(C o Q) <= max C_ii lambda_max(Q) for positive semidefinite Q = D W W^T D (Schur); likewise with G and W
    exchanged.  An error in G or W adds its norm times the largest row (column) norm of the other.
    """
    shape = inner.to(torch.float64).forward(torch.zeros(1, *shape_in, dtype=torch.float64), bias=False).shape[1:]
    columns, rows = vector_norms_upper(outer, shape)[1], vector_norms_upper(inner, shape_in)[0]
    if math.prod(shape) <= dense.GRAM_LIMIT // 2:
        G, W = materialise([outer], shape), materialise([inner], shape_in)
        if G is not None and W is not None:
            mixed = G[1] * float(rows.max()) + W[1] * float(columns.max()) + G[1] * W[1]
            return times_upper(float(dense.hadamard_gram_norm_upper(G[0], W[0])) + mixed, 1 + gamma(8))
    return min(weighted_norm_upper(inner, shape_in, left=columns), weighted_norm_upper(outer, shape, right=rows))
