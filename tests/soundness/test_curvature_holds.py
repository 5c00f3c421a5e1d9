"""Lipschitz, curvature and third-order constants of every node of 200 random graphs, attacked and never exceeded."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import curvverify
from curvverify.graph.layers import Graph
from curvverify.types import Ball
from tests.soundness.curvature_attack import (
    Attained,
    Box,
    Effort,
    Region,
    Space,
    Sphere,
    eigenvalues,
    norms,
    quotients,
)
from tests.soundness.curvature_exact import exact_norm, refuted
from tests.soundness.curvature_graphs import COMPOSITES, FAMILIES, Sample, composite, sample
from tests.soundness.curvature_series import directional, with_rows
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import residual_mlp

GRAPHS = 12
"""Of every family."""

QUICK = Effort(points=40, directions=8, starts=2, steps=4)

KINDS = ("everywhere", "box", "ball")

ORDERS = (("lipschitz_upper", 1), ("curvature_upper", 2), ("third_order_upper", 3))


def region_of(case: Sample, kind: str):
    """The same region for the package and for the attack: of all sizes, around random points."""
    n = case.graph.nodes[0].size
    generator = torch.Generator().manual_seed(case.seed)
    centre = 0.7 * torch.randn(n, generator=generator, dtype=torch.float64)
    radius = (0.02, 0.2, 1.0)[case.seed % 3]
    if kind == "everywhere":
        return None, Space(n)
    if kind == "box":
        widths = radius * torch.rand(n, generator=generator, dtype=torch.float64)
        return (centre - widths, centre + widths), Box(centre - widths, centre + widths)
    return Ball(centre, radius), Sphere(centre, radius)


def names(graph: Graph, wrong: list[tuple[int, float, float]], what: str) -> list[str]:
    return [f"{what} of {graph.nodes[i].name}: bound {b!r}, attained {a!r}" for i, b, a in wrong]


def too_steep(graph: Graph, top: Attained, bottom: Attained, weights: Tensor, output) -> list[str]:
    """Rows of weights whose Hessian exceeds the eigenvalue bounds, decided exactly."""
    wrong = []
    for end, bound, sign in ((top, output.eigenvalue_upper, 1.0), (bottom, output.eigenvalue_lower, -1.0)):
        if not sign * bound >= 0.0:
            wrong.append(f"an eigenvalue bound of the wrong sign: {bound!r}")
        for row in range(len(weights)):
            if not sign * float(end.value[row]) <= sign * bound:
                alone = with_rows(graph, weights[row : row + 1])
                exact = exact_norm(alone, alone.output, end.x[row], end.p[row], 2)
                if not exact <= sign * bound:
                    wrong.append(f"eigenvalue of row {row}: bound {bound!r}, attained {sign * exact!r}")
    return wrong


def violations(case: Sample, kind: str, effort: Effort) -> list[str]:
    """Every bound of the report that an attack exceeds."""
    graph = case.graph
    where, attacked = region_of(case, kind)
    report = curvverify.curvature(graph, where)
    assert len(report.nodes) == len(graph)
    wrong = []
    for field, order in ORDERS:
        found = norms(graph, attacked, order, effort, case.seed)
        bounds = [getattr(node, field) for node in report.nodes]
        wrong += names(graph, refuted(graph, bounds, found, order), field)
        ends = [math.inf] * graph.output + [getattr(report.output, field)]
        wrong += names(graph, refuted(graph, ends, found, order), f"output's {field}")
    weights = torch.eye(graph.nodes[-1].size, dtype=torch.float64)
    top, bottom = eigenvalues(graph, attacked, weights, effort, case.seed)
    return wrong + too_steep(graph, top, bottom, weights, report.output)


@pytest.mark.parametrize("family", range(len(FAMILIES)), ids=list(FAMILIES))
def test_constants_hold(family: int) -> None:
    for k in range(GRAPHS):
        case = sample(family + k * len(FAMILIES))
        kind = KINDS[k % len(KINDS)]
        assert violations(case, kind, QUICK) == [], f"{case.name} on {kind}"


def test_smaller_bounds_would_not_hold() -> None:
    """The attacks are strong enough to matter: on boxes half of L and a quarter of C are mostly refuted."""
    caught = 0
    for seed in range(700, 700 + len(FAMILIES)):
        case = sample(seed)
        where, attacked = region_of(case, "box")
        report = curvverify.curvature(case.graph, where)
        for (field, order), share in zip(ORDERS[:2], (0.5, 0.25), strict=True):
            bounds = [math.inf] * case.graph.output + [share * getattr(report.output, field)]
            caught += len(refuted(case.graph, bounds, norms(case.graph, attacked, order, QUICK, seed), order))
    assert caught >= len(FAMILIES)


@pytest.mark.parametrize("block", range(len(COMPOSITES)), ids=list(COMPOSITES))
def test_constants_hold_for_composite_blocks(block: int) -> None:
    for k in range(3):
        case = composite(block + k * len(COMPOSITES))
        kind = KINDS[k % len(KINDS)]
        assert violations(case, kind, QUICK) == [], f"{case.name} on {kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_hold(kind: str) -> None:
    """The difference of two outputs: its own constants and eigenvalues, and never more than the difference's."""
    done = 0
    for seed in range(300, 300 + len(FAMILIES)):
        case = sample(seed)
        size = case.graph.nodes[-1].size
        if size < 2:
            continue
        where, attacked = region_of(case, kind)
        output = curvverify.curvature(case.graph, where, pair=(1, 0)).output
        row = torch.zeros(1, size, dtype=torch.float64)
        row[0, 1], row[0, 0] = 1.0, -1.0
        graph = with_rows(case.graph, row)
        wrong = []
        for field, order in ORDERS:
            bounds = [math.inf] * graph.output + [getattr(output, field)]
            wrong += names(graph, refuted(graph, bounds, norms(graph, attacked, order, QUICK, seed), order), field)
        top, bottom = eigenvalues(case.graph, attacked, row, QUICK, seed)
        wrong += too_steep(case.graph, top, bottom, row, output)
        assert wrong == [], f"{case.name} on {kind}"
        done += 1
    assert done >= 4


