"""Taylor forms, clipping and convexified rows, attacked; every registered operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvverify.bounding.clipping import Minorants, around
from curvverify.bounding.linear import Effort, linear_bounds, optimised_row_bounds
from curvverify.bounding.substitution import Rows
from curvverify.bounding.taylor import Form, row_forms, taylor_bounds
from curvverify.graph.layers import Graph
from curvverify.ops.linear import Diagonal, Sum
from curvverify.ops.product import Product
from curvverify.types import Interval
from tests.soundness.attack import ascent, points, worst_violation
from tests.soundness.curvature_graphs import composite, sample
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import Builder, residual_convnet, residual_mlp
from tests.soundness.test_bounds_hold import ROUNDING, box_around
from tests.soundness.test_coupling_holds import with_fixed_inputs

ORDERS = (1, 2)


def monomials(form: Form, x: Tensor) -> Tensor:
    """(P, T): every monomial at the points (P, *S_in) of a single box."""
    m = form.monomials
    xi = (x.flatten(1)[:, m.free] - m.centre) / m.radius
    i, j = m.pairs
    every = torch.cat([torch.ones(len(x), 1, dtype=torch.float64), xi, xi[:, i] * xi[:, j]], 1)
    return every[:, : form.terms.shape[1]]


def some_rows(graph: Graph, count: int, seed: int, inputs: bool = False) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, count, *graph.output_shape, generator=generator, dtype=torch.float64)
    extra = torch.randn(1, count, *graph.input_shape, generator=generator, dtype=torch.float64) if inputs else None
    return Rows(rows, extra)


def values_of(graph: Graph, rows: Rows, x: Tensor) -> Tensor:
    """(P, R)"""
    found = graph(x).flatten(1) @ rows.coefficients[0].flatten(1).T
    return found if rows.input is None else found + x.flatten(1) @ rows.input[0].flatten(1).T


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("radius", [0.0, 0.3])
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_node(name: str, radius: float, order: int) -> None:
    """No attack leaves the bounds, and the output's polynomial is right up to its error, point by point."""
    graph = residual_mlp(SAMPLES[name], order)
    box = box_around(graph.input_shape, radius, order)
    box = with_fixed_inputs(box) if order == 2 else box
    form = check(graph, box, order)
    x = points(box, 500, 1)
    value = graph(x)
    off = value - torch.einsum("pt,t...->p...", monomials(form, x), form.terms[0])
    assert bool((off.abs() <= form.error + ROUNDING * (1.0 + value.abs())).all())


def check(graph: Graph, box: Interval, order: int) -> Form:
    """Samples and corners against every node's bounds, ascent against the output's."""
    relaxation, form = taylor_bounds(graph, box, order)
    for bounds, value in zip(relaxation.intervals, graph.values(points(box, 500, 3)), strict=True):
        scale = 1.0 + float(value.abs().max())
        assert bool((value >= bounds.lower - ROUNDING * scale).all() & (value <= bounds.upper + ROUNDING * scale).all())
    output = relaxation.intervals[-1]
    assert worst_violation(graph, box, graph.output, output) <= ROUNDING * (1.0 + float(output.magnitude.max()))
    return form


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Gelu", "LeakyRelu"])
def test_convolutions(name: str, order: int) -> None:
    graph = residual_convnet(SAMPLES[name], 3)
    check(graph, with_fixed_inputs(box_around(graph.input_shape, 0.1, 1)), order)


def test_batch_is_its_boxes() -> None:
    """Boxes that differ in what is free get the bounds they get alone."""
    graph = residual_mlp(SAMPLES["Tanh"], 4)
    boxes = [box_around(graph.input_shape, 0.2, 1), with_fixed_inputs(box_around(graph.input_shape, 0.3, 2))]
    both = Interval(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes]))
    together = taylor_bounds(graph, both, 2)[1].range()
    for k, box in enumerate(boxes):
        alone = taylor_bounds(graph, box, 2)[1].range()
        assert torch.allclose(together[k].lower, alone.lower[0], atol=1e-12)
        assert torch.allclose(together[k].upper, alone.upper[0], atol=1e-12)


@pytest.mark.parametrize("name", ["Tanh", "Sin", "Softplus", "Gelu"])
def test_order_of_convergence(name: str) -> None:
    """A quarter of the radius leaves about 4^-3 of the remainder of order 2, and 4^-2 of that of order 1."""
    graph = residual_mlp(SAMPLES[name], 1)
    for order in ORDERS:
        wide, small = (taylor_bounds(graph, box_around(graph.input_shape, r, 1), order)[1].error for r in (0.02, 0.005))
        assert bool((small <= 1.8 * 4.0 ** -(order + 1) * wide).all())


