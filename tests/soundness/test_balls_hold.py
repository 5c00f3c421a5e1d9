"""Linear and coupled bounds over balls cut by boxes, attacked: points of the sphere, and gradient ascent on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvverify.bounding.balls import Balls
from curvverify.bounding.linear import Effort, entry_bounds, linear_bounds
from curvverify.bounding.relaxation import Part, Relaxation
from curvverify.bounding.slabs import Slabs
from curvverify.graph.layers import Graph
from curvverify.ops.base import Op
from curvverify.types import Interval
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import residual_convnet, residual_mlp
from tests.soundness.test_bounds_hold import BOUNDED, ROUNDING

INSIDE = 1.0 - 1e-12


class Cap:
    """A ball around a point of a box: the whole ball, or with its centre next to faces of the box."""

    def __init__(self, shape: tuple[int, ...], radius: float, cut: bool, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.centre = 0.5 * torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        reach = torch.full_like(self.centre, radius)
        below, above = (
            reach * torch.rand(self.centre.shape, generator=generator, dtype=torch.float64) if cut else reach
            for _ in range(2)
        )
        if cut:
            below.flatten()[::3] = 0.0
        self.box = Interval(self.centre - below, self.centre + above)
        self.radius = radius
        self.balls = Balls(self.centre.flatten(1), torch.tensor([radius], dtype=torch.float64))

    def projected(self, x: Tensor) -> Tensor:
        """Points clipped to the box, then drawn towards the centre until they are in the ball."""
        d = x.maximum(self.box.lower).minimum(self.box.upper) - self.centre
        length = torch.linalg.vector_norm(d.flatten(1), dim=1).reshape(-1, *(1 for _ in d.shape[1:]))
        return self.centre + d * (INSIDE * self.radius / length.clamp(min=1e-30)).clamp(max=1.0)

    def points(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        d = torch.randn(count, *self.centre.shape[1:], generator=generator, dtype=torch.float64)
        d[: count // 4] = d[: count // 4].sign()
        d[0] = 0.0
        d = d * (self.radius / torch.linalg.vector_norm(d.flatten(1), dim=1).clamp(min=1e-30)).reshape(
            -1, *(1 for _ in d.shape[1:])
        )
        return self.projected(
            self.centre + d * torch.where(torch.arange(count) % 3 > 0, 1.0, 2.0).reshape(-1, *(1 for _ in d.shape[1:]))
        )

    def ascended(self, graph: Graph, node: int, weight: Tensor, x: Tensor, steps: int = 8) -> Tensor:
        for t in range(steps):
            x = x.detach().requires_grad_(True)
            (g,) = torch.autograd.grad((graph.values(x)[node] * weight).sum(), x)
            size = torch.linalg.vector_norm(g.flatten(1), dim=1).clamp(min=1e-30)
            way = g / size.reshape(-1, *(1 for _ in g.shape[1:]))
            x = self.projected(x.detach() + 0.8 * 0.8**t * self.radius * way)
        return x


def worst_violation(graph: Graph, cap: Cap, node: int, bounds: Interval, seed: int = 0) -> float:
    """How far any attack gets outside the bounds of a node: positive would refute them."""
    starts = cap.points(256, seed)
    inputs = [starts]
    size = bounds.lower[0].numel()
    for entry in torch.randperm(size, generator=torch.Generator().manual_seed(seed + 1))[:2].tolist():
        for sign in (1.0, -1.0):
            weight = torch.zeros(size, dtype=torch.float64)
            weight[entry] = sign
            inputs.append(cap.ascended(graph, node, weight.reshape(bounds.lower.shape[1:]), starts[:16]))
    with torch.no_grad():
        value = graph.values(torch.cat(inputs))[node]
    return float(torch.maximum(bounds.lower - value, value - bounds.upper).max())


def bounded(graph: Graph, cap: Cap, effort: Effort, slabs: Slabs | None = None) -> Relaxation:
    found = linear_bounds(graph, cap.box, effort, part=Part(balls=cap.balls, slabs=slabs))
    every = torch.ones(1, *graph.output_shape, dtype=torch.bool)
    found.tighten(graph.output, entry_bounds(found, graph.output, every, effort))
    return found


def check_graph(op: Op, radius: float, make, cuts: tuple[bool, ...]) -> None:
    """No attack gets outside the bounds of any node that a bound was looked for, linear or coupled."""
    for seed, cut in enumerate(cuts):
        graph = make(op, seed)
        cap = Cap(graph.input_shape, radius, cut, seed)
        plain, coupled = (bounded(graph, cap, Effort(iterations=3, coupling=levels)) for levels in (0, 3))
        for node in {*graph.bounded, graph.output}:
            scale = 1.0 + float(graph.values(cap.centre)[node].abs().max())
            both = plain.intervals[node].intersect(coupled.intervals[node])
            assert worst_violation(graph, cap, node, both) <= ROUNDING * scale


@pytest.mark.parametrize("name", BOUNDED)
def test_residual_mlp(name: str) -> None:
    check_graph(SAMPLES[name], 0.5, residual_mlp, (BOUNDED.index(name) % 2 == 0,))


@pytest.mark.parametrize("name", ["Relu", "Sigmoid"])
def test_residual_convnet(name: str) -> None:
    check_graph(SAMPLES[name], 0.5, residual_convnet, (False, True))


@pytest.mark.parametrize("name", ["Relu", "Tanh", "Softplus"])
def test_slabs_cut_the_ball_as_well(name: str) -> None:
    """Coupled bounds whose frames are built within slabs and ball: points of both stay inside."""
    for seed in range(2):
        graph = residual_mlp(SAMPLES[name], seed)
        cap = Cap(graph.input_shape, 0.6, seed % 2 == 1, seed)
        v = torch.randn(1, 2, cap.centre.numel(), generator=torch.Generator().manual_seed(seed)).double()
        middle = (v @ cap.centre.flatten(1).unsqueeze(2)).squeeze(2)
        slabs = Slabs(v, middle - 0.1, middle + 0.4)
        found = bounded(graph, cap, Effort(iterations=4, coupling=3), slabs)
        x = cap.points(6000, seed)
        along = x.flatten(1) @ v[0].T
        x = x[((along >= slabs.low) & (along <= slabs.high)).all(1)]
        assert len(x) > 100
        for node, value in enumerate(graph.values(x)):
            scale = 1.0 + float(value.abs().max())
            bounds = found.intervals[node]
            assert bool((value >= bounds.lower - ROUNDING * scale).all())
            assert bool((value <= bounds.upper + ROUNDING * scale).all())


@pytest.mark.parametrize("cut", [False, True])
def test_linear_minimum_is_attained(cut: bool) -> None:
    """Weak duality is tight: the minimiser lies in box and ball, and takes the value proved."""
    cap = Cap((1, 40), 0.7, cut, 5)
    form = torch.randn(1, 30, 1, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    eta = cap.balls.multipliers(form, cap.box)
    u = cap.balls.share(form, cap.box, eta)
    rest = form - u
    ends = torch.where(rest > 0, cap.box.lower.unsqueeze(1), cap.box.upper.unsqueeze(1))
    proved = (rest * ends).flatten(2).sum(2) + cap.balls.support(u)[0]
    at = cap.balls.minimiser(form, cap.box, eta)
    length = torch.linalg.vector_norm((at - cap.centre.unsqueeze(1)).flatten(2), dim=2)
    assert float(length.max()) <= cap.radius * (1 + 1e-9)
    assert bool((at >= cap.box.lower.unsqueeze(1)).all() and (at <= cap.box.upper.unsqueeze(1)).all())
    torch.testing.assert_close((form * at).flatten(2).sum(2), proved, rtol=1e-9, atol=1e-9)


def test_any_multiplier_is_sound() -> None:
    cap = Cap((1, 12), 0.7, True, 2)
    generator = torch.Generator().manual_seed(8)
    form = torch.randn(1, 20, 1, 12, generator=generator, dtype=torch.float64)
    x = cap.points(4000, 4)
    least = (x.flatten(1) @ form[0].flatten(1).T).amin(0)
    for scale in (0.0, 1e-6, 1.0, 1e6):
        eta = scale * torch.rand(1, 20, 1, generator=generator, dtype=torch.float64)
        u = cap.balls.share(form, cap.box, eta)
        rest = form - u
        ends = torch.where(rest > 0, cap.box.lower.unsqueeze(1), cap.box.upper.unsqueeze(1))
        proved = (rest * ends).flatten(2).sum(2) + cap.balls.support(u)[0]
        assert bool((proved[0] <= least + 1e-12).all())