def test_constants_hold_for_inputs_measured_by_their_largest_entry() -> None:
    for seed in range(600, 600 + len(FAMILIES)):
        case, kind = sample(seed), KINDS[seed % 2]
        graph = case.graph
        where, attacked = region_of(case, kind)
        report = curvverify.curvature(graph, where, norm="linf")
        for field, order in ORDERS:
            found = norms(graph, attacked, order, QUICK, seed, norm="linf")
            bounds = [getattr(node, field) for node in report.nodes]
            assert names(graph, refuted(graph, bounds, found, order, "linf"), field) == [], case.name
            if order == 2:
                bends = directional(graph, found.x, found.p, 2)[:, -graph.nodes[-1].size :]
                assert float(bends.max()) <= report.output.eigenvalue_upper * (1.0 + 1e-9)
                assert float(bends.min()) >= report.output.eigenvalue_lower * (1.0 + 1e-9)


@pytest.mark.parametrize("radius", [0.3, math.inf])
def test_anchored_constants_hold(radius: float) -> None:
    """Differences from the centre alone; the anchored constants are no larger than those of the region."""
    for seed in range(400, 400 + len(FAMILIES), 1 if math.isinf(radius) else 2):
        case = sample(seed)
        n = case.graph.nodes[0].size
        centre = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        attacked: Region = Space(n) if math.isinf(radius) else Sphere(centre, radius)
        report = curvverify.curvature(case.graph, Ball(centre, radius), anchored=True)
        whole = curvverify.curvature(case.graph, Ball(centre, radius))
        for field, order in ORDERS[:2]:
            bounds = [getattr(node, field) for node in report.nodes]
            found = quotients(case.graph, attacked, order - 1, QUICK, seed, anchor=centre)
            assert names(case.graph, refuted(case.graph, bounds, found, order - 1), f"anchored {field}") == []
            at = norms(case.graph, Sphere(centre, 0.0), order, QUICK, seed)  # the limit of short differences
            assert names(case.graph, refuted(case.graph, bounds, at, order), f"anchored {field}") == []
            for anchored, plain in zip(bounds, (getattr(node, field) for node in whole.nodes), strict=True):
                assert anchored <= plain * (1.0 + 1e-9)


@pytest.mark.parametrize("name", ["Relu", "LeakyRelu", "Abs", "Clip", "Elu", "Celu", "Selu", "HardSwish"])
def test_constants_hold_across_kinks(name: str) -> None:
    """Difference quotients see kinks: a slope that jumps has no finite curvature, one with a kink has."""
    graph = residual_mlp(SAMPLES[name], 4, width=5)
    n = graph.nodes[0].size
    centre = torch.zeros(n, dtype=torch.float64)
    report = curvverify.curvature(graph, (centre - 1.0, centre + 1.0))
    box = Box(centre - 1.0, centre + 1.0)
    for field, order in ORDERS:
        bounds = [getattr(node, field) for node in report.nodes]
        found = quotients(graph, box, order - 1, QUICK)
        assert names(graph, refuted(graph, bounds, found, order - 1), field) == []
    assert math.isfinite(report.output.lipschitz_upper)
    if name != "HardSwish":  # whose kinks at -3 and 3 are out of reach
        assert math.isfinite(report.output.curvature_upper) == (name in ("Elu", "Celu"))
        assert report.output.third_order_upper == math.inf


def test_regions_nest() -> None:
    """A smaller region has no larger constants, up to rounding: point, ball, its box, everything."""
    for seed in range(500, 500 + len(FAMILIES), 2):
        case = sample(seed)
        n = case.graph.nodes[0].size
        centre = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        chain = [(centre, centre), Ball(centre, 0.3), (centre - 0.3, centre + 0.3), None]
        reports = [curvverify.curvature(case.graph, region) for region in chain]
        for field, _ in ORDERS:
            found = [getattr(report.output, field) for report in reports]
            for small, large in pairwise(found):
                assert small <= large * (1.0 + 1e-6), (case.name, field, found)