@pytest.mark.parametrize("kind", ["forms", "convexified", "substitution"])
@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Sin", "Softplus"])
def test_rows_and_clipping(name: str, kind: str) -> None:
    """No attack gets below a row's bound, and every point where a row is at most a limit is in the clipped box."""
    kept = 0
    for seed in range(3):
        graph = residual_mlp(SAMPLES[name], seed)
        box = box_around(graph.input_shape, 0.03, seed)
        box = with_fixed_inputs(box) if seed % 2 else box
        rows = some_rows(graph, 6, seed, inputs=seed > 1)
        relaxation, output = taylor_bounds(graph, box, 2)
        forms = row_forms(output, rows, box)
        if kind == "forms":
            found = Minorants.of_forms(forms, forms.range().lower)
        elif kind == "convexified":
            found = Minorants.convexified(forms, torch.zeros_like(forms.error))
        else:
            bounds = optimised_row_bounds(relaxation, graph.output, rows, Effort(2), lambda lower: False)
            found = Minorants.of_bounds(bounds, bounds.lower, forms.monomials)
        starts = points(box, 2000, seed)
        x = [starts]
        for row in rows.coefficients[0]:
            x.append(ascent(graph, graph.output, box, -row, starts[:16]))
        at = torch.cat(x).clamp(box.lower, box.upper)
        with torch.no_grad():
            value = values_of(graph, rows, at)
        assert bool((value >= found.lower - ROUNDING * (1.0 + value.abs())).all())
        limits = value.quantile(0.02, dim=0)
        low, high = found.within(torch.zeros(6, dtype=torch.long), torch.arange(6), limits)
        flat = Interval(box.lower.flatten(1), box.upper.flatten(1))
        for r in range(6):
            part = around(forms.monomials, flat, low[r : r + 1], high[r : r + 1])
            left = at.flatten(1)[value[:, r] <= limits[r]]
            assert bool(((left >= part.lower) & (left <= part.upper)).all())
            assert bool((part.lower >= flat.lower).all() & (part.upper <= flat.upper).all())
            kept += int((part.width < 0.99 * flat.width).sum())
    assert kept > 5


def test_convexified_is_exact_on_convex_rows() -> None:
    """x^T P x with P positive definite and strong mixed terms: no gap at its minimum inside the box."""
    graph = residual_mlp(SAMPLES["Power"], 0)
    box = box_around(graph.input_shape, 0.5, 0)
    form = taylor_bounds(graph, box, 2)[1]
    m = form.monomials
    i, j = m.pairs
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    p = root @ root.T + 0.1 * torch.eye(4, dtype=torch.float64)
    quadratic = torch.where(i == j, p[i, j], 2.0 * p[i, j])
    inside = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
    terms = torch.cat([(inside @ p @ inside).reshape(1), -2.0 * p @ inside, quadratic]).reshape(1, -1, 1)
    rows = Form(m, terms, torch.zeros(1, 1, dtype=torch.float64))
    exact, plain = Minorants.convexified(rows, torch.zeros_like(rows.error)).lower, rows.range().lower
    assert 0.1 * float(plain) <= float(exact) <= 1e-12
    assert float(plain) < -0.5


def test_rows_of_linear_bounds_agree_with_taylor_intervals() -> None:
    """Intervals of the pass forward serve substitution: the bounds it gives from them hold too."""
    graph = residual_mlp(SAMPLES["Relu"], 6)
    box = box_around(graph.input_shape, 0.3, 6)
    relaxation, _ = taylor_bounds(graph, box, 1)
    known = {i: relaxation.intervals[i] for i in graph.bounded}
    both = linear_bounds(graph, box, Effort(1), known)
    plain = linear_bounds(graph, box, Effort(1))
    x = points(box, 2000, 6)
    values = graph.values(x)
    for node in graph.bounded:
        assert bool((values[node] >= both.intervals[node].lower - ROUNDING).all())
        assert float(both.intervals[node].width.sum()) <= float(plain.intervals[node].width.sum()) + 1e-9


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["Relu", "LeakyRelu", "Abs", "Clip", "Elu", "Selu", "HardSwish", "Sign", "Floor"])
def test_kinks_at_centres_and_ends(name: str, order: int) -> None:
    """Boxes around a kink, and ones that begin or end there: inputs hit it exactly, forms have it as their centre."""
    b = Builder((1, 3), 1)
    a = b.activate(SAMPLES[name], b.add(Diagonal(torch.tensor(2.0, dtype=torch.float64), None), 0))
    b.activate(SAMPLES[name], b.add(Sum((1.0, 1.0)), a, 0))
    graph = b.graph()
    for kink in (0.0, -0.4, 0.7, 3.0, -3.0, 1.0):
        for low, high in ((-0.5, 0.5), (0.0, 0.5), (-0.5, 0.0), (0.0, 0.0)):
            lower, upper = (torch.full((1, 1, 3), 0.5 * (kink + t), dtype=torch.float64) for t in (low, high))
            upper[..., 2] = lower[..., 2]
            check(graph, Interval(lower, upper), order)


@pytest.mark.parametrize("seed", range(12))
def test_blocks_and_quotients(seed: int) -> None:
    """Softmax, normalisation, attention, gates and shared branches, with quotients and roots in them."""
    for graph in (composite(seed).graph, sample(7 * seed + 5 + seed % 2).graph):
        for radius in (0.05, 0.4):
            check(graph, box_around(graph.input_shape, radius, seed), 2)


def test_what_overflows_proves_nothing() -> None:
    """Infinite and undefined intermediate values end as infinite errors, not as bounds."""
    b = Builder((1, 2), 1)
    huge = b.add(SAMPLES["Exp"], b.add(Diagonal(torch.tensor(1e3, dtype=torch.float64), None), 0))
    b.add(Sum((1.0, -1.0)), b.add(Product(), huge, huge), b.add(SAMPLES["Reciprocal"], 0))
    graph = b.graph()
    relaxation, form = taylor_bounds(graph, box_around(graph.input_shape, 3.0, 0), 2)
    rows = some_rows(graph, 4, 0)
    forms = row_forms(form, rows, relaxation.box)
    assert bool((form.range().width == torch.inf).all())
    for found in (
        Minorants.of_forms(forms, forms.range().lower),
        Minorants.convexified(forms, torch.zeros_like(forms.error)),
    ):
        assert bool((found.lower == -torch.inf).all())
        index = torch.arange(4)
        low, high = found.within(torch.zeros_like(index), index, torch.zeros(4, dtype=torch.float64))
        assert bool((low <= -1.0).all() & (high >= 1.0).all())
