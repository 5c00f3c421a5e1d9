"""Verdicts on networks whose answer is known by construction or by exhaustive sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import curvverify
from curvverify import Options, Verdict
from curvverify.errors import UnreadableError, UsageError
from curvverify.graph import load
from curvverify.spec import parse_query
from curvverify.types import Deadline

QUICK = Options(timeout=20.0, attack_rounds=2, threads=1)


def query(inputs: int, outputs: int, *assertions: str):
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    text = "\n".join([f"(declare-const {n} Real)" for n in names] + [f"(assert {a})" for a in assertions])
    return parse_query(text)


def box(inputs: int, low: float, high: float) -> list[str]:
    return [f"(and (>= X_{i} {low}) (<= X_{i} {high}))" for i in range(inputs)]


def scalar(*layers: nn.Module):
    return load(nn.Sequential(*layers), shapes=(1, 1))


def linear(weight: float, bias: float) -> nn.Linear:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)
    return layer


@pytest.mark.parametrize(
    ("assertion", "verdict"),
    [
        ("(>= Y_0 0.9)", Verdict.VERIFIED),  # tanh(1) = 0.7616
        ("(>= Y_0 0.75)", Verdict.FALSIFIED),
        ("(<= Y_0 -0.77)", Verdict.VERIFIED),
        ("(or (>= Y_0 0.9) (<= Y_0 -0.9))", Verdict.VERIFIED),
        ("(or (>= Y_0 0.9) (<= Y_0 -0.7))", Verdict.FALSIFIED),
        ("(and (>= Y_0 0.5) (<= Y_0 0.4))", Verdict.VERIFIED),
        ("(and (>= Y_0 0.5) (<= X_0 0.0))", Verdict.VERIFIED),
        ("(>= Y_0 (+ X_0 0.3))", Verdict.VERIFIED),  # tanh(x) - x <= 0.2384 on [-1, 1]
        ("(>= Y_0 (+ X_0 0.2))", Verdict.FALSIFIED),
    ],
)
def test_tanh_on_the_unit_interval(assertion: str, verdict: Verdict) -> None:
    model = scalar(linear(1.0, 0.0), nn.Tanh())
    result = curvverify.verify(model, query(1, 1, *box(1, -1.0, 1.0), assertion), QUICK)
    assert result.verdict is verdict
    assert (result.margin_lower > 0) is (verdict is Verdict.VERIFIED)
    assert (result.witness is not None) is (verdict is Verdict.FALSIFIED)


def test_needs_branching() -> None:
    """|x| by two ReLUs against a bound that only holds after splitting: relaxations alone are off by a half."""
    first = nn.Linear(1, 2)
    first.weight.data, first.bias.data = torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
    second = nn.Linear(2, 1)
    second.weight.data, second.bias.data = torch.tensor([[-1.0, -1.0]]), torch.zeros(1)
    model = load(nn.Sequential(first, nn.ReLU(), second), shapes=(1, 1))
    asked = query(1, 1, *box(1, -1.0, 2.0), "(<= Y_0 -2.000001)")
    result = curvverify.verify(model, asked, QUICK)
    assert result.verdict is Verdict.VERIFIED
    assert 0.0 < result.margin_lower <= 1.1e-6


def test_no_branching_leaves_unknown() -> None:
    model = load(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)), (1, 2))
    y = model.graph(torch.rand(20000, 1, 2, dtype=torch.float64) * 6 - 3)
    barely = float(y.max()) + 1e-3
    asked = query(2, 1, *box(2, -3.0, 3.0), f"(>= Y_0 {barely})")
    result = curvverify.verify(model, asked, Options(timeout=20.0, attack_rounds=2, branch=False))
    assert result.verdict in (Verdict.UNKNOWN, Verdict.FALSIFIED)
    assert result.margin_lower <= 0.0


@pytest.mark.parametrize(("seed", "by_input"), [*((seed, True) for seed in range(6)), (0, False), (5, False)])
def test_random_networks_against_dense_samples(seed: int, by_input: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two inputs dense samples know the answer: thresholds on either side of the true minimum are told apart."""
    if not by_input:  # two inputs are split themselves, unless what is costlier may start at once
        monkeypatch.setattr("curvverify.verification.run.AFTER", 0.0)
    options = QUICK if by_input else Options(timeout=20.0, attack_rounds=2, threads=1, branch_inputs=0)
    torch.manual_seed(seed)
    activation = [nn.ReLU(), nn.Sigmoid(), nn.Softplus(), nn.GELU(), nn.SiLU(), nn.LeakyReLU(0.1)][seed]
    module = nn.Sequential(nn.Linear(2, 10), activation, nn.Linear(10, 8), activation, nn.Linear(8, 2))
    model = load(module, shapes=(1, 2))
    grid = torch.cartesian_prod(*(torch.linspace(-1, 1, 301, dtype=torch.float64),) * 2).reshape(-1, 1, 2)
    gap = (model.graph(grid)[:, 0, 0] - model.graph(grid)[:, 0, 1]).detach()
    least, spread = float(gap.min()), float(gap.max() - gap.min())
    for offset, verdict in ((-0.02 * spread, Verdict.VERIFIED), (0.02 * spread, Verdict.FALSIFIED)):
        asked = query(2, 2, *box(2, -1.0, 1.0), f"(<= (- Y_0 Y_1) {least + offset:.9f})")
        result = curvverify.verify(model, asked, options)
        assert result.verdict is verdict
        if result.verdict is Verdict.VERIFIED:
            assert 0.0 < result.margin_lower <= -offset + 1e-6


