"""Sums of ReLUs of shifted copies: found, put together as one function, and bounded as one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import curvverify
from curvverify import Options, Verdict
from curvverify.bounding.interval import interval_bounds
from curvverify.graph import load
from curvverify.graph.layers import Graph
from curvverify.graph.ramps import with_ramps
from curvverify.ops.elementwise.hinge import Relu
from curvverify.ops.elementwise.ramps import Ramps
from curvverify.ops.linear import Dense
from tests.soundness.attack import points
from tests.soundness.test_bounds_hold import box_around
from tests.soundness.test_branching_holds import asked


class Saturating(nn.Module):
    """A hidden layer, then clip(z + 1, 0, 2) spelled out as ReLUs of shifted copies, as exports of such networks do."""

    def __init__(self, offset: bool = False, scaled: bool = False):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.shift = nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))
        self.sum = nn.Linear(3, 1, bias=offset)
        self.sum.weight.data = torch.tensor([[1.0, 0.0, -1.0]])
        self.last = nn.Linear(6, 2)
        self.register_buffer("factor", torch.tensor([1.0, 2.0, 3.0]) if scaled else None)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x).unsqueeze(-1).repeat(1, 1, 3)
        z = z if self.factor is None else z * self.factor
        return self.last(self.sum(torch.relu(z + self.shift)).squeeze(-1))


def loaded(seed: int, **options: bool) -> Graph:
    torch.manual_seed(seed)
    return load(Saturating(**options), shapes=(1, 4)).graph


@pytest.mark.parametrize("offset", [False, True])
def test_ramps_are_found(offset: bool) -> None:
    """One node for all ReLUs, and the same values."""
    graph = loaded(0, offset=offset)
    found = with_ramps(graph)
    kinds = [type(found.nodes[i].op) for i in found.nonlinear]
    assert kinds == [Ramps]
    assert any(isinstance(node.op, Relu) for node in graph)
    x = torch.randn(200, *graph.input_shape, dtype=torch.float64) * 3.0
    assert torch.allclose(found(x), graph(x), atol=1e-12)


def test_other_sums_are_left_alone() -> None:
    """Plain layers, and copies with a factor."""
    plain = load(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), shapes=(1, 4)).graph
    for graph in (plain, loaded(0, scaled=True)):
        assert with_ramps(graph) is graph


@pytest.mark.parametrize("seed", range(4))
def test_bounds_of_what_saturates_do(seed: int) -> None:
    """Far away every ReLU is large, and their sum constant: bounds hold, and are those of a clipped value."""
    graph = loaded(seed)
    box = box_around(graph.input_shape, 40.0, seed)
    found = with_ramps(graph)
    y, apart = interval_bounds(found, box)[-1], interval_bounds(graph, box)[-1]
    values = graph(points(box, 2000, seed))
    assert bool(((values >= y.lower) & (values <= y.upper)).all())
    assert float(apart.width.max()) > 10.0 * float(y.width.max())
    last = graph.nodes[-1].op
    assert isinstance(last, Dense)
    assert last.bias is not None
    assert torch.allclose(y.lower, last.bias - 2.0 * last.weight.clamp(max=0.0).abs().sum(1), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_both_sides_of_the_minimum(seed: int) -> None:
    model = load(nn.Sequential(Saturating(), nn.Linear(2, 1)), shapes=(1, 4))
    box = box_around((1, 4), 0.8, seed)
    upper = box.upper.clone()
    upper[0, 0, 2:] = box.lower[0, 0, 2:]
    box = type(box)(box.lower.float().double(), upper.float().double())
    t = torch.linspace(0, 1, 301, dtype=torch.float64)
    grid = torch.nn.functional.pad(torch.cartesian_prod(t, t), (0, 2)).reshape(-1, 1, 4)
    y = model.graph(box.lower + grid * box.width)
    least, offset = float(y.min()), 0.02 * float(y.max() - y.min()) + 1e-5
    options = Options(timeout=30.0, threads=1)
    assert curvverify.verify(model, asked(box, least - offset), options).verdict is Verdict.VERIFIED
    assert curvverify.verify(model, asked(box, least + offset), options).verdict is Verdict.FALSIFIED
