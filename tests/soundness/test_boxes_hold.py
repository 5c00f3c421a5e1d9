"""The search over input boxes, attacked: a planted counterexample is always in some open box, whatever is clipped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from curvverify.graph import load
from curvverify.graph.layers import Graph
from curvverify.spec.load import parse_query
from curvverify.types import Deadline, Interval
from curvverify.verification.boxes import KINDS, BoxSearch
from curvverify.verification.checker import Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.methods import Method
from curvverify.verification.property import compile_query
from curvverify.verification.state import Subproblems
from tests.soundness.attack import points
from tests.soundness.test_bounds_hold import box_around
from tests.soundness.test_branching_holds import ACTIVATIONS

STEPS = 24


class Odd(nn.Module):
    """Quotients, squares, waves and kinks around a residual join; five inputs, two outputs."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.act = ACTIVATIONS[seed % len(ACTIVATIONS)]

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.first(x))
        u = self.second(z)
        ratio = torch.sin(u) / (1.0 + z * z) + x.abs().sum(-1, keepdim=True)
        return self.last(torch.clamp(ratio, -0.3, 0.4) * u + z)


class Silent(Falsifier):
    """Finds nothing: all depends on the bounds."""

    def descend(self, group: Tensor, disjunct: Tensor, starts: Tensor, deadline: Deadline) -> None:
        return None


def query(box: Interval, graph: Graph, x: Tensor):
    """Two disjuncts of two rows, one with an input; the point x is just inside of the second, and far from the first.

    Both rows of the second are nearly attained, so that clipping has a corner to find.
    """
    y = graph(x.reshape(1, *graph.input_shape)).flatten().tolist()
    low, high = box.lower.flatten().tolist(), box.upper.flatten().tolist()
    lines = [f"(declare-const X_{i} Real)" for i in range(len(low))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(2)]
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        lines += [f"(assert (>= X_{i} {a!r}))", f"(assert (<= X_{i} {b!r}))"]
    first = f"(and (<= Y_0 {y[0] - 50.0!r}) (>= Y_1 X_1))"
    second = f"(and (<= Y_0 {y[0] + 1e-7!r}) (<= Y_1 {y[1] + 1e-7!r}))"
    return parse_query("\n".join([*lines, f"(assert (or {first} {second}))"]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_a_counterexample_is_never_clipped_away(seed: int, kind: str) -> None:
    model = load(Odd(seed).double(), shapes=(1, 5))
    graph = model.graph
    box = box_around(graph.input_shape, 0.5, seed)
    upper = box.upper.clone()
    upper[..., 3:] = box.lower[..., 3:]
    box = Interval(box.lower.float().double(), upper.float().double())
    samples = points(box, 4000, seed).flatten(1)
    y = graph(samples.reshape(-1, *graph.input_shape)).flatten(1)
    direction = torch.randn(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).abs()
    x = samples[(y @ direction).argmin()]
    asked = query(box, graph, x)
    prop = compile_query(asked)
    seen: list[int] = []

    def contained(search: BoxSearch) -> None:
        left = [*search._stack, *search._stuck]
        holds = [((x >= p.box.lower) & (x <= p.box.upper)).all(1) & p.open[:, 1] for p in left]
        assert any(bool(h.any()) for h in holds)
        seen.append(search.open)
        if len(seen) == STEPS:
            deadline.cancel()

    deadline = Deadline.after(2.0)
    silent = Silent(graph, asked, prop, lambda x: x)
    search = BoxSearch(Checker(graph, prop), silent, 1.0, contained)
    search.methods = [Method(kind, batch=8)]
    with torch.no_grad():
        search.run(Subproblems.of(prop), deadline)
    margins, still = search.outcome()
    assert bool(still[0, 1])
    assert float(margins[0, 1]) <= 1e-6
    assert len(seen) > 3