def test_union_of_boxes() -> None:
    """Every box has its own verdict; one bad box makes the query sat, and the witness lies in it."""
    model = scalar(linear(2.0, 0.0), nn.Sigmoid())
    boxes = "(or (and (>= X_0 0) (<= X_0 1) (>= Y_0 0.95)) (and (>= X_0 5) (<= X_0 6) (>= Y_0 0.9999)))"
    result = curvverify.verify(model, query(1, 1, boxes), QUICK)
    assert result.verdict is Verdict.FALSIFIED
    assert result.witness is not None
    assert 5.0 <= result.witness.x[0] <= 6.0


def test_empty_box_is_verified_with_a_note() -> None:
    model = scalar(linear(1.0, 0.0), nn.Tanh())
    result = curvverify.verify(model, query(1, 1, "(and (>= X_0 1.0) (<= X_0 0.0))", "(>= Y_0 0)"), QUICK)
    assert result.verdict is Verdict.VERIFIED
    assert any("empty" in note for note in result.notes)


def test_a_point_box() -> None:
    """Fixed inputs (lower = upper) are an ordinary case."""
    model = scalar(linear(1.0, 0.0), nn.Tanh())
    value = math.tanh(0.1)
    proved = curvverify.verify(model, query(1, 1, "(= X_0 0.1)", f"(>= Y_0 {value + 1e-5})"), QUICK)
    refuted = curvverify.verify(model, query(1, 1, "(= X_0 0.1)", f"(>= Y_0 {value - 1e-5})"), QUICK)
    assert (proved.verdict, refuted.verdict) == (Verdict.VERIFIED, Verdict.FALSIFIED)


def test_unsafe_everywhere_needs_only_a_point() -> None:
    """A box with no output condition is unsafe as such."""
    model = scalar(linear(1.0, 0.0), nn.Tanh())
    result = curvverify.verify(model, query(1, 1, *box(1, -1.0, 1.0)), QUICK)
    assert result.verdict is Verdict.FALSIFIED


def test_equality_is_not_provably_violated_by_a_tie() -> None:
    """Y >= max is attained: a proof that Y < max must fail even though no float sample reaches it."""
    model = scalar(linear(1.0, 0.0))
    result = curvverify.verify(model, query(1, 1, *box(1, 0.0, 1.0), "(>= Y_0 1.0)"), QUICK)
    assert result.verdict is Verdict.FALSIFIED


def test_nan_network_never_verifies() -> None:
    """A network that is not finite on the box proves nothing."""

    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x)

    model = load(nn.Sequential(linear(1.0, 0.0), Root()), shapes=(1, 1), check=False)
    asked = query(1, 1, *box(1, -1.0, 1.0), "(>= Y_0 5.0)")
    result = curvverify.verify(model, asked, Options(timeout=3.0, attack_rounds=2, threads=1))
    assert result.verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
    assert not result.margin_lower > 0


def test_a_past_deadline_is_a_timeout_not_a_proof() -> None:
    model = scalar(linear(1.0, 0.0), nn.Tanh())
    asked = query(1, 1, *box(1, -1.0, 1.0), "(>= Y_0 0.9)")
    result = curvverify.verify(model, asked, QUICK, deadline=Deadline(0.0))
    assert result.verdict in (Verdict.TIMEOUT, Verdict.VERIFIED)  # the interval pass alone may still prove it
    assert (result.margin_lower > 0) is (result.verdict is Verdict.VERIFIED)


