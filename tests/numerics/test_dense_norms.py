"""Norms of matrices: never below the truth, next to it, and inf where an entry is not finite."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import pytest
import torch

from curvverify.numerics.norms import (
    gram_iteration_upper,
    hadamard_gram_norm_upper,
    matrix_column_norms_upper,
    matrix_frobenius_upper,
    matrix_induced_norm_upper,
    matrix_infinity_norm_upper,
    matrix_norm_upper,
    matrix_one_norm_upper,
    matrix_row_norms_upper,
    matrix_row_weighted_norm_upper,
    matrix_schur_upper,
    matrix_weighted_norm_upper,
)
from tests.numerics.matrices import HARD, exact_norm, gaussian, scaled_norm

UPPER = [matrix_norm_upper, gram_iteration_upper, matrix_frobenius_upper, matrix_schur_upper]


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("bound", UPPER)
def test_never_below_the_truth(name: str, bound) -> None:
    W = HARD[name]
    value, exponent = scaled_norm(W)
    upper = Fraction(float(bound(W)))
    assert upper >= Fraction(value * (1 - 1e-12)) * Fraction(2) ** exponent


@pytest.mark.parametrize("name", HARD)
def test_spectral_norm_is_tight(name: str) -> None:
    W = HARD[name]
    value, exponent = scaled_norm(W)
    upper = Fraction(float(matrix_norm_upper(W)))
    subnormal = Fraction(2) ** -1073
    assert upper <= Fraction(value * (1 + 2e-9)) * Fraction(2) ** exponent + subnormal


@pytest.mark.parametrize("seed", range(4))
def test_against_arbitrary_precision(seed: int) -> None:
    W = gaussian(5, 4, seed=seed) * 10.0 ** (5 * seed)
    exact = exact_norm(W)
    for bound in UPPER:
        assert mpmath.mpf(float(bound(W))) >= exact
    assert mpmath.mpf(float(matrix_norm_upper(W))) <= exact * (1 + mpmath.mpf(10) ** -12)


def test_equal_singular_values_in_arbitrary_precision() -> None:
    """Where the computed norm of an orthogonal matrix falls below the exact one, the bound does not."""
    for seed in range(6):
        Q = torch.linalg.qr(gaussian(6, 6, seed=seed)).Q
        assert mpmath.mpf(float(matrix_norm_upper(Q))) >= exact_norm(Q)


def test_gram_iteration_falls_to_the_norm() -> None:
    W = gaussian(60, 50)
    exact = float(torch.linalg.svdvals(W)[0])
    ratios = [float(gram_iteration_upper(W, k)) / exact for k in range(14)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(ratios))
    assert all(1 <= r <= 50 ** (0.5 ** (k + 1)) * (1 + 1e-12) for k, r in enumerate(ratios))
    assert ratios[-1] < 1.001


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_unbounded(bad: float) -> None:
    W = gaussian(2, 6, 7)
    W[1, 2, 3] = bad
    for bound in (*UPPER, matrix_one_norm_upper, matrix_infinity_norm_upper, matrix_row_weighted_norm_upper):
        found = bound(W)
        assert bool(found[0].isfinite())
        assert float(found[1]) == math.inf
    assert float(matrix_row_norms_upper(W)[1, 2]) == math.inf
    assert float(matrix_column_norms_upper(W)[1, 3]) == math.inf
    assert float(matrix_weighted_norm_upper(gaussian(6, 7), left=W[1, :, 3])) == math.inf
    assert float(hadamard_gram_norm_upper(W[0].T, W[1])) == math.inf
    for p in (1, 2, math.inf):
        for q in (1, 2, math.inf):
            assert float(matrix_induced_norm_upper(W, p, q)[1]) == math.inf


def test_zero_and_empty_matrices() -> None:
    for shape in ((3, 4), (1, 1), (2, 5, 5), (0, 3), (3, 0)):
        for bound in (*UPPER, matrix_weighted_norm_upper, matrix_row_weighted_norm_upper):
            assert float(bound(torch.zeros(shape)).max()) == 0.0
    assert float(matrix_weighted_norm_upper(gaussian(3, 4), left=torch.zeros(3))) == 0.0


def test_batches_and_narrow_types() -> None:
    W = gaussian(2, 3, 6, 5)
    found = matrix_norm_upper(W)
    assert found.shape == (2, 3)
    assert torch.allclose(found, torch.linalg.svdvals(W)[..., 0], rtol=1e-12)
    narrow = W[0, 0].float()
    assert float(matrix_norm_upper(narrow)) == float(matrix_norm_upper(narrow.double()))
    complex_matrix = torch.complex(W[0, 0], W[0, 1])
    exact = float(torch.linalg.svdvals(complex_matrix)[0])
    assert exact * (1 - 1e-14) <= float(matrix_norm_upper(complex_matrix)) <= exact * (1 + 1e-12)


def test_perturbations_are_added() -> None:
    W = gaussian(4, 5)
    assert float(matrix_norm_upper(W, 0.5)) >= float(torch.linalg.svdvals(W)[0]) + 0.5


def test_rounded_sums_in_exact_arithmetic() -> None:
    W = gaussian(8, 9)
    rows = [[Fraction(float(x)) for x in row] for row in W]
    assert Fraction(float(matrix_infinity_norm_upper(W))) >= max(sum(map(abs, row)) for row in rows)
    assert Fraction(float(matrix_one_norm_upper(W))) >= max(sum(map(abs, c)) for c in zip(*rows, strict=True))
    for norm, row in zip(matrix_row_norms_upper(W), rows, strict=True):
        assert Fraction(float(norm)) ** 2 >= sum(x * x for x in row)
        assert float(norm) <= math.sqrt(float(sum(x * x for x in row))) * (1 + 1e-13)


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("q", [1, 2, math.inf])
def test_induced_norms(p: float, q: float) -> None:
    """Against all sign vectors and unit vectors for l_inf and l_1, samples for l_2."""
    W = gaussian(5, 6)
    signs = torch.cartesian_prod(*([torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6))
    points = {1: torch.eye(6, dtype=torch.float64), 2: gaussian(4000, 6), math.inf: signs}[p]
    points = points / torch.linalg.vector_norm(points, ord=p, dim=1, keepdim=True)
    attained = float(torch.linalg.vector_norm(points @ W.T, ord=q, dim=1).max())
    upper = float(matrix_induced_norm_upper(W, p, q))
    assert upper >= attained * (1 - 1e-14)
    if p == 1 or (p, q) == (math.inf, math.inf):
        assert upper <= attained * (1 + 1e-12)
    if (p, q) == (2, math.inf):
        assert upper == float(matrix_row_norms_upper(W).max())


def test_induced_norms_are_named() -> None:
    with pytest.raises(ValueError, match="l_3"):
        matrix_induced_norm_upper(gaussian(2, 2), 3, 2)


@pytest.mark.parametrize("scale", [1.0, 1e300, 1e-300])
def test_weighted_norms(scale: float) -> None:
    W, left, right = gaussian(7, 9), gaussian(7, seed=1), gaussian(9, seed=2)
    exact = float(torch.linalg.svdvals(left[:, None] * W * right)[0])
    upper = float(matrix_weighted_norm_upper(W * scale, left / scale, right))
    assert exact * (1 - 1e-14) <= upper <= exact * (1 + 1e-11)
    tiny = float(matrix_weighted_norm_upper(W * 1e-200, left * 1e-200, right))
    assert 0.0 < tiny <= 5e-324
    assert float(matrix_weighted_norm_upper(W * 1e200, left * 1e200, right)) == math.inf


def test_row_weighted_norm() -> None:
    W = gaussian(7, 9)
    exact = float(torch.linalg.svdvals(W.norm(dim=1, keepdim=True) * W)[0])
    assert exact * (1 - 1e-14) <= float(matrix_row_weighted_norm_upper(W)) <= exact * (1 + 1e-11)


@pytest.mark.parametrize("scale", [1.0, 1e120, 1e-120])
def test_hadamard_gram_norm(scale: float) -> None:
    """Against the matrix with the columns g_i (x) w_i."""
    G, W = gaussian(4, 8), gaussian(8, 6, seed=1)
    columns = torch.stack([torch.outer(G[:, i], W[i]).flatten() for i in range(8)], 1)
    exact = float(torch.linalg.svdvals(columns)[0]) * scale
    upper = float(hadamard_gram_norm_upper(G * scale, W))
    assert exact * (1 - 1e-13) <= upper <= exact * (1 + 1e-11)
