"""Upper bounds on the norms of dense matrices (..., m, n), all rounded up: inf for NaN or inf entries, never NaN.

Every function takes leading batch axes and returns a float64 tensor of their shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvverify.numerics.norms.eigenvalues import gram, hermitian_upper, largest_eigenvalue_upper
from curvverify.numerics.norms.scaling import (
    UNDERFLOW,
    as_wide,
    dot_gamma,
    enlarge,
    frobenius_upper,
    from_unit_upper,
    magnitude_upper,
    sum_upper,
    to_unit,
)
from curvverify.numerics.rounding import gamma, round_up

GRAM_LIMIT = 4096
"""Largest shorter side for which the Gram matrix is formed (1 GiB in all); above, cheap norms only."""


def infinity_norm_upper(W: Tensor) -> Tensor:
    """Upper bound on ||W||_inf (l_inf to l_inf): the largest sum of |W_ij| over a row."""
    if 0 in W.shape[-2:]:
        return torch.zeros(W.shape[:-2], dtype=torch.float64)
    bound = sum_upper(magnitude_upper(as_wide(W)), -1).amax(-1)
    return torch.where(W.isfinite().all(-1).all(-1), bound, torch.inf)


def one_norm_upper(W: Tensor) -> Tensor:
    """Upper bound on ||W||_1 (l_1 to l_1): the largest sum of |W_ij| over a column."""
    return infinity_norm_upper(W.mT)


def schur_upper(W: Tensor) -> Tensor:
    """Upper bound on the spectral norm: sqrt(||W||_1 ||W||_inf) (Schur's test)."""
    return enlarge(one_norm_upper(W).sqrt() * infinity_norm_upper(W).sqrt(), gamma(6))


def row_norms_upper(W: Tensor) -> Tensor:
    """Upper bounds (..., m) on the l_2 norms of the rows; their maximum is the norm l_2 to l_inf."""
    return frobenius_upper(W[..., None, :])


def column_norms_upper(W: Tensor) -> Tensor:
    """Upper bounds (..., n) on the l_2 norms of the columns; their maximum is the norm l_1 to l_2."""
    return row_norms_upper(W.mT)


def _vector_norms_upper(W: Tensor, p: float) -> Tensor:
    """Upper bounds (..., m) on the l_p norms of the rows, p in {1, 2, inf}."""
    if p == 2:
        return row_norms_upper(W)
    magnitude = magnitude_upper(as_wide(W))
    bound = sum_upper(magnitude, -1) if p == 1 else magnitude.amax(-1)
    return torch.where(W.isfinite().all(-1), bound, torch.inf)


def induced_norm_upper(W: Tensor, p: float, q: float) -> Tensor:
    """Upper bound on max ||W x||_q over ||x||_p <= 1, p and q in {1, 2, inf}.

    Exact up to rounding for p = 1 (largest l_q norm of a column), for q = inf (largest dual l_p norm of a row) and for
    p = q = 2.  The other three are NP-hard: the least of sound formulas (l_q norm of the rows' dual norms, l_p dual
    norm of the columns' l_q norms, spectral norm times the norm equivalences).
    """
    if p not in (1, 2, torch.inf) or q not in (1, 2, torch.inf):
        raise ValueError(f"no formula for the norm from l_{p} to l_{q}: both must be 1, 2 or inf")
    if 0 in W.shape[-2:]:
        return torch.zeros(W.shape[:-2], dtype=torch.float64)
    if p == q == 2:
        return spectral_norm_upper(W)
    dual = {1: torch.inf, 2: 2, torch.inf: 1}[p]
    by_rows = _vector_norms_upper(_vector_norms_upper(W, dual)[..., None, :], q)[..., 0]
    by_columns = _vector_norms_upper(_vector_norms_upper(W.mT, q)[..., None, :], dual)[..., 0]
    if p == 1:
        return _vector_norms_upper(W.mT, q).amax(-1)
    if q == torch.inf:
        return by_rows
    factor = (W.shape[-1] if p == torch.inf else 1) * (W.shape[-2] if q == 1 else 1)
    spectral = enlarge(spectral_norm_upper(W) * factor**0.5, gamma(4))
    return torch.minimum(torch.minimum(by_rows, by_columns), spectral)


@torch.no_grad()
def spectral_norm_upper(W: Tensor, perturbation: Tensor | float = 0.0) -> Tensor:
    """Upper bound on the spectral norm of every V with ||V - W|| <= perturbation (spectral norm).

    W (..., m, n) real or complex; 1e-9 above the truth or closer up to sides of some thousands.
    Sound because: ||W||^2 = lambda_max(W W^T) on the shorter side, rounding of the product and the eigenvalue bounded
    (`gram`, `certify`); the Frobenius norm and Schur's test are taken where smaller.
    """
    W = as_wide(W)
    *batch, m, n = W.shape
    if 0 in (m, n):
        return torch.zeros(batch, dtype=torch.float64) + perturbation
    flat = W.reshape(-1, m, n)
    finite = flat.isfinite().all(-1).all(-1)
    flat = torch.where(finite[:, None, None], flat, 0.0)
    bound = torch.minimum(frobenius_upper(flat), schur_upper(flat))
    if min(m, n) > 1 and min(m, n) <= GRAM_LIMIT:
        scaled, exponent = to_unit(flat, 2)
        S, error = gram(scaled if m <= n else scaled.mH)
        root = enlarge(round_up(hermitian_upper(S) + error).clamp(min=0.0).sqrt(), gamma(2))
        bound = torch.minimum(bound, from_unit_upper(root, exponent[:, 0, 0]))
    total = torch.where(finite, bound, torch.inf).reshape(batch)
    if isinstance(perturbation, Tensor) or perturbation:
        total = round_up(total + perturbation)
    return torch.where(total.isnan(), torch.inf, total)


@torch.no_grad()
def gram_iteration_upper(W: Tensor, steps: int = 6) -> Tensor:
    """Upper bound on the spectral norm by Gram iteration; valid for any number of steps >= 0.

    Above the truth by a factor of at most rank^(1/2^(steps+1)); no eigenvalue routine and no factorisation.
    Sound because: G_0 = W, G_{k+1} = G_k^* G_k: ||G_k||^2 = ||G_{k+1}|| <= ||fl(G_{k+1})|| + gamma ||G_k||_F^2, applied
    backwards from the last iterate's Frobenius (or Schur) norm; every iterate is rescaled by a power of two, exactly.
    Source: Delattre et al., Efficient bound of Lipschitz constant for convolutional layers, ICML 2023, theorem 2.1.
    """
    W = as_wide(W)
    *batch, m, n = W.shape
    if 0 in (m, n):
        return torch.zeros(batch, dtype=torch.float64)
    flat = W.reshape(-1, m, n)
    finite = flat.isfinite().all(-1).all(-1)
    iterate, exponent = to_unit(torch.where(finite[:, None, None], flat, 0.0), 2)
    iterate = iterate if m <= n else iterate.mH
    exponents, errors = [exponent[:, 0, 0]], []
    for _ in range(steps):
        iterate, error = gram(iterate)
        errors.append(error)
        iterate, exponent = to_unit(iterate, 2)
        exponents.append(exponent[:, 0, 0])
    bound = torch.minimum(frobenius_upper(iterate), schur_upper(iterate))
    for error in reversed(errors):
        square = round_up(from_unit_upper(bound, exponents.pop()) + error)
        bound = enlarge(square.sqrt(), gamma(2))
    bound = from_unit_upper(bound, exponents.pop())
    cheap = frobenius_upper(flat)
    return torch.where(finite, torch.minimum(bound, cheap), torch.inf).reshape(batch)


@torch.no_grad()
def weighted_spectral_norm_upper(W: Tensor, left: Tensor | None = None, right: Tensor | None = None) -> Tensor:
    """Upper bound on ||diag(left) W diag(right)||, left (..., m), right (..., n); None means ones.

    Sound because: each entry of the product is rounded at most twice, relative error gamma(2), so that the spectral
    norm of the error is at most gamma(3) times the Frobenius norm.  Everything is of unit scale.
    """
    W = as_wide(W)
    if 0 in W.shape[-2:]:
        return torch.zeros(W.shape[:-2], dtype=torch.float64)
    scaled, exponent = _finite_unit(W)
    finite, total = W.isfinite().all(-1).all(-1), exponent[..., 0, 0]
    zero = (scaled == 0).all(-1).all(-1)
    for weight, axis in ((left, -1), (right, -2)):
        if weight is None:
            continue
        weight = as_wide(weight)[..., None, :]
        unit, shift = _finite_unit(weight)
        scaled = scaled * unit[..., 0, :].unsqueeze(axis)
        finite, total = finite & weight.isfinite().all(-1).all(-1), total + shift[..., 0, 0]
        zero = zero | (unit == 0).all(-1).all(-1)
    rounding = enlarge(frobenius_upper(scaled), gamma(4)) * gamma(4) + UNDERFLOW
    bound = torch.where(zero, 0.0, spectral_norm_upper(scaled, rounding))
    half = total // 2  # three factors of up to 1,074 binary orders each
    return torch.where(finite, from_unit_upper(from_unit_upper(bound, half), total - half), torch.inf)


def _finite_unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """`to_unit` over the last two axes with NaN and inf replaced by 0."""
    return to_unit(torch.where(x.isfinite(), x, 0.0), 2)


@torch.no_grad()
def hadamard_gram_norm_upper(G: Tensor, W: Tensor) -> Tensor:
    """Upper bound on sqrt(lambda_max((G^T G) o (W W^T))), o the elementwise product; G (..., m, h), W (..., h, n).

    This is the norm of the matrix A with columns g_i (x) w_i; the curvature constant of G sigma(W x) is at most
    sup|sigma''| ||A|| ||W||.
    Sound because: with column norms g_i of G and row norms w_i of W, |fl - exact| of entry (i, j) is at most
    gamma(m + n) (|G|^T |G|)_ij (|W| |W|^T)_ij <= gamma g_i g_j w_i w_j, a matrix of norm sum_i g_i^2 w_i^2 gamma.
    """
    G, W = as_wide(G), as_wide(W)
    finite = G.isfinite().all(-1).all(-1) & W.isfinite().all(-1).all(-1)
    (G, a), (W, b) = _finite_unit(G), _finite_unit(W)
    H = (G.mT @ G) * (W @ W.mT)
    mixed = column_norms_upper(G) * row_norms_upper(W)
    error = enlarge(mixed.square().sum(-1), 1e-6) * dot_gamma(G.shape[-2] + W.shape[-1] + 8, wide=False) + UNDERFLOW
    root = enlarge(largest_eigenvalue_upper(H, error).clamp(min=0.0).sqrt(), gamma(2))
    root = torch.where((G == 0).all(-1).all(-1) | (W == 0).all(-1).all(-1), 0.0, root)
    return torch.where(finite, from_unit_upper(from_unit_upper(root, a[..., 0, 0]), b[..., 0, 0]), torch.inf)


def row_weighted_norm_upper(W: Tensor) -> Tensor:
    """Upper bound on ||diag(||w_i||) W||, w_i the rows: the curvature constant of sigma(W x) for sup|sigma''| = 1."""
    return weighted_spectral_norm_upper(W, left=row_norms_upper(W))
