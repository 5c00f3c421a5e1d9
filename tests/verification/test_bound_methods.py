"""Every bound method attacked; methods by name and of one's own in the checker and the comparison."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import curvverify
from curvverify import BoundMethod, Deadline, Options, RowProblem, Verdict
from curvverify.errors import UsageError
from curvverify.graph import load
from curvverify.types import Interval
from curvverify.verification.bound_methods import METHODS, IntervalBound, LinearBound, TaylorBound, method_of
from tests.soundness.attack import ascent, points
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import residual_convnet, residual_mlp
from tests.soundness.test_bounds_hold import ROUNDING, box_around
from tests.soundness.test_coupling_holds import with_fixed_inputs
from tests.verification.test_verdicts import box, query

BOUNDS = (IntervalBound(), LinearBound(), LinearBound(4, name="optimised"), LinearBound(3, 2, "coupled"), TaylorBound())
QUICK = Options(timeout=20.0, attack_rounds=1, threads=1)


def problem_of(graph, x: Interval, seed: int, with_input: bool = True) -> RowProblem:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, graph.nodes[-1].size, generator=generator, dtype=torch.float64)
    shift = torch.randn(3, graph.nodes[0].size, generator=generator, dtype=torch.float64) if with_input else None
    return RowProblem(graph, x, rows, shift, Deadline.never())


def values(problem: RowProblem, x: Tensor) -> Tensor:
    y = problem.graph(x).flatten(1) @ problem.output.T
    return y if problem.input is None else y + x.flatten(1) @ problem.input.T


def least_found(problem: RowProblem, box: Interval, seed: int) -> Tensor:
    """The smallest values (R,) of an attack on one box."""
    starts = points(box, 500, seed)
    graph, size = problem.graph, problem.graph.output_shape
    ends = [ascent(graph, graph.output, box, -row.reshape(size), starts[:8]) for row in problem.output]
    with torch.no_grad():
        return values(problem, torch.cat([starts, *ends])).amin(0)


@pytest.mark.parametrize(
    ("name", "make"),
    [("Relu", residual_mlp), ("Gelu", residual_mlp), ("Sin", residual_mlp), ("Tanh", residual_convnet)],
)
def test_bounds_are_below_every_attack(name: str, make) -> None:
    graph = make(SAMPLES[name], 3)
    wide, narrow = box_around(graph.input_shape, 0.2, 0), with_fixed_inputs(box_around(graph.input_shape, 0.03, 9))
    both = Interval(torch.cat([wide.lower, narrow.lower]), torch.cat([wide.upper, narrow.upper]))
    problem = problem_of(graph, both, 1, with_input=make is residual_mlp)
    least = torch.stack([least_found(problem, b, 0) for b in (wide, narrow)])
    for method in BOUNDS:
        with torch.no_grad():
            lower = method.lower(problem)
        assert lower.shape == least.shape
        assert bool((lower <= least + ROUNDING * (1.0 + least.abs())).all()), method
        assert bool(lower[1].isfinite().all()) or (method.name == "taylor" and name == "Relu")


def test_taylor_is_second_order() -> None:
    """Half the radius, a quarter of the gap; and on small boxes of a smooth network the best of all."""
    graph = residual_mlp(SAMPLES["Tanh"], 1)
    gaps = []
    for reach in (0.02, 0.01):
        x = box_around(graph.input_shape, reach, 4)
        problem = problem_of(graph, x, 2)
        least = least_found(problem, x, 0)
        with torch.no_grad():
            found = {method.name: method.lower(problem)[0] for method in BOUNDS}
        assert bool((found["taylor"] > found["interval"]).all())
        gaps.append(float((least - found["taylor"]).sum()))
    assert gaps[1] < 0.3 * gaps[0]


def test_taylor_says_nothing_about_kinks_and_unbounded_boxes() -> None:
    graph = residual_mlp(SAMPLES["Relu"], 1)
    assert not bool(TaylorBound().lower(problem_of(graph, box_around(graph.input_shape, 1.0, 0), 0)).isfinite().any())
    wide = torch.full((1, *graph.input_shape), torch.inf, dtype=torch.float64)
    assert not bool(TaylorBound().lower(problem_of(graph, Interval(-wide, wide), 0)).isfinite().any())


def test_a_passed_deadline_bounds_nothing() -> None:
    graph = residual_mlp(SAMPLES["Tanh"], 1)
    problem = problem_of(graph, box_around(graph.input_shape, 0.1, 0), 0)
    late = RowProblem(graph, problem.box, problem.output, problem.input, Deadline(0.0))
    for method in (LinearBound(3), TaylorBound()):
        assert bool((method.lower(late) == -torch.inf).all())


def smooth_model():
    torch.manual_seed(0)
    return load(nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, 8), nn.Sigmoid(), nn.Linear(8, 2)), (1, 3))


def test_every_method_by_name_and_the_order_of_their_margins() -> None:
    model = smooth_model()
    asked = query(3, 2, *box(3, -0.3, 0.3), "(<= (- Y_0 Y_1) -5.0)")
    seen: list[str] = []
    results = curvverify.compare(model, asked, METHODS, QUICK, progress=lambda name, result: seen.append(name))
    assert seen == list(results) == list(METHODS)
    assert {r.verdict for r in results.values()} == {Verdict.VERIFIED}
    margins = {name: result.margin_lower for name, result in results.items()}
    assert margins["interval"] < margins["linear"] <= margins["optimised"] + 1e-6
    assert margins["interval"] < margins["taylor"]
    assert any("bounded by taylor alone" in note for note in results["taylor"].notes)
    assert results["taylor"].disjuncts[0].settled_by == "taylor"


@dataclass
class Shifted:
    """Interval bounds, spoilt."""

    by: float
    name: str = "mine"

    def lower(self, problem: RowProblem) -> Tensor:
        assert not torch.is_grad_enabled()
        return IntervalBound().lower(problem) + self.by


class Sampling:
    """An own method without any state: the interval bound."""

    name = "own"

    def lower(self, problem: RowProblem) -> Tensor:
        return IntervalBound().lower(problem)


def test_a_method_of_ones_own() -> None:
    model = smooth_model()
    asked = query(3, 2, *box(3, -0.3, 0.3), "(<= (- Y_0 Y_1) -9.0)")
    assert isinstance(Shifted(0.0), BoundMethod)
    results = curvverify.compare(model, asked, ["interval", Shifted(-0.5)], QUICK)
    assert results["mine"].margin_lower == pytest.approx(results["interval"].margin_lower - 0.5)
    assert any("mine alone (tests.verification.test_bound_methods.Shifted)" in n for n in results["mine"].notes)
    named = curvverify.verify(model, asked, QUICK, method="tests.verification.test_bound_methods:Sampling")
    assert named.margin_lower == results["interval"].margin_lower


@pytest.mark.parametrize("by", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_proves_nothing(by: float) -> None:
    asked = query(3, 2, *box(3, -0.3, 0.3), "(<= (- Y_0 Y_1) -9.0)")
    result = curvverify.verify(smooth_model(), asked, QUICK, method=Shifted(by))
    assert (result.verdict, result.margin_lower) == (Verdict.UNKNOWN, -float("inf"))
    assert result.subproblems == 0


class OneRow:
    name = "one row"

    def lower(self, problem: RowProblem) -> Tensor:
        return torch.zeros(7, 3)


def test_wrong_methods_are_refused_by_name() -> None:
    asked = query(3, 2, *box(3, -0.3, 0.3), "(<= (- Y_0 Y_1) -9.0)")
    with pytest.raises(UsageError, match=r"'one row' returned torch.float32 \(7, 3\)"):
        curvverify.verify(smooth_model(), asked, QUICK, method=OneRow())
    for wrong, words in (
        ("taylr", "choose from interval, linear"),
        ("no.such.module:x", "no.such.module"),
        ("math:nothing", "nothing"),
        ("math:pi", "no bound method"),
    ):
        with pytest.raises(UsageError, match=words):
            method_of(wrong, QUICK)
    with pytest.raises(UsageError, match="name of its own"):
        curvverify.compare(smooth_model(), asked, [Shifted(0.0), Shifted(1.0)], QUICK)


def test_attacks_go_with_every_method() -> None:
    asked = query(3, 2, *box(3, -0.3, 0.3), "(<= (- Y_0 Y_1) 9.0)")
    for result in curvverify.compare(smooth_model(), asked, ["interval", "taylor", "branching"], QUICK).values():
        assert result.verdict is Verdict.FALSIFIED
