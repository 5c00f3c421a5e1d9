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

DIRECT = 384
"""Largest side for which all eigenvalues are computed; above, the Lanczos method estimates the extreme one."""

CHECK, SETTLED = 12, 1e-12
"""Every so many of its steps the estimate is looked at: once it changes by less than this share, it is taken."""

LANCZOS, LANCZOS_OF_MANY = 64, 20
"""Its number of steps, for a bound of its own and for finding the largest among many matrices."""

STEP = 2.0**-30
"""Relative distance of a proposed bound above the estimated largest eigenvalue, where that is not exact."""


def gram(A: Tensor) -> tuple[Tensor, Tensor]:
    """(S, e): S = fl(A A^*), whose Hermitian part is within e of A A^* (spectral norm).

    A (..., m, n) of unit scale.
    Sound because: |fl(A A^*) - A A^*| <= gamma |A| |A|^* entry by entry, whose norm is at most ||A||_F^2; taking the
    Hermitian part increases no norm.
    """
    trace = sum_upper(squares(A), (-2, -1))
    return A @ A.mH, round_up(trace * dot_gamma(A.shape[-1], wide=A.is_complex()) * 1.001 + UNDERFLOW)


def gershgorin_upper(S: Tensor) -> Tensor:
    """Upper bound on the largest eigenvalue of the Hermitian part of each (..., n, n): the rightmost Gershgorin disc.

    Sound because: an entry of the Hermitian part is at most the larger of |S_ij| and |S_ji|.
    """
    diagonal = S.diagonal(dim1=-2, dim2=-1)
    magnitude = magnitude_upper(S)
    sums = sum_upper(torch.maximum(magnitude, magnitude.mT), -1)
    off = round_up(sums - diagonal.real.abs()).clamp(min=0.0)
    return round_up(diagonal.real + off).amax(-1)


def certify(S: Tensor, tau: Tensor) -> Tensor:
    """Upper bounds (K) on the largest eigenvalues, slightly above tau; inf where that could not be proved.

    S (K, n, n) of unit scale stands for its Hermitian part, from which it may differ by rounding; tau (K).
    Sound because: with B = fl(tau I - S), any L and E = B - L L^*, the Hermitian part of tau I - S is at least
    -||E||_F - u max|B_ii|; and |fl(E) - E| <= gamma (|B| + |L| |L|^*), whose norm is at most
    gamma (||E||_F + 2 ||L||_F^2).  (Rump, Verification of positive definiteness, BIT 2006, bounds E a priori instead.)
    """
    n = S.shape[-1]
    bound = torch.full((S.shape[0],), torch.inf, dtype=torch.float64)
    B = -S
    B.diagonal(dim1=-2, dim2=-1).add_(tau[:, None])
    L, info = torch.linalg.cholesky_ex(B)
    proved = info == 0
    if not bool(proved.all()):
        B, L = B[proved], L[proved]
    diagonal = B.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    weight = sum_upper(squares(L), (-2, -1))
    E = torch.baddbmm(B, L, L.mH, alpha=-1)
    residual = enlarge(sum_upper(squares(E), (-2, -1)).sqrt(), gamma(8))
    rounding = 2 * dot_gamma(n + 1, wide=S.is_complex())
    slack = 1.001 * (residual + weight * rounding + diagonal * 2.0**-51) + UNDERFLOW
    bound[proved] = round_up(tau[proved] + slack)
    return torch.where(bound.isnan(), torch.inf, bound)


def lanczos_estimates(H: Tensor, steps: int) -> Tensor:
    """Estimates from below (K) of the largest eigenvalues of Hermitian (K, n, n): Lanczos, reorthogonalised."""
    K, n, steps = H.shape[0], H.shape[-1], min(steps, H.shape[-1])
    if K > 1 and n > DIRECT // 2:
        return torch.cat([lanczos_estimates(h.unsqueeze(0), steps) for h in H])  # one matrix-vector product each
    q = torch.cos(torch.arange(n, dtype=torch.float64) * 1.7 + 0.3).to(H.dtype).expand(K, n)[..., None]
    q = q / torch.linalg.vector_norm(q, dim=(1, 2), keepdim=True)
    basis = torch.zeros(K, n, steps, dtype=H.dtype)
    T = torch.zeros(K, steps, steps, dtype=torch.float64)
    found = torch.full((K,), torch.inf, dtype=torch.float64)
    for k in range(steps):
        basis[:, :, k] = q[..., 0]
        w = H @ q
        T[:, k, k] = (q.mH @ w)[:, 0, 0].real
        if (k + 1) % CHECK == 0 or k + 1 == steps:
            last, found = found, _spectrum_estimate(T[:, : k + 1, : k + 1])[:, -1]
            if bool(((found - last).abs() <= SETTLED * found.abs()).all()):
                break
        for _ in range(1 if steps < LANCZOS else 2):
            w = w - basis[:, :, : k + 1] @ (basis[:, :, : k + 1].mH @ w)
        length = torch.linalg.vector_norm(w, dim=(1, 2), keepdim=True)
        alive = length > 1e-14  # an invariant subspace: what follows are zeros
        if k + 1 < steps:
            T[:, k + 1, k] = torch.where(alive, length, 0.0)[:, 0, 0]
        q = torch.where(alive, w / length.clamp(min=1e-290), 0.0)
    return found


