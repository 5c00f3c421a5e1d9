"""The parts of the checker: compiled properties, subproblems, branching, witnesses."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from curvverify.bounding.linear import Effort
from curvverify.graph import load
from curvverify.graph.replay import Replayer
from curvverify.spec import parse_query
from curvverify.types import Deadline
from curvverify.verification.branch import Branching, attack_minima
from curvverify.verification.checker import Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.property import compile_query
from curvverify.verification.splits import Open, neuron_cuts
from curvverify.verification.state import Subproblems, concatenate


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
    branching = Branching(checker, falsifier, 1.0, 16)
    branching._settled = torch.full(prop.present.shape, math.inf, dtype=torch.float64)
    branching._smallest = torch.zeros(2, dtype=torch.float64)
    branching._push(type(root)(still, root.rows, root.bounds, root.relaxation))
    children, known = branching._split(4)
    assert len(children) == 2
    assert torch.equal(children.box.lower.amin(0), prop.boxes.lower[0])
    assert torch.equal(children.box.upper.amax(0), prop.boxes.upper[0])
    cut = children.box.width.prod(1).sum()
    assert cut.item() == pytest.approx(prop.boxes.width.prod().item())
    assert set(known) == set(model.graph.bounded)
    checked = checker.linear(children, Effort(1), 1, known=known)
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
    opened = type(root)(stuck, root.rows, root.bounds, root.relaxation)
    (cut,) = neuron_cuts(checker, opened, torch.tensor([0]))
    assert cut is not None
    assert cut.node in model.graph.bounded
    known = {i: root.relaxation.intervals[i] for i in model.graph.bounded}  # type: ignore[union-attr]
    halves = Open(stuck, known, cut).halves()
    x = 2.0 * torch.rand(500, 1, 2, dtype=torch.float64) - 1.0
    values = model.graph.values(x)
    at = values[cut.node].flatten(1)[:, cut.entry]
    for (problem, half), inside in zip(halves, (at <= cut.at, at >= cut.at), strict=True):
        bounds = checker.linear(problem, Effort(2), 2, known=half).relaxation.intervals  # type: ignore[union-attr]
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


def test_replaced_and_concatenate_keep_order() -> None:
    prop = compile_query(declared(2, 3, *BOX, "(or (<= Y_0 0.0) (<= Y_1 0.0))"))
    one = Subproblems.of(prop)
    three = concatenate([one, one, one])
    proved = three[torch.tensor([1])].proved(torch.ones(1, 2, 1, dtype=torch.float64))
    assert three.replaced(torch.tensor([1]), proved).unsettled.tolist() == [0, 2]
