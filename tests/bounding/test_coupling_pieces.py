"""The parts of the coupling: hulls below their functions, generators, groups, prices, and exact small cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvverify.bounding.coupling.block import make_block, make_frame
from curvverify.bounding.coupling.build import coupled_blocks
from curvverify.bounding.coupling.chain import ends, lower_chain
from curvverify.bounding.coupling.generators import Generators, elementwise_strip, node_generators, product_strip
from curvverify.bounding.coupling.grid import make_grid
from curvverify.bounding.coupling.groups import alike
from curvverify.bounding.coupling.hinge import hinge_hulls
from curvverify.bounding.coupling.hulls import Hulls
from curvverify.bounding.coupling.table import table_hulls
from curvverify.bounding.coupling.weights import CoupledRows, largest_upper
from curvverify.bounding.linear import Effort, linear_bounds, optimised_row_bounds
from curvverify.bounding.substitution import Rows
from curvverify.graph.layers import Graph, Node
from curvverify.ops.base import Elementwise, Input
from curvverify.ops.elementwise.hinge import Hinge
from curvverify.ops.elementwise.power import Power
from curvverify.ops.linear import Dense
from curvverify.types import Interval
from tests.soundness.attack import points
from tests.soundness.operators import POSITIVE, SAMPLES
from tests.soundness.random_graphs import residual_convnet, residual_mlp
from tests.soundness.test_bounds_hold import box_around

COUNT = 24
"""Random intervals per operator."""


def random_intervals(name: str, seed: int) -> tuple[Interval, Tensor]:
    """Intervals (1, n) of widths from 1e-3 to 6, and a point z0 in or near each."""
    generator = torch.Generator().manual_seed(seed)
    low = 3.0 * torch.randn(1, COUNT, generator=generator, dtype=torch.float64)
    width = 10.0 ** (3.8 * torch.rand(1, COUNT, generator=generator, dtype=torch.float64) - 3.0)
    if name in POSITIVE:
        low = low.abs() + 0.05
    x = Interval(low, low + width)
    return x, x.lower + (1.4 * torch.rand(1, COUNT, generator=generator, dtype=torch.float64) - 0.2) * x.width


def hulls_of(op: Elementwise, x: Interval, centre: Tensor) -> Hulls:
    present = torch.ones_like(centre, dtype=torch.bool)
    if isinstance(op, Hinge):
        p, q = (torch.as_tensor(s, dtype=torch.float64).expand_as(centre) for s in op.slopes)
        return hinge_hulls((p, q), x, centre, present)
    return table_hulls(op, x, centre, present)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_lines_are_below_function_and_square(name: str) -> None:
    """On a dense grid, for random coefficients, points and signs; and close to the hull where there is one."""
    op = SAMPLES[name]
    for seed in range(3):
        x, centre = random_intervals(name, seed)
        hulls = hulls_of(op, x, centre)
        generator = torch.Generator().manual_seed(seed)
        t = torch.rand(1, 40, COUNT, generator=generator, dtype=torch.float64)
        point, below = x.lower.unsqueeze(1) + t * x.width.unsqueeze(1), t.roll(1, 1) > 0.5
        kappa = hulls.full(below) * 1.2 * torch.rand(t.shape, generator=generator, dtype=torch.float64)
        support = hulls.support(point, below, kappa)
        used = support.kappa > 0
        assert bool((support.kappa <= kappa + 1e-12).all())
        z = x.lower + torch.linspace(0.0, 1.0, 2001, dtype=torch.float64).reshape(-1, 1, 1, 1) * x.width
        z = torch.minimum(z, x.upper)
        sign = torch.where(below, 1.0, -1.0)
        value = sign * op.forward(z) + 0.5 * support.kappa * (z - centre) ** 2
        excess = support.slope * z + support.intercept - value
        assert float(torch.where(used, excess, -1.0).max()) <= 1e-13 * float(value.abs().max())
        least = (point - centre).square() * (1 - 1e-9) - 1e-15
        assert bool((support.square >= torch.where(used, least, 0.0)).all())


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh", "Softplus", "Gelu", "Sin", "Relu", "LeakyRelu", "Abs"])
def test_lines_touch_the_hull(name: str) -> None:
    """At its own point a line is near the lower hull of 2001 samples of the function plus the square."""
    op = SAMPLES[name]
    x, centre = random_intervals(name, 5)
    hulls = hulls_of(op, x, centre)
    z = x.lower + torch.linspace(0.0, 1.0, 2001, dtype=torch.float64).reshape(-1, 1) * x.width
    for below in (torch.ones(1, 1, COUNT, dtype=torch.bool), torch.zeros(1, 1, COUNT, dtype=torch.bool)):
        kappa = 0.4 * hulls.full(below)
        point = (x.lower + 0.37 * x.width).unsqueeze(1)
        support = hulls.support(point, below, kappa)
        sign = torch.where(below[0], 1.0, -1.0)
        value = sign * op.forward(z) + 0.5 * support.kappa[0] * (z - centre) ** 2
        vertices = lower_chain(z.T.contiguous(), value.T.contiguous())
        left, right = ends(vertices)
        cell = ((point[0, 0] - x.lower[0]) / x.width[0] * 2000).long().clamp(0, 1999).unsqueeze(1)
        a, b = left.gather(1, cell), right.gather(1, cell)
        za, zb, fa, fb = z.T.gather(1, a), z.T.gather(1, b), value.T.gather(1, a), value.T.gather(1, b)
        hull = torch.lerp(fa, fb, (point[0, 0].unsqueeze(1) - za) / (zb - za))[:, 0]
        line = (support.slope * point + support.intercept)[0, 0]
        gap = torch.where(support.kappa[0, 0] > 0, hull - line, 0.0)
        assert float((gap / (value.amax(0) - value.amin(0) + 1e-9)).max()) < 2e-3


def test_chain_is_the_lower_hull() -> None:
    """Every sample is above the chain's segments, which turn left only."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(50, 20, generator=generator, dtype=torch.float64).sort(1).values
    y = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    left, right = ends(lower_chain(x, y))
    slope = (y.gather(1, right) - y.gather(1, left)) / (x.gather(1, right) - x.gather(1, left))
    assert bool((slope[:, 1:] >= slope[:, :-1] - 1e-9).all())
    line = y.gather(1, left).unsqueeze(2) + slope.unsqueeze(2) * (x.unsqueeze(1) - x.gather(1, left).unsqueeze(2))
    assert float((line - y.unsqueeze(1)).max()) <= 1e-9


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_strips_contain_their_function(name: str) -> None:
    op = SAMPLES[name]
    x, _ = random_intervals(name, 7)
    strip = elementwise_strip(op, x, op.interval(x))
    z = torch.minimum(x.lower + torch.linspace(0.0, 1.0, 2001, dtype=torch.float64).reshape(-1, 1) * x.width, x.upper)
    miss = (op.forward(z) - strip.slopes[0] * z - strip.middle).abs() - strip.radius
    assert float(miss.max()) <= 1e-12
    assert bool((strip.radius <= 0.5001 * op.interval(x).width + 1e-12).all())


