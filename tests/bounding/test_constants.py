"""Constants where they are known: exact values, the papers' special cases, and what every formula must respect."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import curvverify
from curvverify.bounding.constants.analysis import pair_constants
from curvverify.bounding.constants.diagonal import hessian_diagonal
from curvverify.bounding.constants.layerwise import layerwise_estimate
from curvverify.bounding.constants.maps import CentredMaps
from curvverify.bounding.constants.report import Norm, analysis_over, with_pair
from curvverify.bounding.constants.setting import Structure
from curvverify.bounding.region import Region
from curvverify.errors import UsageError
from curvverify.graph import load
from curvverify.graph.layers import Graph
from curvverify.ops.linear import Dense
from curvverify.ops.product import Product
from curvverify.types import Ball
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import Builder, residual_mlp


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hessian_at(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Hessian (n, n) by autograd."""
    found = torch.autograd.functional.hessian(f, x)
    assert isinstance(found, Tensor)
    return found.reshape(x.numel(), x.numel())


def two_layers(activation: str, width: int = 12, outputs: int = 3, seed: int = 0) -> tuple[Graph, Tensor, Tensor]:
    builder = Builder((1, 5), seed)
    last = builder.dense(builder.activate(SAMPLES[activation], builder.dense(0, width)), outputs)
    inner, outer = builder.nodes[1].op.weight, builder.nodes[last].op.weight  # type: ignore[attr-defined]
    return builder.graph(), inner, outer


def test_affine_networks_have_their_norm_and_no_curvature() -> None:
    builder = Builder((1, 6), 1)
    builder.dense(builder.dense(0, 7), 4)
    graph = builder.graph()
    matrix = torch.autograd.functional.jacobian(lambda x: graph(x.unsqueeze(0))[0].flatten(), randn(1, 6))
    assert isinstance(matrix, Tensor)
    output = curvverify.curvature(graph).output
    exact = float(torch.linalg.matrix_norm(matrix.reshape(4, 6), 2))
    assert exact <= output.lipschitz_upper <= exact * (1 + 1e-8)
    assert (output.curvature_upper, output.third_order_upper) == (0.0, 0.0)


@pytest.mark.parametrize(("activation", "low", "high"), [("Softplus", 0.0, 0.25), ("Tanh", -1.0, 1.0)])
def test_two_layers_are_exact(activation: str, low: float, high: float) -> None:
    graph, inner, outer = two_layers(activation)
    if activation == "Tanh":
        high = 4.0 / (3.0 * math.sqrt(3.0))
        low = -high
    report = curvverify.curvature(graph, pair=(2, 0))
    w = outer[2] - outer[0]
    upper = torch.linalg.eigvalsh((inner.T * torch.maximum(w * low, w * high)) @ inner)[-1]
    lower = torch.linalg.eigvalsh((inner.T * torch.minimum(w * low, w * high)) @ inner)[0]
    assert report.output.eigenvalue_upper == pytest.approx(float(upper), rel=1e-7)
    assert report.output.eigenvalue_lower == pytest.approx(float(lower), rel=1e-7)
    assert report.output.eigenvalue_upper >= float(upper) * (1 - 1e-12)
    assert report.output.formula.endswith("two layers, exact")


def test_quadratics_are_exact() -> None:
    """x^T A x by a product of x with A x: the Hessian is A + A^T everywhere."""
    builder = Builder((1, 4), 3)
    product = builder.add(Product(), 0, builder.dense(0, 4))
    builder.dense(product, 1)
    graph = builder.graph()
    x = torch.zeros(1, 4, dtype=torch.float64)
    hessian = hessian_at(lambda x: graph(x.unsqueeze(0)).sum(), x)
    report = curvverify.curvature(graph)
    assert report.output.lipschitz_upper == math.inf
    assert float(torch.linalg.matrix_norm(hessian, 2)) <= report.output.curvature_upper < 20.0
    assert report.output.third_order_upper == 0.0


@pytest.mark.parametrize("slack", [0.0, 0.3])
def test_sandwich_blocks_are_one_lipschitz(slack: float) -> None:
    """x - 2 W^T T^-1 sigma(W x) with W W^T <= T, and the sum of their curvatures over depth."""

    class Sandwich(nn.Module):
        def __init__(self, seed: int):
            super().__init__()
            W = randn(8, 6, seed=seed)
            T = (W @ W.T).abs().sum(1) * (1 + slack)
            self.inner, self.outer = nn.Linear(6, 8).double(), nn.Linear(8, 6, bias=False).double()
            with torch.no_grad():
                self.inner.weight.copy_(W)
                self.outer.weight.copy_(-2.0 * W.T / T)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.outer(torch.tanh(self.inner(x)))

    one = load(nn.Sequential(Sandwich(0)), shapes=(1, 6)).graph
    four = load(nn.Sequential(*(Sandwich(i) for i in range(4))), shapes=(1, 6)).graph
    single, chain = curvverify.curvature(one).output, curvverify.curvature(four).output
    assert 1.0 <= single.lipschitz_upper <= chain.lipschitz_upper <= 1.0 + 1e-9
    each = [curvverify.curvature(load(nn.Sequential(Sandwich(i)), shapes=(1, 6)).graph).output for i in range(4)]
    assert chain.curvature_upper <= 1.05 * sum(c.curvature_upper for c in each)  # each alone has sharper formulas


