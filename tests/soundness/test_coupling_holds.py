"""Coupled bounds, attacked on random graphs: every operator, residual joins, products, convolutions, fixed inputs."""

from __future__ import annotations

import pytest
import torch

from curvverify.bounding.coupling.build import coupled_blocks
from curvverify.bounding.coupling.weights import CoupledRows
from curvverify.bounding.linear import Effort, entry_bounds, linear_bounds, optimised_row_bounds
from curvverify.bounding.substitution import Rows, Substitution
from curvverify.graph.layers import Graph
from curvverify.ops.base import Op
from curvverify.types import Interval
from tests.soundness.attack import points, worst_violation
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import residual_convnet, residual_mlp
from tests.soundness.test_bounds_hold import BOUNDED, ROUNDING, box_around

COUPLED = Effort(iterations=4, coupling=3)


def with_fixed_inputs(box: Interval) -> Interval:
    """The box with every third coordinate at its lower end."""
    upper = box.upper.clone()
    upper.flatten()[::3] = box.lower.flatten()[::3]
    return Interval(box.lower, upper)


@pytest.mark.parametrize("radius", [1e-3, 0.3, 0.5])
@pytest.mark.parametrize("name", BOUNDED)
def test_residual_mlp(name: str, radius: float) -> None:
    check_graph(SAMPLES[name], radius, residual_mlp)


@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Gelu", "LeakyRelu", "Abs", "Elu"])
def test_residual_convnet(name: str) -> None:
    check_graph(SAMPLES[name], 0.2, residual_convnet)


def check_graph(op: Op, radius: float, make) -> None:
    """No attack gets outside of any node's bounds, which are within the interval bounds and the plain linear ones."""
    for seed in range(2):
        graph = make(op, seed)
        box = box_around(graph.input_shape, radius, seed)
        box = with_fixed_inputs(box) if seed else box
        plain = linear_bounds(graph, box, Effort(iterations=2))
        known = dict(enumerate(plain.intervals))
        coupled = linear_bounds(graph, box, COUPLED, known)
        every = torch.ones(1, *graph.output_shape, dtype=torch.bool)
        coupled.tighten(graph.output, entry_bounds(coupled, graph.output, every, COUPLED))
        for node in range(len(graph)):
            scale = 1.0 + float(graph.values(0.5 * (box.lower + box.upper))[node].abs().max())
            bounds, old = coupled.intervals[node], plain.intervals[node]
            assert worst_violation(graph, box, node, bounds) <= ROUNDING * scale
            assert bool((bounds.lower >= old.lower - 1e-9 * scale).all())
            assert bool((bounds.upper <= old.upper + 1e-9 * scale).all())


@pytest.mark.parametrize("make", [residual_mlp, residual_convnet])
@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Tanh", "Softplus", "Gelu", "Sin", "Abs", "Selu"])
def test_any_weights_are_sound(name: str, make) -> None:
    """Random coefficients c and shares p, random points: every bound is below what samples and corners attain."""
    graph = make(SAMPLES[name], 4)
    box = with_fixed_inputs(box_around(graph.input_shape, 0.4, 6))
    relaxation = linear_bounds(graph, box, Effort(iterations=2))
    generator = torch.Generator().manual_seed(9)
    rows = Rows(torch.randn(1, 12, *graph.output_shape, generator=generator, dtype=torch.float64))
    x = points(box, 4000, 13)
    least = (graph(x).flatten(1) @ rows.coefficients[0].flatten(1).T).amin(0)
    blocks = coupled_blocks(relaxation, graph.output, 3)
    assert blocks
    for _ in range(4):
        coupled = [CoupledRows(block) for block in blocks]
        substitution = Substitution(relaxation, graph.output, rows, torch.float64, coupled)
        substitution.forward(substitution.backward(0.0, rigorous=False), 1.0)
        substitution.backward(0.0, rigorous=True)
        substitution.points = {
            i: tuple(z + torch.randn(z.shape, generator=generator, dtype=z.dtype) for z in zs)
            for i, zs in substitution.points.items()
        }
        for state in coupled:
            assert state.c is not None
            state.c = state.c * 30.0 ** torch.randn(state.c.shape, generator=generator)
            state.p = state.p * 10.0 ** torch.randn(state.p.shape, generator=generator)
        lower = substitution.backward(0.1, rigorous=True).lower
        assert bool((lower <= least + ROUNDING).all())


@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Softplus", "Gelu", "Sin"])
def test_property_rows(name: str) -> None:
    """Mixed rows over output and input: sound, and more iterations never lose."""
    graph = residual_mlp(SAMPLES[name], 3)
    box = box_around(graph.input_shape, 0.3, 5)
    generator = torch.Generator().manual_seed(7)
    rows = Rows(
        torch.randn(1, 6, *graph.output_shape, generator=generator, dtype=torch.float64),
        torch.randn(1, 6, *graph.input_shape, generator=generator, dtype=torch.float64),
    )
    assert rows.input is not None
    relaxation = linear_bounds(graph, box, Effort(iterations=2, coupling=2))
    x = points(box, 4000, 11)
    value = graph(x).flatten(1) @ rows.coefficients[0].flatten(1).T + x.flatten(1) @ rows.input[0].flatten(1).T
    previous = torch.full((1, 6), -torch.inf, dtype=torch.float64)
    for iterations in (1, 2, 4, 8):
        effort = Effort(iterations, coupling=2)
        best = optimised_row_bounds(relaxation, graph.output, rows, effort, lambda lower: False)
        assert bool((best.lower <= value.amin(0) + ROUNDING).all())
        assert bool((best.lower >= previous).all())
        previous = best.lower


def test_coupling_gains_where_first_order_cannot() -> None:
    """On a wide layer of sigmoids under one direction the coupled bound is far above the uncoupled one."""
    graph = wide_layer()
    box = box_around(graph.input_shape, 0.5, 1)
    relaxation = linear_bounds(graph, box, Effort(1))
    rows = Rows(torch.ones(1, 1, 1, 1, dtype=torch.float64))

    def bound(coupling: int) -> float:
        effort = Effort(12, coupling=coupling)
        return float(optimised_row_bounds(relaxation, graph.output, rows, effort, lambda lower: False).lower)

    x = points(box, 20000, 3)
    truth = float(graph(x).min())
    assert max(bound(0), bound(1)) <= truth
    assert truth - bound(1) < 0.7 * (truth - bound(0))


def wide_layer() -> Graph:
    from tests.soundness.random_graphs import Builder

    b = Builder((1, 6), 0)
    b.dense(b.activate(SAMPLES["Sin"], b.dense(0, 40)), 1)
    return b.graph()


def test_batch_equals_single() -> None:
    """Bounding several boxes at once is bounding each of them, up to the grouping of generators."""
    graph = residual_mlp(SAMPLES["Tanh"], 1)
    boxes = [box_around(graph.input_shape, r, s) for s, r in enumerate((0.0, 0.1, 0.5))]
    together = Interval(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes]))
    batched = linear_bounds(graph, together, COUPLED).intervals
    for b, box in enumerate(boxes):
        alone = linear_bounds(graph, box, COUPLED).intervals
        for node, (many, one) in enumerate(zip(batched, alone, strict=True)):
            assert torch.allclose(many.lower[b], one.lower[0], atol=0.02), node
            assert torch.allclose(many.upper[b], one.upper[0], atol=0.02), node