def test_product_strip_contains_the_product() -> None:
    u, v = random_intervals("Relu", 1)[0], random_intervals("Relu", 2)[0]
    strip = product_strip(u, v)
    t = torch.rand(2, 500, COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = u.lower + t[0].round() * u.width, v.lower + t[1] * v.width
    miss = (a * b - strip.slopes[0] * a - strip.slopes[1] * b - strip.middle).abs() - strip.radius
    assert float(miss.max()) <= 1e-12


@pytest.mark.parametrize("make", [residual_mlp, residual_convnet])
@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Gelu"])
def test_generators_reach_every_value(name: str, make) -> None:
    """z - centre is within error of G xi for the xi that the input and the remainders of a sample stand for."""
    graph = make(SAMPLES[name], 0)
    box = box_around(graph.input_shape, 0.3, 0)
    relaxation = linear_bounds(graph, box, Effort(1))
    for position in graph.bounded:
        entries = torch.arange(graph.nodes[position].size).unsqueeze(0)
        strips = {}
        found, remainders = node_generators(relaxation, position, entries, strips)
        x = points(box, 200, 3)
        values = graph.values(x)
        xi = (x - box.centre) / (0.5 * box.width)
        z = found.centre + xi.flatten(1) @ found.columns[0].T
        for i, columns in remainders.items():
            node, strip = graph.nodes[i], strips[i]
            middle = strip.middle + sum(s * values[j] for s, j in zip(strip.slopes, node.inputs, strict=True))
            share = ((values[i] - middle) / strip.radius.clamp(min=1e-300)).flatten(1)
            assert float(share.abs().max()) <= 1.0 + 1e-9
            z = z + share @ columns[0].T
        assert float(((values[position].flatten(1) - z).abs() - found.error).max()) <= 1e-11


def test_groups_are_labels_of_all_columns() -> None:
    columns = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert alike(columns, 64).tolist() == list(range(40))
    labels = alike(torch.cat([columns, -columns], 1), 10)
    assert labels.shape == (80,)
    assert int(labels.max()) < 10
    assert torch.equal(labels[:40], labels[40:])


def test_eigenvalue_bound_is_above_and_close() -> None:
    X = torch.randn(30, 12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    S = X @ X.mT / 30.0
    truth, bound = torch.linalg.eigvalsh(S)[:, -1], largest_upper(S)
    assert bool((bound >= truth).all())
    assert bool((bound <= 1.02 * truth).all())


@pytest.mark.parametrize("ball", [False, True])
def test_price_bounds_the_squares(ball: bool) -> None:
    """1/2 sum c (G xi)^2 never exceeds the price, for random c, p and xi in the box (ball)."""
    generator = torch.Generator().manual_seed(2)
    columns = torch.randn(1, 6, 30, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(1, 6, dtype=torch.float64)
    x = Interval(zeros - 1.0, zeros + 1.0)
    site = _site_of(Power(2.0), x, zeros)
    frame = make_frame({site.node: site.entries}, Generators(zeros, zeros, columns, columns.shape[2] if ball else 0))
    state = CoupledRows(make_block((site,), frame))
    xi = torch.randn(4000, 30, generator=generator, dtype=torch.float64)
    xi = xi / xi.norm(dim=1, keepdim=True) if ball else xi.sign()
    for _ in range(5):
        c = torch.rand(1, 1, 6, generator=generator, dtype=torch.float64)
        state.p = torch.rand(1, 1, state.block.gram.shape[1], generator=generator) + 0.05
        square = 0.5 * (c[0] * (xi @ columns[0].T) ** 2).sum(1)
        assert float(square.max()) <= float(state._price(c))


def _site_of(op: Elementwise, x: Interval, centre: Tensor):
    from curvverify.bounding.coupling.block import Site

    entries = torch.arange(centre.shape[1]).unsqueeze(0)
    image = op.interval(x)
    return Site(1, entries, hulls_of(op, x, centre), Interval(image.lower.unsqueeze(1), image.upper.unsqueeze(1)))


def test_quadratic_by_hand() -> None:
    """min of -(x + y)^2 - (x - y)^2 = -2 x^2 - 2 y^2 on [-1, 1]^2 is -4; without coupling the bound is -8.

    Full coefficients make both functions linear: with c = (2, 2), p = (1, 1) and G = [[1, 1], [1, -1]] the price is
    1/2 lambda_max(2 G G^T) 2 = 4.
    """
    weight = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    nodes = (
        Node("x", Input(), (), (1, 2)),
        Node("z", Dense(weight), (0,), (1, 2)),
        Node("a", Power(2.0), (1,), (1, 2)),
        Node("y", Dense(torch.tensor([[-1.0, -1.0]], dtype=torch.float64)), (2,), (1, 1)),
    )
    graph = Graph(nodes)
    one = torch.ones(1, 1, 2, dtype=torch.float64)
    relaxation = linear_bounds(graph, Interval(-one, one), Effort(1))
    rows = Rows(torch.ones(1, 1, 1, 1, dtype=torch.float64))

    def bound(coupling: int) -> float:
        effort = Effort(10, coupling=coupling)
        return float(optimised_row_bounds(relaxation, graph.output, rows, effort, lambda lower: False).lower)

    assert bound(0) == pytest.approx(-8.0, abs=1e-6)
    assert bound(1) <= -4.0
    (block,) = coupled_blocks(relaxation, graph.output, 1)
    assert block.size == 2
    state = CoupledRows(block)
    state.p = torch.ones(1, 1, 2)
    price = float(state._price(torch.full((1, 1, 2), 2.0, dtype=torch.float64)))
    assert price == pytest.approx(4.0, rel=2e-3)
    assert bound(1) >= -4.2


def test_grid_has_a_point_at_the_kink() -> None:
    x, _ = random_intervals("Relu", 3)
    grid = make_grid(SAMPLES["Relu"], x, 16)
    inside = (x.lower < 0) & (x.upper > 0)
    assert bool(((grid.points == 0).any(-1) | ~inside).all())
    assert float(grid.sag(1).max()) < 1e-9
    assert float(grid.sag(-1).max()) < 1e-9