def test_infinite_constants_name_the_first_node() -> None:
    builder = Builder((1, 3), 0)
    relu = builder.activate(SAMPLES["Relu"], builder.dense(0, 4))
    builder.activate(SAMPLES["Exp"], builder.dense(relu, 2))
    report = curvverify.curvature(builder.graph())
    first, second = (node for node in report.nodes if node.reason)
    assert first.op == "Relu"
    assert math.isfinite(first.lipschitz_upper)
    assert first.curvature_upper == math.inf
    assert second.op == "Exp"
    assert second.lipschitz_upper == math.inf


def test_stable_kinks_are_affine() -> None:
    """A ReLU that the box keeps on one side has no curvature."""
    first = nn.Linear(2, 3).double()
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.fill_(5.0)
    graph = load(nn.Sequential(first, nn.ReLU(), nn.Linear(3, 1).double()), shapes=(1, 2)).graph
    lower, upper = torch.zeros(2), torch.ones(2)
    assert curvverify.curvature(graph, (lower, upper)).output.curvature_upper == 0.0
    assert curvverify.curvature(graph).output.curvature_upper == math.inf


def test_fixed_inputs_do_not_count() -> None:
    graph = residual_mlp(SAMPLES["Tanh"], 0)
    lower, upper = -torch.ones(4), torch.ones(4)
    upper[1:] = lower[1:]
    report = curvverify.curvature(graph, (lower, upper))
    x = lower.double().reshape(1, 1, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(graph(x)[0, 0, 0], x)
    assert abs(float(gradient[0, 0, 0])) <= report.output.lipschitz_upper
    assert report.nodes[0].lipschitz_upper == 1.0
    still = curvverify.curvature(graph, (lower, lower)).output
    assert (still.lipschitz_upper, still.curvature_upper) == (0.0, 0.0)


def test_small_balls_approach_the_point() -> None:
    """As the ball shrinks, the constants fall to the norms of the Jacobian and of the Hessian at its centre."""
    graph, _, _ = two_layers("Tanh", outputs=1)
    x = randn(1, 5, seed=7)
    f = lambda x: graph(x.unsqueeze(0)).sum()  # noqa: E731
    gradient = float(torch.autograd.functional.jacobian(f, x).norm())
    hessian = hessian_at(f, x)
    near = curvverify.curvature(graph, Ball(x, 1e-6)).output
    assert near.lipschitz_upper == pytest.approx(gradient, rel=1e-4)
    assert near.curvature_upper == pytest.approx(float(torch.linalg.matrix_norm(hessian, 2)), rel=1e-3)
    assert near.eigenvalue_lower == pytest.approx(min(0.0, float(torch.linalg.eigvalsh(hessian)[0])), rel=1e-3)


def test_deep_balls_approach_the_point() -> None:
    graph = residual_mlp(SAMPLES["Softplus"], 2)
    graph = with_pair(graph, (0, 1))
    x = randn(1, 4, seed=3)
    hessian = hessian_at(lambda x: graph(x.unsqueeze(0)).sum(), x)
    near = curvverify.curvature(graph, Ball(x, 1e-6)).output
    exact = float(torch.linalg.matrix_norm(hessian, 2))
    assert exact <= near.curvature_upper
    assert near.curvature_upper < curvverify.curvature(graph, Ball(x, 1.0)).output.curvature_upper


def test_pairs_together_are_pairs_alone() -> None:
    graph, _, _ = two_layers("Sigmoid")
    analysis = analysis_over(Structure(graph), Region.everywhere(graph.input_shape))
    pairs = [(0, 1), (1, 0), (2, 1)]
    together = pair_constants(analysis, pairs)
    for i, pair in enumerate(pairs):
        alone = curvverify.curvature(graph, pair=pair).output
        assert float(together.upper[i]) == pytest.approx(alone.eigenvalue_upper, rel=1e-7)
        assert float(together.lower[i]) == pytest.approx(alone.eigenvalue_lower, rel=1e-7)
        assert float(together.lipschitz[i]) == pytest.approx(alone.lipschitz_upper, rel=1e-7)
    assert float(together.upper[0]) == pytest.approx(-float(together.lower[1]), rel=1e-9)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_rows_know_of_the_whole_output(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks too large for the loop transformation: a row is not worse than its norm times the whole output."""
    monkeypatch.setattr(CentredMaps, "build", lambda setting, targets: None)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(20, 20), nn.Tanh()) for _ in range(4)]
    graph = load(nn.Sequential(*layers, nn.Linear(20, 3)), shapes=(1, 20)).graph
    analysis = analysis_over(Structure(graph), Region.everywhere(graph.input_shape), norm)
    found = pair_constants(analysis, [(0, 1), (2, 0)]).lipschitz
    whole = analysis.bends.known[graph.output].lipschitz.value
    last = graph.nodes[graph.output]
    assert isinstance(last.op, Dense)
    rows = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    before = analysis.bends.known[last.inputs[0]].lipschitz.value
    assert bool((found <= 2.0**0.5 * whole * (1.0 + 1e-9)).all())
    assert bool((found <= (rows @ last.op.weight).norm(dim=1) * before * (1.0 + 1e-9)).all())
    x = randn(400, *graph.input_shape).requires_grad_(True)
    for row, bound in zip(rows, found, strict=True):
        (gradient,) = torch.autograd.grad((graph(x).flatten(1) @ row).sum(), x)
        size = gradient.flatten(1).norm(dim=1) if norm == "l2" else gradient.flatten(1).abs().sum(1)
        assert float(size.max()) <= float(bound)


@pytest.mark.parametrize("name", ["Tanh", "Softplus", "Silu"])
def test_diagonal_dominates_the_hessian(name: str) -> None:
    graph = residual_mlp(SAMPLES[name], 5)
    lower, upper = randn(4, seed=1) - 0.2, randn(4, seed=1) + torch.tensor([0.2, 0.05, 0.3, -0.2], dtype=torch.float64)
    row = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).reshape(1, 3)
    q = hessian_diagonal(graph, (lower, upper), row)
    assert q[0, 3] == 0.0
    assert bool((q >= 0).all())
    f = lambda x: (graph(x.unsqueeze(0))[0] * row).sum()  # noqa: E731
    worst = math.inf
    for seed in range(50):
        t = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x = (lower + (upper - lower) * (t.round() if seed % 2 else t)).reshape(1, 4)
        hessian = hessian_at(f, x)[:3, :3] + torch.diag(q.flatten()[:3])
        worst = min(worst, float(torch.linalg.eigvalsh(hessian)[0]))
    assert worst >= -1e-9


def test_layerwise_figure_of_a_scalar_chain() -> None:
    """For scalar layers it bounds |f''| / |f'|, and for one sigmoid of w x it is w."""
    first = nn.Linear(1, 1).double()
    with torch.no_grad():
        first.weight.fill_(3.0)
    graph = load(nn.Sequential(first, nn.Sigmoid()), shapes=(1, 1)).graph
    analysis = analysis_over(Structure(graph), Region.everywhere(graph.input_shape))
    assert layerwise_estimate(analysis).value == pytest.approx(3.0, rel=0.02)
    silu = load(nn.Sequential(nn.Linear(1, 1), nn.SiLU()).double(), shapes=(1, 1)).graph
    assert layerwise_estimate(analysis_over(Structure(silu), Region.everywhere((1, 1)))).value == math.inf


@pytest.mark.parametrize("pair", [(0, 0), (-1, 1), (0, 3)])
def test_wrong_pairs(pair: tuple[int, int]) -> None:
    graph, _, _ = two_layers("Tanh")
    with pytest.raises(UsageError, match="two different outputs between 0 and 2"):
        curvverify.curvature(graph, pair=pair)


def test_wrong_regions() -> None:
    graph, _, _ = two_layers("Tanh")
    with pytest.raises(UsageError, match="4 entries, but the network's input has 5"):
        curvverify.curvature(graph, Ball(torch.zeros(4), 1.0))
    with pytest.raises(UsageError, match="give a ball"):
        curvverify.curvature(graph, anchored=True)
    with pytest.raises(UsageError, match="at least 0"):
        curvverify.curvature(graph, Ball(torch.zeros(5), -1.0))
    with pytest.raises(UsageError, match="empty"):
        curvverify.curvature(graph, (torch.ones(5), torch.zeros(5)))
    with pytest.raises(UsageError, match="shapes="):
        curvverify.curvature(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="unknown norm"):
        curvverify.curvature(graph, norm="l1")  # type: ignore[arg-type]