def _spectrum_estimate(S: Tensor) -> Tensor:
    """Ascending eigenvalues (K, n) as LAPACK finds them; the sorted diagonals where it gives up."""
    try:
        return torch.linalg.eigvalsh(S)
    except RuntimeError:  # torch.linalg.LinAlgError is one
        return S.diagonal(dim1=-2, dim2=-1).real.sort(-1).values


def hermitian_upper(S: Tensor) -> Tensor:
    """Upper bounds (K) on the largest eigenvalues of the Hermitian parts of (K, n, n) of unit scale."""
    bound, n = gershgorin_upper(S), S.shape[-1]
    if n == 1 or S.shape[0] == 0:
        return bound
    if n <= DIRECT:
        spectrum, step = _spectrum_estimate(S), n * 2.0**-50
        estimate, scale = spectrum[:, -1], spectrum.abs().amax(-1)
    else:
        estimate, step = lanczos_estimates(S, LANCZOS), STEP
        scale = torch.maximum(estimate.abs(), S.diagonal(dim1=-2, dim2=-1).abs().amax(-1))
    left = torch.arange(S.shape[0])
    for _ in range(5):
        some = S if left.numel() == S.shape[0] else S[left]
        upper = certify(some, estimate[left] + step * scale[left] + UNDERFLOW)
        bound[left] = torch.minimum(bound[left], upper)
        left = left[upper.isinf()]
        if not left.numel():
            break
        step *= 64
    return bound


@torch.no_grad()
def largest_eigenvalue_upper(S: Tensor, error: Tensor | float = 0.0) -> Tensor:
    """Upper bound on the largest eigenvalue of every symmetric T with ||T - S|| <= error (spectral norm).

    S (..., n, n) real symmetric or Hermitian, otherwise its Hermitian part is meant; error >= 0 broadcastable to (...).
    The result has shape (...), inf where S is not finite and -inf for n = 0.  Above the truth by a few n u ||S|| up to
    n = 192, by 1e-9 ||S|| beyond.
    Sound because: of `certify` or Gershgorin's theorem; by Weyl's inequality the error adds, as does the rounding of
    (S + S^*) / 2, at most u in every entry.
    """
    S = as_wide(S)
    batch, n = S.shape[:-2], S.shape[-1]
    if n == 0:
        return torch.full(batch, -torch.inf, dtype=torch.float64)
    flat = S.reshape(-1, n, n)
    finite = flat.isfinite().all(-1).all(-1)
    flat, exponent = to_unit(torch.where(finite[:, None, None], flat, 0.0), 2)
    flat = (flat + flat.mH) / 2
    rounding = enlarge(squares(flat).sum((-2, -1)).sqrt(), 1e-8) * 2.0**-52
    upper = torch.where((flat == 0).all(-1).all(-1), 0.0, round_up(hermitian_upper(flat) + rounding))
    total = torch.where(finite, from_unit_upper(upper, exponent[:, 0, 0]), torch.inf).reshape(batch)
    if isinstance(error, Tensor) or error:
        total = round_up(total + error)
    return torch.where(total.isnan(), torch.inf, total)


def smallest_eigenvalue_lower(S: Tensor, error: Tensor | float = 0.0) -> Tensor:
    """Lower bound on the smallest eigenvalue of every symmetric T with ||T - S|| <= error; see the upper one."""
    return -largest_eigenvalue_upper(-S, error)


def common_eigenvalue_upper(S: Tensor, floor: float, give_up_above: float = torch.inf) -> tuple[float, int | None]:
    """(b, k): upper bound b on max(floor, largest eigenvalue of any S_k's Hermitian part).

    S (K, n, n) of unit scale, positive semidefinite up to rounding; k is the matrix that seems to have the largest,
    None where none exceeds the floor.  b = inf as soon as it is seen to exceed `give_up_above`.  Cheaper than bounds
    one by one: a single Cholesky factorisation per matrix, at a common tau, raised for those that fail.
    """
    if S.shape[-1] == 1:
        cheap = gershgorin_upper(S)
        return max(floor, float(cheap.max())), int(cheap.argmax()) if float(cheap.max()) > floor else None
    small = S.shape[-1] <= LANCZOS_OF_MANY
    estimate = _spectrum_estimate(S)[:, -1] if small else lanczos_estimates(S, LANCZOS_OF_MANY)
    peak = float(estimate.max())
    top = int(estimate.argmax()) if peak > floor else None
    if peak * (1 - STEP) > give_up_above:
        return torch.inf, top
    bound, step, peak = floor, STEP if small else 2.0**-20, max(floor, peak)
    while step < 1.0:
        upper = certify(S, torch.full((S.shape[0],), peak * (1 + step) + UNDERFLOW, dtype=torch.float64))
        proved = upper.isfinite()
        bound = max(bound, float(torch.where(proved, upper, -torch.inf).max()))
        if bool(proved.all()):
            return bound, top
        S, step = S[~proved], 8 * step
    return max(bound, float(gershgorin_upper(S).max())), top
