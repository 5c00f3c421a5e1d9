"""Extreme eigenvalues of symmetric matrices, bounded from outside."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from curvverify.numerics.norms import eigenvalues, largest_eigenvalue_upper, smallest_eigenvalue_lower
from tests.numerics.matrices import gaussian, hilbert


def symmetric(n: int, seed: int = 0) -> Tensor:
    A = gaussian(n, n, seed=seed)
    return A + A.T


CASES = {
    "random": symmetric(12),
    "hilbert": hilbert(14),
    "indefinite": symmetric(20) - 3 * torch.eye(20, dtype=torch.float64),
    "negative": -hilbert(9),
    "diagonal": torch.diag(gaussian(30)),
    "equal": 3.7 * torch.eye(15, dtype=torch.float64),
    "rank one": gaussian(18, 1) @ gaussian(18, 1).T,
    "lanczos": symmetric(200),
    "lanczos, equal": -2.0 * torch.eye(200, dtype=torch.float64),
    "large scale": symmetric(10) * 1e300,
    "small scale": symmetric(10) * 1e-300,
}


@pytest.mark.parametrize("name", CASES)
def test_both_ends_are_outside_and_close(name: str) -> None:
    S = CASES[name]
    size = float(S.abs().max())
    exact = torch.linalg.eigvalsh(S / size)
    upper, lower = float(largest_eigenvalue_upper(S)) / size, float(smallest_eigenvalue_lower(S)) / size
    norm = float(exact.abs().max())
    assert float(exact[-1]) - 1e-15 * norm <= upper <= float(exact[-1]) + 1e-8 * norm
    assert float(exact[0]) + 1e-15 * norm >= lower >= float(exact[0]) - 1e-8 * norm


@pytest.mark.parametrize("name", ["random", "hilbert", "negative", "rank one", "small scale"])
def test_against_arbitrary_precision(name: str) -> None:
    S = CASES[name]
    with mpmath.workdps(60):
        exact = mpmath.eigsy(mpmath.matrix(S.tolist()), eigvals_only=True)
        assert mpmath.mpf(float(largest_eigenvalue_upper(S))) >= max(exact)
        assert mpmath.mpf(float(smallest_eigenvalue_lower(S))) <= min(exact)


def test_batches_errors_and_asymmetry() -> None:
    S = torch.stack([symmetric(6, seed=k) for k in range(5)])
    exact = torch.linalg.eigvalsh(S)[:, -1]
    assert bool((largest_eigenvalue_upper(S) - exact < 1e-11).all())
    assert bool((largest_eigenvalue_upper(S, torch.full((5,), 0.25)) >= exact + 0.25).all())
    skewed = S + torch.triu(torch.ones(6, 6, dtype=torch.float64), 1) - torch.tril(torch.ones(6, 6), -1)
    assert torch.allclose(largest_eigenvalue_upper(skewed), exact, rtol=1e-11)


def test_special_values() -> None:
    S = torch.stack([symmetric(4), symmetric(4)])
    S[1, 0, 1] = math.nan
    assert largest_eigenvalue_upper(S)[1] == math.inf
    assert smallest_eigenvalue_lower(S)[1] == -math.inf
    assert largest_eigenvalue_upper(torch.zeros(3, 3)) == 0.0
    assert largest_eigenvalue_upper(symmetric(3), math.nan) == math.inf
    assert largest_eigenvalue_upper(torch.full((1, 1), -2.0)) >= -2.0
    assert largest_eigenvalue_upper(torch.diag(torch.tensor([-1.5e308, -1.6e308], dtype=torch.float64))) <= -1.4e308


def test_a_bad_proposal_proves_nothing() -> None:
    """The certificate is refused for tau below the largest eigenvalue, and every step above one is honest."""
    S = symmetric(8)[None] / 16
    top = torch.linalg.eigvalsh(S)[:, -1]
    assert bool(eigenvalues.certify(S, top - 1e-9).isinf().all())
    assert bool((eigenvalues.certify(S, top + 1e-9) >= top).all())


def test_a_failing_eigenvalue_routine_still_leaves_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.linalg.LinAlgError("no convergence")

    S = symmetric(8)
    exact = float(torch.linalg.eigvalsh(S)[-1])
    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    assert exact <= float(largest_eigenvalue_upper(S)) < math.inf


def test_the_common_bound_covers_every_matrix() -> None:
    for n, count in ((1, 7), (5, 40), (30, 25)):
        A = gaussian(count, n, n + 3) / 16
        S = A @ A.mT
        exact = torch.linalg.eigvalsh(S)[:, -1]
        bound, where = eigenvalues.common_eigenvalue_upper(S, 0.0)
        assert float(exact.max()) <= bound <= float(exact.max()) * (1 + 1e-5)
        assert where == int(exact.argmax())
        assert eigenvalues.common_eigenvalue_upper(S, 1e3) == (1e3 if n == 1 else pytest.approx(1e3), None)
        assert eigenvalues.common_eigenvalue_upper(S, 0.0, float(exact.max()) / 2)[0] == (bound if n == 1 else math.inf)
