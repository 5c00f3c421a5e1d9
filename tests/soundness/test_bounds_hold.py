"""Every bound of every node, attacked on random graphs with residual joins, for every registered operator."""

from __future__ import annotations

import pytest
import torch

from curvverify.bounding.interval import interval_bounds
from curvverify.bounding.linear import Effort, entry_bounds, linear_bounds, optimised_row_bounds, row_bounds
from curvverify.bounding.substitution import Rows
from curvverify.ops.base import Op
from curvverify.types import Interval
from tests.soundness.attack import points, worst_violation
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import residual_convnet, residual_mlp

ROUNDING = 1e-12
"""What evaluating the network itself in float64 may be off by on these small graphs."""

BOUNDED = sorted(SAMPLES)


def box_around(shape: tuple[int, ...], radius: float, seed: int) -> Interval:
    centre = 0.5 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Interval(centre - radius, centre + radius)


@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("name", BOUNDED)
def test_residual_mlp(name: str, radius: float) -> None:
    check_graph(SAMPLES[name], radius, residual_mlp)


@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Gelu", "LeakyRelu"])
def test_residual_convnet(name: str) -> None:
    check_graph(SAMPLES[name], 0.2, residual_convnet)


def check_graph(op: Op, radius: float, make) -> None:
    for seed in range(2):
        graph = make(op, seed)
        box = box_around(graph.input_shape, radius, seed)
        interval = interval_bounds(graph, box)
        linear = linear_bounds(graph, box, Effort(iterations=3))
        every = torch.ones(1, *graph.output_shape, dtype=torch.bool)
        linear.tighten(graph.output, entry_bounds(linear, graph.output, every, Effort(iterations=3)))
        for node in range(len(graph)):
            scale = 1.0 + float(graph.values(0.5 * (box.lower + box.upper))[node].abs().max())
            assert worst_violation(graph, box, node, interval[node]) <= ROUNDING * scale
            assert worst_violation(graph, box, node, linear.intervals[node]) <= ROUNDING * scale
            assert bool((linear.intervals[node].lower >= interval[node].lower - 1e-9 * scale).all())
            assert bool((linear.intervals[node].upper <= interval[node].upper + 1e-9 * scale).all())


@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Softplus", "Gelu", "Sin"])
def test_property_rows(name: str) -> None:
    """Mixed rows over output and input: each iterate is below every attacked value, and more iterations never lose."""
    graph = residual_mlp(SAMPLES[name], 3)
    box = box_around(graph.input_shape, 0.3, 5)
    generator = torch.Generator().manual_seed(7)
    rows = Rows(
        torch.randn(1, 6, *graph.output_shape, generator=generator, dtype=torch.float64),
        torch.randn(1, 6, *graph.input_shape, generator=generator, dtype=torch.float64),
    )
    relaxation = linear_bounds(graph, box, Effort(iterations=2))
    x = points(box, 4000, 11)
    value = graph(x).flatten(1) @ rows.coefficients[0].flatten(1).T + x.flatten(1) @ rows.input[0].flatten(1).T
    previous = torch.full((1, 6), -torch.inf, dtype=torch.float64)
    for iterations in (1, 2, 4, 8):
        best = optimised_row_bounds(relaxation, graph.output, rows, Effort(iterations), lambda lower: False)
        assert bool((best.lower <= value.amin(0) + ROUNDING).all())
        assert bool((best.lower >= previous).all())
        previous = best.lower
        assert bool((row_bounds(relaxation, graph.output, rows, Effort(iterations)).lower <= value.amin(0)).all())


def test_batch_equals_single() -> None:
    """Bounding several boxes at once is bounding each of them."""
    graph = residual_mlp(SAMPLES["Tanh"], 1)
    boxes = [box_around(graph.input_shape, r, s) for s, r in enumerate((0.0, 0.1, 0.5))]
    together = Interval(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes]))
    batched = linear_bounds(graph, together, Effort(iterations=2)).intervals
    for b, box in enumerate(boxes):
        alone = linear_bounds(graph, box, Effort(iterations=2)).intervals
        for node, (many, one) in enumerate(zip(batched, alone, strict=True)):
            assert torch.allclose(many.lower[b], one.lower[0], atol=1e-6), node
            assert torch.allclose(many.upper[b], one.upper[0], atol=1e-6), node


def test_deadline_in_the_past_keeps_interval_bounds() -> None:
    """No time is no excuse for an unsound bound: the interval bounds remain."""
    from curvverify.types import Deadline

    graph = residual_mlp(SAMPLES["Sigmoid"], 2)
    box = box_around(graph.input_shape, 0.2, 2)
    found = linear_bounds(graph, box, Effort(2, deadline=Deadline(0.0))).intervals
    for a, b in zip(found, interval_bounds(graph, box), strict=True):
        assert torch.equal(a.lower, b.lower)
        assert torch.equal(a.upper, b.upper)


def test_rows_cut_by_memory_agree() -> None:
    """Cutting rows into pieces that fit a tiny memory gives the same bounds."""
    graph = residual_convnet(SAMPLES["Sigmoid"], 2)
    box = box_around(graph.input_shape, 0.2, 2)
    whole = linear_bounds(graph, box, Effort(2)).intervals
    pieces = linear_bounds(graph, box, Effort(2, memory=1e-4)).intervals
    for a, b in zip(whole, pieces, strict=True):
        assert torch.allclose(a.lower, b.lower, atol=1e-6)
        assert torch.allclose(a.upper, b.upper, atol=1e-6)
