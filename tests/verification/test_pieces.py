"""The parts of the checker: compiled properties, subproblems, branching, witnesses."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from curvverify.bounding.linear import Effort
from curvverify.bounding.relaxation import Part
from curvverify.graph import load
from curvverify.graph.replay import Replayer
from curvverify.spec import parse_query
from curvverify.types import Deadline
from curvverify.verification.branch import Branching, attack_minima
from curvverify.verification.checker import Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.methods import Method, best
from curvverify.verification.property import compile_query
from curvverify.verification.splits import Open, directions, neuron_cuts
from curvverify.verification.state import Subproblems


def declared(inputs: int, outputs: int, *assertions: str):
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    return parse_query("\n".join([f"(declare-const {n} Real)" for n in names] + [f"(assert {a})" for a in assertions]))


BOX = ("(>= X_0 -1.0)", "(<= X_0 1.0)", "(>= X_1 -1.0)", "(<= X_1 1.0)")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return load(nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)), (1, 2))


def test_identical_rows_are_shared() -> None:
    """Rows that only differ in their bound are one row with two thresholds."""
    prop = compile_query(declared(2, 3, *BOX, "(or (<= Y_0 Y_1) (and (<= Y_0 (+ Y_1 1.0)) (<= Y_2 0.5)))"))
    assert prop.output.shape == (2, 3)
    assert prop.rows.shape == (1, 2, 2)
    assert sorted(prop.thresholds[prop.rows >= 0].tolist()) == [0.0, 0.5, 1.0]
    assert prop.wanted(torch.tensor([0]), prop.present).tolist() == [0, 1]


def test_margin_is_the_best_row_and_padding_never_proves() -> None:
    prop = compile_query(declared(2, 3, *BOX, "(or (<= Y_0 Y_1) (and (<= Y_0 (+ Y_1 1.0)) (<= Y_2 0.5)))"))
    lower = torch.full((1, 2), -math.inf, dtype=torch.float64)
    lower[0, prop.rows[0, 0, 0]] = 0.25
    margins = prop.margins(torch.tensor([0]), lower)
    problems = Subproblems.of(prop).proved(margins)
    assert problems.open.tolist() == [[False, True]]
    assert problems.margin_lower.item() == -0.75
    nan = torch.full((1, 2), math.nan, dtype=torch.float64)
    assert bool(Subproblems.of(prop).proved(prop.margins(torch.tensor([0]), nan)).open.all())


def test_decimal_coefficients_cost_a_slack() -> None:
    """0.1 is not a float64: the row's bound gives up what the coefficient may be off by."""
    prop = compile_query(declared(2, 3, *BOX, "(<= (* 0.1 Y_0) 5.0)"))
    assert prop.output_error is not None
    size = torch.tensor([[1e6, 0.0, 0.0]], dtype=torch.float64)
    slack = prop.coefficient_slack(torch.tensor([0]), size, torch.zeros(1, 2, dtype=torch.float64))
    assert slack.item() >= abs(Fraction(1, 10) - Fraction(0.1)) * 10**6


def test_threshold_covers_its_float32_form() -> None:
    """0.1 rounds up in float32, and the competition compares there: a proof must exceed the larger one."""
    prop = compile_query(declared(2, 3, *BOX, "(<= Y_0 0.1)"))
    assert prop.thresholds[0, 0, 0].item() == float(np.float32(0.1)) > 0.1