def test_sizes_must_match() -> None:
    model = scalar(linear(1.0, 0.0), nn.Tanh())
    with pytest.raises(UnreadableError, match="2 input variables"):
        curvverify.verify(model, query(2, 1, *box(2, -1.0, 1.0), "(>= Y_0 0.9)"), QUICK)


def test_same_seed_same_result() -> None:
    torch.manual_seed(1)
    model = load(nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)), shapes=(1, 3))
    asked = query(3, 1, *box(3, -0.5, 0.5), "(>= Y_0 3.0)")
    a, b = (curvverify.verify(model, asked, QUICK) for _ in range(2))
    assert a.verdict is b.verdict
    assert a.disjuncts == b.disjuncts


def test_bounds_report_holds_and_names_nodes() -> None:
    torch.manual_seed(2)
    model = load(nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 2)), shapes=(1, 3))
    low, high = torch.full((3,), -0.3), torch.full((3,), 0.4)
    x = low + torch.rand(500, 3) * (high - low)
    values = model.graph.values(x.double().reshape(-1, 1, 3))
    for method in ("interval", "linear"):
        report = curvverify.bounds(model, (low, high), method=method)
        for node, value in zip(report.nodes, values, strict=True):
            assert bool((value >= node.lower).all()), node.name
            assert bool((value <= node.upper).all()), node.name
    assert report[report.nodes[-1].name] is report.nodes[-1]
    assert np.isfinite(report.nodes[-1].upper.detach().numpy()).all()


def test_splitting_activations_decides_what_bounds_leave_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold between the root's bound and the true minimum needs the split, of activations where asked for."""
    monkeypatch.setattr("curvverify.verification.run.AFTER", 0.0)
    torch.manual_seed(4)
    module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    model = load(module, shapes=(1, 2))
    grid = torch.cartesian_prod(*(torch.linspace(-2, 2, 401, dtype=torch.float64),) * 2).reshape(-1, 1, 2)
    least = float(model.graph(grid).min())
    root = Options(timeout=20.0, attack_rounds=1, branch=False, threads=1)
    region = torch.full((2,), -2.0), torch.full((2,), 2.0)
    bound = float(curvverify.bounds(model, region, Options(refine_iterations=16)).nodes[-1].lower)
    assert bound < least - 0.01
    asked = query(2, 1, *box(2, -2.0, 2.0), f"(<= Y_0 {0.7 * least + 0.3 * bound})")
    assert curvverify.verify(model, asked, root).verdict is Verdict.UNKNOWN
    result = curvverify.verify(model, asked, Options(timeout=20.0, attack_rounds=1, branch_inputs=0, threads=1))
    assert result.verdict is Verdict.VERIFIED
    assert result.subproblems > 0
    assert any("parts by phases" in stage.detail for stage in result.stages)


@pytest.mark.parametrize("wrong", [{"timeout": 0.0}, {"timeout": math.nan}, {"memory": -1.0}, {"refine_iterations": 0}])
def test_senseless_options_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Options(**wrong)  # type: ignore[arg-type]


def test_coupled_bounds_decide_what_single_ones_leave_open() -> None:
    """A threshold between the plain and the coupled root bound of a ReLU network with 20 inputs."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 30), nn.ReLU(), nn.Linear(30, 1))
    model = load(module, shapes=(1, 20))
    least = float(model.graph(torch.rand(20000, 1, 20, dtype=torch.float64).round() - 0.5).min())
    plain = Options(timeout=60.0, attack_rounds=1, branch=False, coupling=False, threads=1)
    coupled = Options(timeout=60.0, attack_rounds=1, branch=False, threads=1)

    def asked(threshold: float):
        return query(20, 1, *box(20, -0.5, 0.5), f"(<= Y_0 {threshold:.6f})")

    beyond = least - 0.5 * abs(least)
    margins = [curvverify.verify(model, asked(beyond), options).margin_lower for options in (plain, coupled)]
    assert margins[0] < min(margins[1], 0.0)
    between = asked(beyond + 0.5 * (margins[0] + min(margins[1], 0.0)))
    assert curvverify.verify(model, between, plain).verdict is Verdict.UNKNOWN
    result = curvverify.verify(model, between, coupled)
    assert result.verdict is Verdict.VERIFIED
    assert str(result.disjuncts[0].settled_by).startswith("coupled")
