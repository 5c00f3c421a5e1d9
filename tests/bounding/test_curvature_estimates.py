"""Curvature estimates on data against exact Hessians."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvverify.bounding.constants.estimates import (
    CrossEntropy,
    CurvatureEstimates,
    Function,
    Margin,
    Pair,
    batch_size,
    curvature_estimates,
    kinks,
    lanczos,
    ritz,
)
from curvverify.errors import UnsupportedModelError, UsageError
from curvverify.graph import load
from curvverify.graph.layers import Graph
from curvverify.numerics.norms import Estimate
from curvverify.types import Deadline


def network(*layers: nn.Module, shape: tuple[int, ...] = (1, 6), seed: int = 0) -> Graph:
    torch.manual_seed(seed)
    module = nn.Sequential(*layers)
    for p in module.parameters():
        nn.init.normal_(p, std=0.7)
    return load(module, shapes=shape, check=False).graph


def smooth(seed: int = 0) -> Graph:
    return network(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 4), seed=seed)


def convolutional() -> Graph:
    layers = (nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    return network(*layers, shape=(1, 2, 4, 4))


def samples(graph: Graph, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *graph.input_shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def exact(graph: Graph, x: Tensor, function: Function) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian norms from dense Hessians, one sample after the other."""
    gradients, hessians = [], []
    for number, point in enumerate(x):

        def f(z: Tensor, number: int = number) -> Tensor:
            out = graph(z.reshape(1, *graph.input_shape)).flatten()
            match function:
                case Pair(y, t):
                    return out[y] - out[t]
                case CrossEntropy(labels):
                    return nn.functional.cross_entropy(out, labels[number])
                case Margin(labels):
                    own = int(out.argmax() if labels is None else labels[number])
                    rival = max((c for c in range(len(out)) if c != own), key=lambda c: float(out[c].detach()))
                    return out[own] - out[rival]

        gradients.append(torch.autograd.functional.jacobian(f, point.flatten()).norm())
        hessians.append(torch.linalg.matrix_norm(torch.autograd.functional.hessian(f, point.flatten()), 2))
    return torch.stack(gradients), torch.stack(hessians)


LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 1])
FUNCTIONS = [Pair(2, 0), CrossEntropy(LABELS), Margin(), Margin(LABELS)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("make", [smooth, convolutional])
def test_against_dense_hessians(make: object, function: Function) -> None:
    """With as many products as dimensions everything is exact; with fewer it is a lower bound, near the norm."""
    graph = make()  # type: ignore[operator]
    x = samples(graph, 7)
    gradients, hessians = exact(graph, x, function)
    full = curvature_estimates(graph, x, function, iterations=graph.nodes[0].size)
    torch.testing.assert_close(full.gradient_norm_estimate.values, gradients, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(full.hessian_norm_estimate.values, hessians, rtol=1e-9, atol=0.0)
    normalised = hessians / (gradients + 1e-6)
    torch.testing.assert_close(full.normalised_curvature_estimate.values, normalised, rtol=1e-9, atol=0.0)
    few = curvature_estimates(graph, x, function, iterations=4)
    ratio = few.hessian_norm_estimate.values / hessians
    assert (ratio <= 1 + 1e-12).all()
    assert (ratio >= 0.7).all()
    assert (few.rayleigh_quotient_estimate.values <= few.hessian_norm_estimate.values * (1 + 1e-12)).all()
    assert (full.residual_estimate.values <= 1e-9 * hessians).all()


def test_rayleigh_quotient_is_that_of_power_iteration() -> None:
    g = torch.Generator().manual_seed(0)
    H = torch.randn(3, 9, 9, generator=g, dtype=torch.float64)
    H = H + H.mT
    start = torch.randn(9, generator=g, dtype=torch.float64)
    v = start = (start / start.norm()).expand(3, 9)
    for _ in range(5):
        v = (H @ v.unsqueeze(2)).squeeze(2)
        v = v / v.norm(dim=1, keepdim=True)
    expected = (v * (H @ v.unsqueeze(2)).squeeze(2)).sum(1).abs()
    norm, rayleigh, residual = ritz(*lanczos(lambda v: (H @ v.unsqueeze(2)).squeeze(2), start, 6))
    torch.testing.assert_close(rayleigh, expected, rtol=1e-9, atol=0.0)
    values = torch.linalg.eigvalsh(H)
    assert (norm >= rayleigh).all()
    assert ((values.abs() - norm.unsqueeze(1)).abs().amin(1) <= residual + 1e-12).all()


def test_two_eigenvalues_of_opposite_sign() -> None:
    """Power iteration ends between them; the Krylov space does not."""
    H = torch.diag(torch.tensor([2.0, -2.0, 0.5, 0.0], dtype=torch.float64))
    start = torch.full((1, 4), 0.5, dtype=torch.float64)
    norm, rayleigh, _ = ritz(*lanczos(lambda v: v @ H, start, 12))
    assert float(norm) == pytest.approx(2.0, rel=1e-12)
    assert float(rayleigh) < 0.1


def values(found: CurvatureEstimates) -> list[Tensor]:
    return [
        found.gradient_norm_estimate.values,
        found.hessian_norm_estimate.values,
        found.rayleigh_quotient_estimate.values,
        found.residual_estimate.values,
        found.normalised_curvature_estimate.values,
    ]


@pytest.mark.parametrize("size", [1, 3, 6, 7, 100])
def test_batches_change_nothing(size: int) -> None:
    """No padding, whatever the batch: 7 samples in batches of 3 are 3, 3 and 1."""
    graph = smooth()
    x = samples(graph, 7)
    one = next(m for m in range(2000, 10**7, 100) if batch_size(graph, 5, m) >= size)
    size = batch_size(graph, 5, one)
    seen: list[tuple[int, int]] = []
    whole = curvature_estimates(graph, x, CrossEntropy(LABELS), iterations=5)
    parts = curvature_estimates(
        graph, x, CrossEntropy(LABELS), iterations=5, memory=one, progress=lambda *a: seen.append(a)
    )
    assert [done for done, _ in seen] == [min(k, 7) for k in range(size, 7 + size, size)]
    assert {total for _, total in seen} == {7}
    for a, b in zip(values(whole), values(parts), strict=True):
        assert a.shape == (7,)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_statistics() -> None:
    graph = smooth()
    found = curvature_estimates(graph, samples(graph, 7), Pair(0, 1), iterations=6).normalised_curvature_estimate
    numbers = found.values.tolist()
    mean = sum(numbers) / 7
    assert found.count == 7
    assert isinstance(found.mean_estimate, Estimate)
    assert found.mean_estimate.value == pytest.approx(mean, rel=1e-14)
    deviation = math.sqrt(sum((n - mean) ** 2 for n in numbers) / 6)
    assert found.deviation_estimate.value == pytest.approx(deviation, rel=1e-12)
    single = curvature_estimates(graph, samples(graph, 1), Pair(0, 1), iterations=6).normalised_curvature_estimate
    assert math.isnan(single.deviation_estimate.value)


def test_deadline_keeps_what_is_done() -> None:
    graph = smooth()
    found = curvature_estimates(
        graph, samples(graph, 7), Pair(0, 1), iterations=3, memory=1, deadline=Deadline.after(-1.0)
    )
    assert found.samples == 7
    assert [v.shape for v in values(found)] == [(1,)] * 5


def test_float32() -> None:
    graph = smooth()
    x = samples(graph, 7)
    double = curvature_estimates(graph, x, Margin(), iterations=6)
    single = curvature_estimates(graph.to(torch.float32), x.float(), Margin(), iterations=6)
    for a, b in zip(values(double)[:2], values(single)[:2], strict=True):
        assert b.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0.0)


def test_affine_network() -> None:
    graph = network(nn.Linear(6, 3))
    found = curvature_estimates(graph, samples(graph, 3), Pair(0, 1), iterations=4)
    assert found.hessian_norm_estimate.values.tolist() == [0.0] * 3
    assert (found.gradient_norm_estimate.values > 0).all()


@pytest.mark.parametrize(
    ("activation", "kinked"),
    [
        *((a, True) for a in (nn.ReLU(), nn.LeakyReLU(), nn.PReLU(8), nn.ELU(0.5), nn.Hardswish(), nn.Hardtanh())),
        *((a, False) for a in (nn.Tanh(), nn.ELU(), nn.CELU(0.3), nn.Softplus(50.0), nn.SiLU(), nn.Softmax(-1))),
        *((a, False) for a in (nn.LayerNorm(8), nn.Mish())),
    ],
    ids=str,
)
def test_kinks(activation: nn.Module, kinked: bool) -> None:
    graph = network(nn.Linear(6, 8), activation, nn.Linear(8, 3))
    assert bool(kinks(graph)) == kinked
    if not kinked:
        found = curvature_estimates(graph, samples(graph, 2), Pair(0, 1), iterations=3)
        assert not found.kinks
        return
    (node,) = kinks(graph)
    with pytest.raises(UnsupportedModelError, match=repr(node.name)):
        curvature_estimates(graph, samples(graph, 2), Pair(0, 1))
    found = curvature_estimates(graph, samples(graph, 2), Pair(0, 1), almost_everywhere=True)
    assert found.kinks == (node.name,)


def test_max_pool_is_named() -> None:
    graph = network(
        nn.Conv2d(1, 2, 3), nn.Softplus(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2), shape=(1, 1, 4, 4)
    )
    with pytest.raises(UnsupportedModelError, match="kinks"):
        curvature_estimates(graph, samples(graph, 2), Pair(0, 1))


def test_usage() -> None:
    graph = smooth()
    x = samples(graph, 3)
    for bad, function in (
        (x[:, 0], Pair(0, 1)),
        (x[:0], Pair(0, 1)),
        (x.half(), Pair(0, 1)),
        (x, Pair(0, 4)),
        (x, CrossEntropy(torch.tensor([0, 1]))),
        (x, Margin(torch.tensor([0, 1, 9]))),
        (x, Margin(torch.tensor([0.0, 1.0, 2.0]))),
    ):
        with pytest.raises(UsageError):
            curvature_estimates(graph, bad, function)


def test_reference_network(shared_path: Path) -> None:
    """The curvature of every margin is at or below the exact bound of the two-layer formula, and not far below."""
    data = shared_path / "data" / "mnist.npz"
    if not data.exists():
        pytest.skip(f"no {data}")
    with np.load(data) as arrays:
        x = torch.tensor(arrays["x_test"][:100].reshape(100, 784) / 255.0)
        labels = torch.tensor(arrays["y_test"][:100].astype(np.int64))
    graph = load(shared_path / "models" / "crc_mnist_2x1024_softplus.onnx", check=False).graph
    x = x.reshape(100, *graph.input_shape)
    found = curvature_estimates(graph, x, Margin(), iterations=10)
    hessian = found.hessian_norm_estimate
    assert hessian.values.max() <= 0.86256  # the largest of the 90 pairs, REFERENCE.md
    assert hessian.mean_estimate.value >= 0.1
    loss = curvature_estimates(graph, x, CrossEntropy(labels), iterations=10)
    assert 0.05 <= loss.normalised_curvature_estimate.mean_estimate.value <= 50.0