def test_children_cover_the_parent_and_inherit(model) -> None:
    """A split loses no point, and the leaves' margins are bounds on the whole box."""
    query = declared(2, 3, *BOX, "(<= Y_0 -50.0)", "(<= Y_1 -50.0)")
    prop = compile_query(query)
    checker = Checker(model.graph, prop)
    falsifier = Falsifier(model.graph, query, prop, Replayer(model).run)
    root = checker.linear(Subproblems.of(prop), Effort(1), 1)
    stuck = root.problems.open | True
    still = Subproblems(root.problems.box, root.problems.group, stuck, torch.full_like(root.problems.margins, -1.0))
    branching = Branching(checker, falsifier, 1.0, 16, [Method("input")])
    branching._begin([type(root)(still, root.rows, root.bounds, root.relaxation)], Deadline.never())
    (entry,) = branching._pop(4, branching.methods[0])
    (one, known), (other, _) = entry.halves(entry.steepest or entry.widest)
    children, part = (
        Subproblems.concatenated([one, other]),
        branching._stacked(branching.methods[0], [entry], [known, known]),
    )
    assert len(children) == 2
    assert torch.equal(children.box.lower.amin(0), prop.boxes.lower[0])
    assert torch.equal(children.box.upper.amax(0), prop.boxes.upper[0])
    cut = children.box.width.prod(1).sum()
    assert cut.item() == pytest.approx(prop.boxes.width.prod().item())
    assert set(part.known) == set(model.graph.bounded)
    checked = checker.linear(children, Effort(1), 1, part)
    for node, bounds in enumerate(checked.relaxation.intervals):  # type: ignore[union-attr]
        x = torch.rand(2, 200, 2, dtype=torch.float64) * children.box.width.unsqueeze(1) + children.box.lower.unsqueeze(
            1
        )
        for child in range(2):
            value = model.graph.values(x[child].reshape(-1, 1, 2))[node]
            assert bool((value >= bounds.lower[child] - 1e-12).all())
            assert bool((value <= bounds.upper[child] + 1e-12).all())


def test_halves_of_a_neuron_cut_cover_the_whole(model) -> None:
    """Every sampled point falls into one half, and the bounds of that half hold for it."""
    query = declared(2, 3, *BOX, "(<= Y_0 -50.0)")
    prop = compile_query(query)
    checker = Checker(model.graph, prop)
    root = checker.linear(Subproblems.of(prop), Effort(1), 1)
    stuck = Subproblems(root.problems.box, root.problems.group, prop.present.clone(), root.problems.margins - 1e6)
    known = {i: root.relaxation.intervals[i] for i in model.graph.bounded}
    (cut,) = neuron_cuts(checker, stuck, known)
    assert cut is not None
    assert cut.node in model.graph.bounded
    halves = Open(stuck, Part(known), 0, -1.0).halves(cut)
    x = 2.0 * torch.rand(500, 1, 2, dtype=torch.float64) - 1.0
    values = model.graph.values(x)
    at = values[cut.node].flatten(1)[:, cut.entry]
    for (problem, half), inside in zip(halves, (at <= cut.at, at >= cut.at), strict=True):
        bounds = checker.linear(problem, Effort(2), 2, half).relaxation.intervals
        for value, bound in zip(values, bounds, strict=True):
            assert bool((value[inside] >= bound.lower - 1e-12).all())
            assert bool((value[inside] <= bound.upper + 1e-12).all())


def test_a_witness_lies_in_the_strict_box(model) -> None:
    """Exact decimals: X_0 <= 0.1 excludes float32(0.1), which is larger."""
    query = declared(2, 3, "(>= X_0 0.05)", "(<= X_0 0.1)", "(>= X_1 -0.3)", "(<= X_1 -0.1)", "(<= Y_0 100.0)")
    prop = compile_query(query)
    falsifier = Falsifier(model.graph, query, prop, Replayer(model).run)
    witness = falsifier.burst(torch.tensor([0]), prop.present, Deadline.after(20.0))
    assert witness is not None
    assert witness.replayed
    x = [Fraction(v) for v in witness.x]
    assert Fraction("0.05") <= x[0] <= Fraction("0.1")
    assert Fraction("-0.3") <= x[1] <= Fraction("-0.1")
    assert witness.y == pytest.approx(Replayer(model).run(torch.tensor(witness.x)).tolist())


def test_a_candidate_that_does_not_replay_is_no_witness(model) -> None:
    """Our own arithmetic may be fooled; the reference execution decides."""
    query = declared(2, 3, *BOX, "(<= Y_0 100.0)")
    prop = compile_query(query)
    for answer in (torch.full((3,), 1000.0), torch.full((3,), math.nan)):
        falsifier = Falsifier(model.graph, query, prop, lambda x, answer=answer: answer)
        assert falsifier.burst(torch.tensor([0]), prop.present, Deadline.after(5.0)) is None


def test_minimisers_of_the_relaxation_are_attacked(model) -> None:
    query = declared(2, 3, *BOX, "(<= Y_0 100.0)")
    prop = compile_query(query)
    falsifier = Falsifier(model.graph, query, prop, Replayer(model).run)
    root = Checker(model.graph, prop).linear(Subproblems.of(prop), Effort(1), 1)
    assert root.problems.open.any()
    assert attack_minima(root, falsifier, Deadline.after(20.0)) is not None


