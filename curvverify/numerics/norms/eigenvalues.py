"""Rigorous bounds on the extreme eigenvalues of symmetric (Hermitian) matrices.

An eigenvalue routine only proposes a number tau; what proves lambda_max(S) <= tau + rho is a Cholesky factor L of
tau I - S whose residual is multiplied out.  Nothing is assumed about how LAPACK found L, and of the matrix product
only that it sums products in some order (gamma_n, see `rounding`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvverify.numerics.norms.scaling import (
    UNDERFLOW,
    as_wide,
    dot_gamma,
    enlarge,
    from_unit_upper,
    magnitude_upper,
    squares,
    sum_upper,
    to_unit,
)
from curvverify.numerics.rounding import gamma, round_up

DIRECT = 192
"""Largest side for which all eigenvalues are computed; above, the Lanczos method estimates the extreme one."""

LANCZOS, LANCZOS_OF_MANY = 64, 20
"""Its number of steps, for a bound of its own and for finding the largest among many matrices."""

STEP = 2.0**-30
"""Relative distance of a proposed bound above the estimated largest eigenvalue, where that is not exact."""


def _hermitian(S: Tensor) -> tuple[Tensor, Tensor]:
    """((S + S^*) / 2, upper bound on the spectral norm of its rounding error)."""
    H = (S + S.mH) / 2
    return H, enlarge(squares(H).sum((-2, -1)).sqrt(), 1e-8) * 2.0**-51 + UNDERFLOW


def hermitian_gram(A: Tensor) -> tuple[Tensor, Tensor]:
    """(H, e): an exactly Hermitian H with ||H - A A^*|| <= e, for A (..., m, n) of unit scale.

    Sound because: |fl(A A^*) - A A^*| <= gamma |A| |A|^* entry by entry, whose norm is at most ||A||_F^2; halving the
    sum with the transpose adds 2u ||A||_F^2 at most, which the surplus terms of `dot_gamma` cover.
    """
    S = A @ A.mH
    trace = sum_upper(squares(A), (-2, -1))
    return (S + S.mH) / 2, round_up(trace * dot_gamma(A.shape[-1], wide=A.is_complex()) * 1.001 + UNDERFLOW)


def gershgorin_upper(H: Tensor) -> Tensor:
    """Upper bound on the largest eigenvalue of each Hermitian (..., n, n): the rightmost Gershgorin disc."""
    diagonal = H.diagonal(dim1=-2, dim2=-1).real
    sums = sum_upper(magnitude_upper(H), -1)
    off = round_up(sums - diagonal.abs()).clamp(min=0.0)
    return round_up(diagonal + off).amax(-1)


def certify(H: Tensor, tau: Tensor) -> Tensor:
    """Upper bounds (K) on the largest eigenvalues, slightly above tau; inf where that could not be proved.

    H (K, n, n) exactly Hermitian and of unit scale, tau (K).
    Sound because: with B = fl(tau I - H) and any L, lambda_min(tau I - H) >= lambda_min(L L^*) - ||B - L L^*||
    - u max|B_ii| >= -||B - L L^*||_F - u max|B_ii|, and |fl(L L^*) - L L^*| <= gamma |L| |L|^*, whose norm is at most
    ||L||_F^2.  (Rump, Verification of positive definiteness, BIT 2006, bounds the residual a priori instead.)
    """
    n = H.shape[-1]
    bound = torch.full((H.shape[0],), torch.inf, dtype=torch.float64)
    B = -H
    B.diagonal(dim1=-2, dim2=-1).add_(tau[:, None])
    L, info = torch.linalg.cholesky_ex(B)
    proved = info == 0
    if not bool(proved.all()):
        B, L = B[proved], L[proved]
    diagonal = B.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    weight = sum_upper(squares(L), (-2, -1))
    residual = enlarge(sum_upper(squares(B - L @ L.mH), (-2, -1)).sqrt(), gamma(8))
    slack = 1.001 * (residual + weight * dot_gamma(n, wide=H.is_complex()) + diagonal * 2.0**-51) + UNDERFLOW
    bound[proved] = round_up(tau[proved] + slack)
    return bound


def lanczos_estimates(H: Tensor, steps: int) -> Tensor:
    """Estimates from below (K) of the largest eigenvalues of Hermitian (K, n, n): Lanczos, reorthogonalised."""
    K, n, steps = H.shape[0], H.shape[-1], min(steps, H.shape[-1])
    q = torch.cos(torch.arange(n, dtype=torch.float64) * 1.7 + 0.3).to(H.dtype).expand(K, n)[..., None]
    q = q / torch.linalg.vector_norm(q, dim=(1, 2), keepdim=True)
    basis = torch.zeros(K, n, steps, dtype=H.dtype)
    T = torch.zeros(K, steps, steps, dtype=torch.float64)
    for k in range(steps):
        basis[:, :, k] = q[..., 0]
        w = H @ q
        T[:, k, k] = (q.mH @ w)[:, 0, 0].real
        w = w - basis[:, :, : k + 1] @ (basis[:, :, : k + 1].mH @ w)
        w = w - basis[:, :, : k + 1] @ (basis[:, :, : k + 1].mH @ w)
        length = torch.linalg.vector_norm(w, dim=(1, 2), keepdim=True)
        alive = length > 1e-14  # an invariant subspace: what follows are zeros
        if k + 1 < steps:
            T[:, k + 1, k] = torch.where(alive, length, 0.0)[:, 0, 0]
        q = torch.where(alive, w / length.clamp(min=1e-290), 0.0)
    return torch.linalg.eigvalsh(T)[:, -1]


def largest_eigenvalue_estimate(H: Tensor) -> tuple[Tensor, Tensor, float]:
    """(largest eigenvalues (K), their magnitude scale (K), relative step to go above them); nothing is proved."""
    n = H.shape[-1]
    if n <= DIRECT:
        values = torch.linalg.eigvalsh(H)
        return values[:, -1], torch.maximum(values[:, -1].abs(), values[:, 0].abs()), n * 2.0**-50
    values = lanczos_estimates(H, LANCZOS)
    diagonal = H.diagonal(dim1=-2, dim2=-1).real.abs().amax(-1)
    return values, torch.maximum(values.abs(), diagonal), STEP


def hermitian_upper(H: Tensor) -> Tensor:
    """Upper bounds (K) on the largest eigenvalues of exactly Hermitian (K, n, n) of unit scale."""
    bound = gershgorin_upper(H)
    if H.shape[-1] == 1 or H.shape[0] == 0:
        return bound
    try:
        estimate, scale, step = largest_eigenvalue_estimate(H)
    except torch.linalg.LinAlgError:
        return bound
    open_ = torch.arange(H.shape[0])
    for _ in range(5):
        upper = certify(H[open_], estimate[open_] + step * scale[open_] + UNDERFLOW)
        bound[open_] = torch.minimum(bound[open_], upper)
        open_ = open_[upper.isinf()]
        if not open_.numel():
            break
        step *= 64
    return bound


@torch.no_grad()
def largest_eigenvalue_upper(S: Tensor, error: Tensor | float = 0.0) -> Tensor:
    """Upper bound on the largest eigenvalue of every symmetric T with ||T - S|| <= error (spectral norm).

    S (..., n, n) real symmetric or Hermitian (the mean of S and S^* is used), error >= 0 broadcastable to (...);
    the result has shape (...), inf where S is not finite and -inf for n = 0.  Above the truth by about n u ||S||.
    Sound because: of `certify` or Gershgorin's theorem, and Weyl's inequality for the error.
    """
    S = as_wide(S)
    batch, n = S.shape[:-2], S.shape[-1]
    if n == 0:
        return torch.full(batch, -torch.inf, dtype=torch.float64)
    flat = S.reshape(-1, n, n)
    finite = flat.isfinite().all(-1).all(-1)
    flat, exponent = to_unit(torch.where(finite[:, None, None], flat, 0.0), 2)
    H, rounding = _hermitian(flat)
    upper = round_up(hermitian_upper(H) + rounding)
    upper = torch.where((H == 0).all(-1).all(-1), 0.0, upper)
    total = torch.where(finite, from_unit_upper(upper, exponent[:, 0, 0]), torch.inf).reshape(batch)
    if isinstance(error, Tensor) or error:
        total = round_up(total + error)
    return torch.where(total.isnan(), torch.inf, total)


def smallest_eigenvalue_lower(S: Tensor, error: Tensor | float = 0.0) -> Tensor:
    """Lower bound on the smallest eigenvalue of every symmetric T with ||T - S|| <= error; see the upper one."""
    return -largest_eigenvalue_upper(-S, error)


def common_eigenvalue_upper(H: Tensor, floor: float, give_up_above: float = torch.inf) -> float:
    """Upper bound on max(floor, largest eigenvalue of any H_k), for positive semidefinite (K, n, n) of unit scale.

    inf as soon as that is seen to exceed `give_up_above`.  Cheaper than K separate bounds: one Cholesky factorisation
    per matrix at a common tau, raised for those that fail.
    """
    cheap = gershgorin_upper(H)
    if H.shape[-1] == 1:
        return max(floor, float(cheap.max()))
    open_ = (cheap > floor).nonzero().squeeze(1)
    if not open_.numel():
        return floor
    H, cheap = H[open_], cheap[open_]
    small = H.shape[-1] <= LANCZOS_OF_MANY
    estimate = torch.linalg.eigvalsh(H)[:, -1] if small else lanczos_estimates(H, LANCZOS_OF_MANY)
    peak = max(floor, float(estimate.max()))
    if peak * (1 - STEP) > give_up_above:
        return torch.inf
    bound, step = floor, STEP if small else 2.0**-20
    while step < 1.0:
        upper = certify(H, torch.full((H.shape[0],), peak * (1 + step) + UNDERFLOW, dtype=torch.float64))
        proved = upper.isfinite()
        bound = max(bound, float(torch.where(proved, upper, -torch.inf).max()))
        if bool(proved.all()):
            return bound
        H, cheap, step = H[~proved], cheap[~proved], 8 * step
    return max(bound, float(cheap.max()))
