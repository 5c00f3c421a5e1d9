"""What is done differently where few inputs are free, attacked: folded inputs, forms before rows, combined forms."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from curvverify.bounding.bundle import Bundle
from curvverify.bounding.folded import folded, free_coordinates
from curvverify.bounding.linear import Effort, linear_bounds, optimised_row_bounds
from curvverify.bounding.substitution import Rows, Substitution
from curvverify.graph.layers import Graph
from curvverify.types import Interval
from tests.soundness.attack import points, worst_violation
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import residual_convnet, residual_mlp

ROUNDING = 1e-12


def few_free(graph: Graph, count: int, seed: int, narrow: float = 0.0) -> Interval:
    """Two boxes with so many free coordinates; every third of the others moves by `narrow`."""
    generator = torch.Generator().manual_seed(seed)
    n = graph.nodes[0].size
    centre = 0.5 * torch.randn(2, n, generator=generator, dtype=torch.float64)
    radius = torch.zeros(n, dtype=torch.float64)
    radius[::3] = narrow
    radius[torch.randperm(n, generator=generator)[:count]] = 0.4
    shape = (2, *graph.input_shape)
    return Interval((centre - radius).reshape(shape), (centre + radius).reshape(shape))


def rows_of(graph: Graph, count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(1, count, *graph.output_shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("narrow", [0.0, 1e-16])
@pytest.mark.parametrize("name", ["Relu", "Sigmoid"])
def test_nodes_and_rows_hold(name: str, narrow: float) -> None:
    for seed, make in enumerate((residual_mlp, residual_convnet, residual_mlp)):
        graph = make(SAMPLES[name], seed)
        box = few_free(graph, 1 + seed, seed, narrow)
        relaxation = linear_bounds(graph, box, Effort(2))
        rows = rows_of(graph, 5, seed)
        found = optimised_row_bounds(relaxation, graph.output, rows, Effort(6), lambda lower: False)
        for b in range(2):
            one = box[b : b + 1]
            for node in range(len(graph)):
                assert worst_violation(graph, one, node, relaxation.intervals[node][b : b + 1]) <= ROUNDING * 10
            x = points(one, 3000, seed)
            value = graph(x).flatten(1) @ rows.coefficients[0].flatten(1).T
            assert bool((found.lower[b] <= value.amin(0) + ROUNDING).all())
            gap = value - (x - one.centre).flatten(1) @ found.slope[b].flatten(1).T
            reach = (found.slope[b].abs() * (0.5 * one.width)).flatten(1).sum(1)
            assert bool((found.lower[b] + reach <= gap.amin(0) + 1e-10).all()), "not a minorant with its slope"


@pytest.mark.parametrize("make", [residual_mlp, residual_convnet])
def test_folded_passes_agree(make) -> None:
    """With the fixed inputs folded away: the same forms, bounds and points, up to roundings."""
    used = 0
    for seed in range(4):
        graph = make(SAMPLES["Sigmoid"], seed)
        box = few_free(graph, 1, seed, 1e-16)
        relaxation = linear_bounds(graph, box, Effort(1))
        if relaxation.folded(torch.float64) is None:
            continue
        used += 1
        rows = rows_of(graph, 3, seed)
        plain, quick = (Substitution(relaxation, graph.output, rows, torch.float64, fold=f) for f in (False, True))
        free = free_coordinates(box)
        for t in range(3):
            a, b = plain.backward(0.1, rigorous=True), quick.backward(0.1, rigorous=True)
            assert torch.allclose(a.lower, b.lower, rtol=0.0, atol=1e-10)
            assert torch.allclose(a.slope.flatten(2)[:, :, free], b.slope, rtol=0.0, atol=1e-10)
            plain.forward(a, 2.0 / (t + 3))
            quick.forward(b, 2.0 / (t + 3))
    assert used


def test_nodes_next_to_the_input_are_enclosed() -> None:
    """value +- error plus the columns times the free coordinates is around the node's value, narrow ones moving."""
    graph = residual_mlp(SAMPLES["Relu"], 1)
    box = few_free(graph, 1, 3, 1e-13)
    found = folded(graph, box)
    assert found is not None
    for b in range(2):
        x = points(box[b : b + 1], 500, 2)
        values = graph.values(x)
        for position, image in found.images.items():
            near = image.forward(x.flatten(1)[:, found.free].unsqueeze(0).expand(2, -1, -1))[b]
            assert bool(((values[position] - near).abs() <= image.error[b] + 1e-14).all())


def test_many_free_inputs_are_not_folded() -> None:
    graph = residual_mlp(SAMPLES["Relu"], 0)
    assert folded(graph, few_free(graph, graph.nodes[0].size, 0)) is None


def linear_forms(boxes: int, rows: int, n: int, seed: int) -> tuple[Interval, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    box = Interval(-rand(boxes, n), rand(boxes, n))
    return box, [(-rand(boxes, rows), 4.0 * rand(boxes, rows, n) - 2.0) for _ in range(6)]


@pytest.mark.parametrize("n", [1, 3, 8])
def test_combined_forms_against_linear_programming(n: int) -> None:
    """Never above the exact optimum, never below the best single form, and most of the way from one to the other."""
    box, forms = linear_forms(3, 2, n, n)
    bundle = Bundle(box)
    for lower, slope in forms:
        bundle.add(lower, slope)
        bundle.improve(2)
    found, slopes = bundle.lower()
    single = torch.stack([lower for lower, _ in forms]).amax(0)
    assert bool((found >= single - 1e-9).all())
    reached, possible = 0.0, 0.0
    for b in range(3):
        radius, low, high = 0.5 * box.width[b], box.lower[b], box.upper[b]
        for r in range(2):
            a = torch.stack([slope[b, r] for _, slope in forms])
            c = torch.stack([lower[b, r] for lower, _ in forms]) + a.abs() @ radius - a @ box.centre[b]
            exact = linprog(
                [0.0] * n + [1.0],
                A_ub=torch.cat([a, -torch.ones(len(a), 1)], 1).numpy(),
                b_ub=(-c).numpy(),
                bounds=[*zip(low.tolist(), high.tolist(), strict=True), (None, None)],
            ).fun
            assert float(found[b, r]) <= exact + 1e-9
            reached += float(found[b, r] - single[b, r])
            possible += exact - float(single[b, r])
            x = low + (high - low) * torch.rand(500, n, dtype=torch.float64)
            largest = (x @ a.T + c).amax(1)
            form = found[b, r] + slopes[b, r].abs() @ radius + (x - box.centre[b]) @ slopes[b, r]
            assert bool((form <= largest + 1e-9).all())
    assert possible == pytest.approx(0.0, abs=1e-9) or reached >= 0.6 * possible


def test_forms_that_are_not_finite_are_left_out() -> None:
    box, forms = linear_forms(2, 2, 3, 0)
    bundle = Bundle(box)
    lost = torch.full((2, 2), -torch.inf, dtype=torch.float64)
    bundle.add(lost, torch.full((2, 2, 3), torch.nan, dtype=torch.float64))
    bundle.improve(2)
    assert bool((bundle.lower()[0] == -torch.inf).all())
    lower = forms[0][0].clone()
    lower[0, 0] = -torch.inf
    bundle.add(lower, forms[0][1])
    bundle.improve(2)
    found = bundle.lower()[0]
    assert float(found[0, 0]) == -torch.inf
    assert torch.allclose(found.flatten()[1:], lower.flatten()[1:], rtol=0.0, atol=1e-12)