def test_replaced_and_concatenated_keep_order() -> None:
    prop = compile_query(declared(2, 3, *BOX, "(or (<= Y_0 0.0) (<= Y_1 0.0))"))
    one = Subproblems.of(prop)
    three = Subproblems.concatenated([one, one, one])
    proved = three[torch.tensor([1])].proved(torch.ones(1, 2, 1, dtype=torch.float64))
    assert three.replaced(torch.tensor([1]), proved).unsettled.tolist() == [0, 2]


def test_the_method_that_closes_soonest_is_taken() -> None:
    """Untried methods come first, then the least seconds times the size of the tree that the gains promise."""
    slow, quick, stuck = Method("slab"), Method("input"), Method("neuron")
    slow.record([0.5, 0.5], 8.0, 1)
    assert best([slow, quick]) is quick
    quick.record([0.25, 0.25], 0.5, 1)
    assert slow.expected == pytest.approx(math.log(8.0 * 4.0))
    assert quick.expected == pytest.approx(math.log(0.5 * 16.0))
    stuck.record([0.0, 0.0], 0.001, 1)
    assert best([slow, quick, stuck]) is quick


def test_a_full_queue_forgets_and_goes_deep(model) -> None:
    """Above its shares of the memory the queue drops search states, then closes the nearly proved first."""
    query = declared(2, 3, *BOX, "(<= Y_0 -50.0)")
    prop = compile_query(query)
    checker = Checker(model.graph, prop)
    falsifier = Falsifier(model.graph, query, prop, Replayer(model).run)
    root = checker.linear(Subproblems.of(prop), Effort(1, keep=True), 1)
    known = {i: root.relaxation.intervals[i] for i in model.graph.bounded}
    branching = Branching(checker, falsifier, 1e-9, 4, [Method("input")])
    for margin in (-3.0, -1.0, -2.0):
        problem = Subproblems(prop.boxes, torch.tensor([0]), prop.present, torch.full_like(prop.thresholds, margin))
        branching._add(Open(problem, Part(known, states=root.relaxation.states), 0, margin))
    before = branching._bytes
    (entry,) = branching._pop(1, branching.methods[0])
    assert entry.margin == -1.0
    assert not entry.part.states
    assert 0 < branching._bytes < before


def test_directions_find_what_the_network_varies_in() -> None:
    """All neurons look along w, up to noise: the first direction is w, scaled to |v|.r = 1, and cut in the middle."""
    torch.manual_seed(5)
    w = torch.randn(20)
    module = nn.Sequential(nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    first = module[0]
    assert isinstance(first, nn.Linear)
    first.weight.data = torch.outer(torch.rand(12) + 0.5, w) + 0.01 * torch.randn(12, 20)
    model = load(module, (1, 20))
    bounds = [f"(and (>= X_{i} -0.1) (<= X_{i} {0.1 + 0.01 * i:.2f}))" for i in range(20)]
    prop = compile_query(declared(20, 1, *bounds, "(<= Y_0 -50.0)"))
    checker = Checker(model.graph, prop)
    root = checker.linear(Subproblems.of(prop), Effort(1), 1)
    stuck = Subproblems(prop.boxes, torch.tensor([0]), prop.present, torch.full_like(prop.thresholds, -1.0))
    found = directions(checker, type(root)(stuck, root.rows, root.bounds, root.relaxation), 0)
    assert found is not None
    v, radius = found.slabs.directions[0], 0.5 * prop.boxes.width[0]
    assert torch.allclose(v.abs() @ radius, torch.ones(len(v), dtype=torch.float64))
    assert float(torch.cosine_similarity(v[0] * radius, w * radius, dim=0).abs()) > 0.99
    assert float(found.strengths[0]) == float(found.strengths.max())
    cut = found.cut(found.slabs)
    assert cut.direction == 0
    assert cut.at == pytest.approx(float(v[0] @ prop.boxes.centre[0]), abs=1e-6)
    left, right = found.slabs.halves(0, cut.at)
    assert left.high[0, 0] == right.low[0, 0] == cut.at
    inner = found.cut(right)
    assert inner.direction != 0 or float(inner.at - cut.at) < 0.5  # unevenly: the middle matters most
