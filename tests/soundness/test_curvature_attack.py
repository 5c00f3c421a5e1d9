"""The attacks find known constants, agree with nested automatic differentiation, and do refute what is too small."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from curvverify.graph.layers import Graph
from curvverify.ops.elementwise.elu import Elu
from curvverify.ops.linear import Dense
from tests.soundness.curvature_attack import (
    Attained,
    Box,
    Effort,
    Space,
    Sphere,
    eigenvalues,
    norms,
    quotients,
)
from tests.soundness.curvature_exact import exact_norm, refuted
from tests.soundness.curvature_graphs import FAMILIES, sample
from tests.soundness.curvature_series import directional, unit, with_rows
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import Builder

THOROUGH = Effort(points=200, directions=8, starts=4, steps=90)


def chain(name: str, *weights: Tensor) -> Graph:
    """W_k sigma(... sigma(W_1 x)) without biases."""
    b = Builder((1, weights[0].shape[1]), 0)
    i = b.add(Dense(weights[0]), 0, shape=(1, len(weights[0])))
    for W in weights[1:]:
        i = b.add(Dense(W), b.add(SAMPLES[name], i), shape=(1, len(W)))
    return b.graph()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(a: float | Tensor, b: float | Tensor, within: float = 1e-6) -> bool:
    return abs(float(a) - float(b)) <= within * (1.0 + abs(float(b)))


def nested(graph: Graph, x: Tensor, p: Tensor, order: int) -> Tensor:
    """What `directional` computes, by forward mode inside forward mode."""

    def values(y: Tensor) -> Tensor:
        return torch.cat([v.flatten(1) for v in graph.values(y.reshape(-1, *graph.input_shape))], 1)

    function = values
    for _ in range(order):
        function = (lambda f: lambda y: jvp(f, (y,), (p,))[1])(function)
    return function(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # inside torch.func
@pytest.mark.parametrize("seed", range(2 * len(FAMILIES)))
def test_series_agree_with_nested_differentiation(seed: int) -> None:
    graph = sample(seed).graph
    n = graph.nodes[0].size
    x, p = randn(5, n), unit(randn(5, n, seed=1))
    for order in (0, 1, 2, 3):
        mine, theirs = directional(graph, x, p, order), nested(graph, x, p, order)
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-10 * float(theirs.abs().max()))


@pytest.mark.parametrize("seed", range(len(FAMILIES)))
def test_series_agree_with_fifty_digits(seed: int) -> None:
    graph = sample(seed).graph
    n = graph.nodes[0].size
    x, p = randn(1, n, seed=2), unit(randn(1, n, seed=3))
    for order in (1, 2, 3):
        mine = directional(graph, x, p, order)[0, -graph.nodes[-1].size :].norm()
        assert same(mine, exact_norm(graph, graph.output, x[0], p[0], order), 1e-11)


def test_quadratic() -> None:
    """f = a . (W x)^2: the Hessian is 2 W^T diag(a) W everywhere, the third derivative 0."""
    W, a = randn(6, 4), randn(1, 6, seed=1)
    graph = chain("Power", W, a)
    hessian = 2.0 * W.T @ (a.T * W)
    spectrum = torch.linalg.eigvalsh(hessian)
    region = Sphere(randn(4, seed=2), 0.7)
    assert same(norms(graph, region, 2).value[-1], spectrum.abs().max(), 1e-9)
    assert float(norms(graph, region, 3).value[-1]) == 0.0
    top, bottom = eigenvalues(graph, region, torch.ones(1, 1, dtype=torch.float64))
    assert same(top.value[0], spectrum[-1], 1e-9)
    assert same(bottom.value[0], spectrum[0], 1e-9)
    assert same(quotients(graph, region, 1, THOROUGH).value[-1], spectrum.abs().max(), 1e-6)
    anchor = region.centre
    assert same(quotients(graph, region, 1, THOROUGH, anchor=anchor).value[-1], spectrum.abs().max(), 1e-6)


def test_steepest_point_of_a_quadratic_on_a_ball() -> None:
    """f = ||x||^2 / 2 on a ball: the largest gradient norm is ||centre|| + radius, on its border."""
    graph = chain("Power", torch.eye(3, dtype=torch.float64), 0.5 * torch.ones(1, 3, dtype=torch.float64))
    centre = tensor([0.3, -0.4, 0.0])
    assert same(norms(graph, Sphere(centre, 0.25), 1, THOROUGH).value[-1], 0.75)


def test_steepest_point_of_a_quadratic_on_a_box() -> None:
    graph = chain("Power", torch.eye(3, dtype=torch.float64), 0.5 * torch.ones(1, 3, dtype=torch.float64))
    box = Box(tensor([-1.0, 0.2, -0.1]), tensor([0.5, 0.3, 0.4]))
    assert same(norms(graph, box, 1).value[-1], math.sqrt(1.0 + 0.09 + 0.16), 1e-12)


def test_sine_of_a_linear_form() -> None:
    """sin(w . x) on R^n attains |w|, |w|^2 and |w|^3; sums of equal sines in each of several outputs too."""
    w = randn(1, 5)
    graph = chain("Sin", w, tensor([[2.0], [1.0]]))
    for order in (1, 2, 3):
        expected = math.sqrt(5.0) * float(w.norm()) ** order
        assert same(norms(graph, Space(5), order, THOROUGH).value[-1], expected)
        assert same(quotients(graph, Space(5), order - 1, THOROUGH).value[-1], expected, 0.03)


def test_sine_on_a_small_interval() -> None:
    """On [0.2, 0.5] the largest |sin''| is sin(0.5), at the end; |sin'''| is cos(0.2)."""
    graph = chain("Sin", torch.ones(1, 1).double(), torch.ones(1, 1).double())
    box = Box(tensor([0.2]), tensor([0.5]))
    for order, expected in ((1, math.cos(0.2)), (2, math.sin(0.5)), (3, math.cos(0.2))):
        assert same(norms(graph, box, order).value[-1], expected, 1e-12)


def test_two_layers_attain_the_largest_eigenvalue_at_the_origin() -> None:
    """softplus, nonnegative outer weights, no biases: M = lambda_max(W^T diag(w / 4) W), attained at x = 0 only."""
    W, w = randn(7, 4), randn(1, 7, seed=1).abs()
    graph = chain("Softplus", W, w)
    largest = torch.linalg.eigvalsh(0.25 * W.T @ (w.T * W))[-1]
    away = Box(torch.full((4,), -1.0).double(), torch.full((4,), 0.6).double())
    top, _ = eigenvalues(graph, away, torch.ones(1, 1).double(), THOROUGH)
    assert same(top.value[0], largest, 1e-4)
    assert float(top.value[0]) <= float(largest) * (1.0 + 1e-12)
    assert float(norms(graph, away, 2, THOROUGH).value[-1]) <= float(largest) * (1.0 + 1e-12)


@pytest.mark.parametrize(
    ("name", "order", "expected"),
    [
        *[("Sigmoid", k, v) for k, v in ((1, 0.25), (2, 0.0962250449), (3, 0.125))],
        *[("Tanh", k, v) for k, v in ((1, 1.0), (2, 0.7698003589), (3, 2.0))],
        *[("Softplus", k, v) for k, v in ((2, 0.25), (3, 0.0962250449))],
        *[("Gelu", k, v) for k, v in ((1, 1.1289041452), (2, 0.7978845608), (3, 0.7787696351))],
        *[("Silu", k, v) for k, v in ((1, 1.0998393201), (2, 0.5), (3, 0.3081815158))],
        *[("Mish", k, v) for k, v in ((1, 1.0884981613), (2, 0.6442046372), (3, 0.5884120449))],
    ],
)
def test_constants_of_activations(name: str, order: int, expected: float) -> None:
    """The table of DESIGN.md, met from below; and the fifty-digit value agrees."""
    graph = chain(name, torch.ones(1, 1).double(), torch.ones(1, 1).double())
    found = norms(graph, Space(1), order, THOROUGH)
    assert same(found.value[-1], expected, 1e-8)
    assert same(exact_norm(graph, graph.output, found.x[-1], found.p[-1], order), expected, 1e-8)


@pytest.mark.parametrize(
    ("at", "slope", "bend"),
    [(0.0, 1.0, 0.5825829), (0.25, 0.9847246, 0.6970734), (1.0, 0.8162188, 0.7330156), (3.0, 0.4392340, 0.3398682)],
)
def test_anchored_constants_of_tanh(at: float, slope: float, bend: float) -> None:
    """sup_y |s(y) - s(z)| / |y - z| of tanh and of its derivative (PAPERS.md, 1D)."""
    graph = chain("Tanh", torch.ones(1, 1).double(), torch.ones(1, 1).double())
    anchor = tensor([at])
    found = [quotients(graph, Space(1), order, THOROUGH, anchor=anchor).value[-1] for order in (0, 1)]
    assert same(found[0], slope, 2e-6)
    assert same(found[1], bend, 2e-6)


def test_quotients_cross_kinks() -> None:
    """ReLU's Jacobian jumps; that of ELU(1) has a kink but is 1-Lipschitz, though its second derivative jumps."""
    one = torch.ones(1, 1).double()
    assert float(quotients(chain("Relu", one, one), Space(1), 1, THOROUGH).value[-1]) > 10.0
    b = Builder((1, 1), 0)
    b.add(Elu(), 0)
    assert same(quotients(b.graph(), Space(1), 1, THOROUGH).value[-1], 1.0, 1e-3)
    assert float(quotients(b.graph(), Space(1), 1, THOROUGH).value[-1]) <= 1.0 + 1e-9
    assert float(quotients(b.graph(), Space(1), 2, THOROUGH).value[-1]) > 10.0


@pytest.mark.parametrize("seed", range(len(FAMILIES)))
def test_points_stay_in_the_region(seed: int) -> None:
    graph = sample(seed).graph
    n = graph.nodes[0].size
    centre = randn(n, seed=seed)
    box, ball = Box(centre - 0.3, centre + 0.1), Sphere(centre, 0.2)
    for order in (1, 2, 3):
        x = norms(graph, box, order).x
        assert bool(((x >= box.lower) & (x <= box.upper)).all())
        assert bool(((norms(graph, ball, order).x - centre).norm(dim=1) <= 0.2).all())
    found = quotients(graph, ball, 1, anchor=centre)
    assert found.y is not None
    assert torch.equal(found.x, centre.expand_as(found.x))
    assert bool(((found.y - centre).norm(dim=1) <= 0.2).all())


def test_too_small_bounds_are_refuted() -> None:
    """By one part in a billion, at every node; and equality, NaN and infinity are judged as they should."""
    graph = sample(1).graph
    found = norms(graph, Space(graph.nodes[0].size), 2)
    curved = [i for i, value in enumerate(found.value.tolist()) if value > 0.0]
    assert curved
    exact = [exact_norm(graph, i, found.x[i], found.p[i], 2) for i in range(len(graph))]
    assert refuted(graph, exact, found, 2) == []
    assert [node for node, _, _ in refuted(graph, [v * (1.0 - 1e-9) for v in exact], found, 2)] == curved
    assert len(refuted(graph, [math.nan] * len(graph), found, 2)) == len(graph)
    assert refuted(graph, [math.inf] * len(graph), found, 2) == []


def test_rounding_in_saturated_float64_is_not_a_refutation() -> None:
    """tanh' at 18.3 is 5.1e-16; autograd's 1 - tanh^2 gives 4.4e-16 or 0 or more, fifty digits decide."""
    graph = chain("Tanh", torch.ones(1, 1).double(), torch.ones(1, 1).double())
    x, p = tensor([[18.3]] * 4), torch.ones(4, 1).double()
    true = 1.0 / math.cosh(18.3) ** 2
    claimed = Attained(torch.full((4,), 2.0 * true), x, p)
    assert refuted(graph, [1.0, 1.0, true * (1.0 + 1e-9), true * (1.0 + 1e-9)], claimed, 1) == []
    assert len(refuted(graph, [1.0, 1.0, true * (1.0 - 1e-9), true], claimed, 1)) >= 1


def test_differences_of_outputs() -> None:
    """sin(w . x) - sin(v . x) as a node of its own."""
    W = randn(2, 3)
    graph = with_rows(chain("Sin", W, torch.eye(2).double()), tensor([[1.0, -1.0]]))
    found = norms(graph, Space(3), 1, THOROUGH)
    assert same(found.value[-1], max((W[0] - W[1]).norm(), (W[0] + W[1]).norm()), 1e-6)


def test_inputs_measured_in_their_largest_entry() -> None:
    """sin(w . x) for |p|_inf <= 1 attains |w|_1, |w|_1^2, |w|_1^3; coordinates that a box holds fixed do not count."""
    w = randn(1, 4)
    graph = chain("Sin", w, tensor([[1.0]]))
    lower, upper = -10.0 * torch.ones(4).double(), 10.0 * torch.ones(4).double()
    for order in (1, 2, 3):
        found = norms(graph, Box(lower, upper), order, THOROUGH, norm="linf")
        assert same(found.value[-1], float(w.abs().sum()) ** order, 1e-4)
        assert same(found.value[-1], exact_norm(graph, graph.output, found.x[-1], found.p[-1], order, "linf"), 1e-10)
    lower[1:3] = upper[1:3]
    box = Box(lower, upper)
    for order in (1, 2):
        assert same(norms(graph, box, order, THOROUGH).value[-1], float(w[0, [0, 3]].norm()) ** order, 1e-4)
    top, _ = eigenvalues(graph, box, torch.ones(1, 1).double(), THOROUGH)
    assert same(top.value[0], float(w[0, [0, 3]].norm()) ** 2, 1e-4)
    assert same(quotients(graph, box, 0, THOROUGH).value[-1], float(w[0, [0, 3]].norm()), 0.03)
