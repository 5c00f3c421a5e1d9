"""Norms for training: exact gradients, warm starts; and an estimate that no bound can be made of by accident."""

from __future__ import annotations

import pytest
import torch

from curvverify.numerics.norms import (
    Estimate,
    hadamard_gram_differentiable,
    hadamard_gram_norm_upper,
    largest_eigenvalue_differentiable,
    matrix_norm_upper,
    matrix_row_weighted_norm_upper,
    power_iteration_estimate,
    row_weighted_norm_differentiable,
    spectral_norm_differentiable,
    spectral_norm_upper,
)
from curvverify.ops.linear import Convolution, Dense
from tests.numerics.matrices import gaussian


def check_gradient(function, x: torch.Tensor, count: int = 6) -> None:
    """Central differences in random directions."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x)
    for k in range(count):
        d = gaussian(*x.shape, seed=100 + k)
        h = 1e-6
        numeric = float(function(x.detach() + h * d) - function(x.detach() - h * d)) / (2 * h)
        assert numeric == pytest.approx(float((gradient * d).sum()), rel=1e-5, abs=1e-7)


def conv(weight: torch.Tensor) -> Convolution:
    return Convolution(weight, None, (2, 2), (1, 1), (1, 1), 1, (6, 6), (3, 3))


def test_matrix_gradient() -> None:
    W = gaussian(5, 7)
    check_gradient(lambda x: spectral_norm_differentiable(Dense(x), (7,), iterations=400).value, W)
    found = spectral_norm_differentiable(Dense(W), (7,), iterations=400)
    assert float(found.value) == pytest.approx(float(matrix_norm_upper(W)), rel=1e-10)


def test_convolution_gradient() -> None:
    W = gaussian(3, 2, 3, 3)
    check_gradient(lambda x: spectral_norm_differentiable(conv(x), (2, 6, 6), iterations=600).value, W)
    found = spectral_norm_differentiable(conv(W), (2, 6, 6), iterations=600)
    assert float(found.value) == pytest.approx(spectral_norm_upper(conv(W), (2, 6, 6)), rel=1e-8)


def test_warm_start_converges_over_steps_and_keeps_the_type() -> None:
    W = gaussian(20, 30).float()
    exact, state = float(matrix_norm_upper(W)), None
    for _ in range(300):
        found = spectral_norm_differentiable(Dense(W), (30,), state)
        state = found.state
        assert float(found.value) <= exact * (1 + 1e-6)
    assert found.value.dtype == torch.float32
    assert not state.requires_grad
    assert float(found.value) == pytest.approx(exact, rel=1e-4)


def test_eigenvalue_gradient_and_batches() -> None:
    A = gaussian(3, 6, 6)
    S = A + A.mT
    check_gradient(lambda x: largest_eigenvalue_differentiable((x + x.mT) / 2).value.sum(), S)
    positive = A @ A.mT
    found = largest_eigenvalue_differentiable(positive, torch.ones(3, 6).double(), iterations=2000)
    assert torch.allclose(found.value, torch.linalg.eigvalsh(positive)[:, -1], rtol=1e-9)
    assert found.state.shape == (3, 6)


def test_curvature_norm_gradients() -> None:
    G, W = gaussian(4, 8), gaussian(8, 5, seed=1)
    check_gradient(lambda x: hadamard_gram_differentiable(x, W).value, G)
    check_gradient(lambda x: hadamard_gram_differentiable(G, x).value, W)
    check_gradient(lambda x: row_weighted_norm_differentiable(x).value, W)
    assert float(hadamard_gram_differentiable(G, W).value) == pytest.approx(float(hadamard_gram_norm_upper(G, W)))
    assert float(row_weighted_norm_differentiable(W).value) == pytest.approx(float(matrix_row_weighted_norm_upper(W)))


def test_an_estimate_is_not_a_number() -> None:
    W = gaussian(10, 12)
    found = power_iteration_estimate(Dense(W), (12,), iterations=5)
    assert isinstance(found, Estimate)
    assert found.value <= float(matrix_norm_upper(W))
    assert found.iterations == 5
    with pytest.raises(TypeError):
        _ = found > 1.0  # type: ignore[operator]
    with pytest.raises(TypeError):
        float(found)  # type: ignore[arg-type]


def test_zero_operators_have_finite_gradients() -> None:
    W = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    found = spectral_norm_differentiable(Dense(W), (4,))
    (gradient,) = torch.autograd.grad(found.value, W)
    assert float(found.value.detach()) == 0.0
    assert bool(gradient.isfinite().all())
