"""Slabs and branching, attacked: feasible samples and vertices against every bound, known truth against verdicts."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import curvverify
from curvverify import Options, Verdict
from curvverify.bounding.linear import Effort, linear_bounds, optimised_row_bounds
from curvverify.bounding.relaxation import Part
from curvverify.bounding.slabs import Slabs
from curvverify.bounding.substitution import Rows, Substitution
from curvverify.graph import load
from curvverify.spec import parse_query
from curvverify.types import Interval
from tests.soundness.attack import points
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import residual_convnet, residual_mlp
from tests.soundness.test_bounds_hold import ROUNDING, box_around
from tests.soundness.test_coupling_holds import with_fixed_inputs


def random_slabs(box: Interval, count: int, seed: int, fraction: float = 0.4) -> Slabs:
    """Slabs around random points of the box, along random directions."""
    generator = torch.Generator().manual_seed(seed)
    n = box.lower.numel()
    v = torch.randn(1, count, n, generator=generator, dtype=torch.float64)
    reach = (v.abs() @ (0.5 * box.width).flatten().unsqueeze(1)).squeeze(2)
    x = points(box, 3, seed)[2].flatten()
    middle = (v @ x.unsqueeze(1)).squeeze(2)
    return Slabs(v, middle - fraction * reach, middle + fraction * reach)


def feasible(box: Interval, slabs: Slabs, count: int, seed: int) -> Tensor:
    """Samples inside of box and slabs: of points near a feasible one, moved towards it until they are in."""
    x = points(box, count, seed).flatten(1)
    anchor = points(box, 3, seed + 1)
    v, low, high = slabs.directions[0], slabs.low[0], slabs.high[0]
    inside = ((x @ v.T >= low) & (x @ v.T <= high)).all(1)
    found = [x[inside]]
    start = x[inside][:1] if bool(inside.any()) else anchor[:1].flatten(1)
    for t in (0.9, 0.7, 0.5, 0.3, 0.1):
        y = start + t * (x - start)
        found.append(y[((y @ v.T >= low) & (y @ v.T <= high)).all(1)])
    return torch.cat(found).reshape(-1, *box.lower.shape[1:])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_minimum_over_slabs(seed: int, count: int) -> None:
    """The multipliers' bound is below the linear programme, meets it for one slab, and is above the box's own."""
    box = with_fixed_inputs(box_around((1, 12), 0.7, seed)) if seed % 2 else box_around((1, 12), 0.7, seed)
    slabs = random_slabs(box, count, seed)
    generator = torch.Generator().manual_seed(seed)
    forms = torch.randn(1, 8, 1, 12, generator=generator, dtype=torch.float64)
    eta = slabs.multipliers(forms, box, None, 8).double()
    reduced = slabs.reduced(forms, eta)
    centre, radius = box.centre.unsqueeze(1), 0.5 * box.width.unsqueeze(1)
    bound = (reduced * centre - reduced.abs() * radius).flatten(2).sum(2) + slabs.support(eta)
    plain = (forms * centre - forms.abs() * radius).flatten(2).sum(2)
    assert bool((bound >= plain - 1e-5).all())
    v = slabs.directions[0].numpy()
    for form, lower, weak in zip(forms[0].flatten(1).numpy(), bound[0], plain[0], strict=True):
        found = linprog(
            form,
            A_ub=[*v, *-v],
            b_ub=[*slabs.high[0].tolist(), *(-slabs.low[0]).tolist()],
            bounds=list(zip(box.lower.flatten().tolist(), box.upper.flatten().tolist(), strict=True)),
        )
        assert found.status == 0
        assert float(lower) <= found.fun + 1e-9
        share = 0.01 if count == 1 else 1.0  # sweeps over several multipliers may stall at a kink
        assert found.fun - float(lower) <= share * (found.fun - float(weak)) + 1e-5


@pytest.mark.parametrize("make", [residual_mlp, residual_convnet])
@pytest.mark.parametrize("name", ["Relu", "Sigmoid", "Tanh", "Softplus", "Gelu", "Sin"])
def test_bounds_inside_slabs(name: str, make) -> None:
    """Feasible samples are within all bounds of a cut box, plain and coupled, from any state of a larger box."""
    for seed in range(2):
        graph = make(SAMPLES[name], seed)
        box = box_around(graph.input_shape, 0.3, seed)
        box = with_fixed_inputs(box) if seed else box
        slabs = random_slabs(box, 2, seed + 10)
        x = feasible(box, slabs, 4000, seed)
        assert len(x) > 20
        values = graph.values(x)
        root = linear_bounds(graph, box, Effort(3, coupling=2, keep=True))
        known = dict(enumerate(root.intervals))
        for effort in (Effort(2), Effort(2, coupling=2)):
            frames = root.frames if effort.coupling else {}
            part = Part(known, slabs, frames, root.states)
            cut = linear_bounds(graph, box, effort, part=part)
            for node, value in enumerate(values):
                scale = 1.0 + float(value.abs().max())
                assert bool((value >= cut.intervals[node].lower - ROUNDING * scale).all()), (node, effort)
                assert bool((value <= cut.intervals[node].upper + ROUNDING * scale).all()), (node, effort)


@pytest.mark.parametrize("name", ["Relu", "Sigmoid"])
def test_any_multipliers_are_sound(name: str) -> None:
    """Random multipliers, infinite ones and NaN prove nothing wrong."""
    wild_values: list[float] = []

    class Wild(Slabs):
        def multipliers(self, slope: Tensor, box: Interval, start: Tensor | None, sweeps: int) -> Tensor:
            eta = 3.0 * torch.randn(*slope.shape[:2], self.count, generator=generator)
            eta[:, 0] = wild_values[-1]
            return eta

    graph = residual_mlp(SAMPLES[name], 5)
    box = box_around(graph.input_shape, 0.4, 2)
    slabs = random_slabs(box, 3, 7)
    generator = torch.Generator().manual_seed(3)
    x = feasible(box, slabs, 4000, 3)
    rows = Rows(torch.randn(1, 16, *graph.output_shape, generator=generator, dtype=torch.float64))
    least = (graph(x).flatten(1) @ rows.coefficients[0].flatten(1).T).amin(0)
    for wild in (0.0, 1e30, float("inf"), float("nan")):
        wild_values.append(wild)
        cut = Wild(slabs.directions, slabs.low, slabs.high)
        relaxation = linear_bounds(graph, box, Effort(1), part=Part(slabs=cut))
        lower = Substitution(relaxation, graph.output, rows, torch.float64).backward(0.0, rigorous=True).lower
        assert bool((lower <= least + ROUNDING).all())


def test_halves_cover_and_gain() -> None:
    """Every feasible point is in one half, and the halves' bounds are at least the whole's."""
    graph = residual_mlp(SAMPLES["Tanh"], 2)
    box = box_around(graph.input_shape, 0.4, 3)
    whole = random_slabs(box, 2, 5)
    left, right = whole.halves(1, float(0.5 * (whole.low + whole.high)[0, 1]))
    x = feasible(box, whole, 2000, 9).flatten(1)
    value = x @ whole.directions[0, 1]
    assert bool(((value <= left.high[0, 1]) | (value >= right.low[0, 1])).all())
    rows = Rows(torch.eye(3, dtype=torch.float64).reshape(1, 3, 1, 3))

    def bound(slabs: Slabs | None) -> Tensor:
        relaxation = linear_bounds(graph, box, Effort(3), part=Part(slabs=slabs))
        return optimised_row_bounds(relaxation, graph.output, rows, Effort(6), lambda lower: False).lower

    assert bool((torch.minimum(bound(left), bound(right)) >= bound(whole) - 0.02).all())
    assert bool((bound(whole) >= bound(None) - 0.02).all())


ACTIVATIONS = (nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.GELU(), nn.LeakyReLU(0.2))
METHODS = {
    "boxes": Options(timeout=2.0, attack_rounds=1, threads=1),
    "inputs": Options(timeout=2.0, attack_rounds=1, threads=1, box_inputs=0),
    "neurons": Options(timeout=1.5, attack_rounds=1, threads=1, box_inputs=0, branch_inputs=0, coupling=False),
    "slabs": Options(timeout=1.5, attack_rounds=1, threads=1, box_inputs=0, branch_inputs=0, coupling_inputs=0),
}


def asked(box: Interval, threshold: float):
    """Is Y_0 <= threshold anywhere in the box?"""
    low, high = box.lower.flatten().tolist(), box.upper.flatten().tolist()
    lines = [f"(declare-const X_{i} Real)" for i in range(len(low))] + ["(declare-const Y_0 Real)"]
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        lines += [f"(assert (>= X_{i} {a:.9f}))", f"(assert (<= X_{i} {b:.9f}))"]
    return parse_query("\n".join([*lines, f"(assert (<= Y_0 {threshold:.9f}))"]))


def small_network(seed: int, inputs: int) -> nn.Sequential:
    """Dense, or a convolution first where the seed is odd."""
    torch.manual_seed(seed)
    act = ACTIVATIONS[seed % len(ACTIVATIONS)]
    if seed % 4 == 1:
        head = [
            nn.Unflatten(1, (1, inputs)),
            nn.Conv1d(1, 4, 3, padding=1),
            act,
            nn.Flatten(),
            nn.Linear(4 * inputs, 6),
        ]
    else:
        head = [nn.Linear(inputs, 10), act, nn.Linear(10, 6)]
    return nn.Sequential(*head, act, nn.Linear(6, 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(14))
def test_verdicts_against_dense_samples(method: str, seed: int) -> None:
    """Two free inputs among four: a grid knows the minimum; no verdict is wrong on either side of it."""
    model = load(small_network(seed, 4), shapes=(1, 4))
    box = box_around((1, 4), 0.8, seed)
    upper = box.upper.clone()
    upper[0, 0, 2:] = box.lower[0, 0, 2:]
    box = Interval(box.lower.float().double(), upper.float().double())
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    x = box.lower + torch.nn.functional.pad(torch.cartesian_prod(t, t), (0, 2)).reshape(-1, 1, 4) * box.width
    y = model.graph(x)
    least, spread = float(y.min()), float(y.max() - y.min())
    for offset, wrong in ((-0.03 * spread - 1e-5, Verdict.FALSIFIED), (0.03 * spread + 1e-5, Verdict.VERIFIED)):
        result = curvverify.verify(model, asked(box, least + offset), METHODS[method])
        assert result.verdict is not wrong
        if result.verdict is Verdict.VERIFIED:
            assert 0.0 < result.margin_lower <= -offset + 1e-6


@pytest.mark.parametrize("seed", range(14))
def test_planted_counterexamples_are_never_proved_away(seed: int) -> None:
    """Twenty inputs, some fixed, attack all but off: where a sample lies below the threshold, nothing is `unsat`."""
    model = load(small_network(seed, 20), shapes=(1, 20))
    box = with_fixed_inputs(box_around((1, 20), 0.5, seed))
    box = Interval(box.lower.float().double(), box.upper.float().double())
    x = points(box, 4000, seed)
    y = model.graph(x).flatten()
    options = Options(timeout=2.0, attack_rounds=1, attack_starts=1, attack_seconds=0.05, threads=1, branch_inputs=0)
    result = curvverify.verify(model, asked(box, float(y.min()) + 1e-5), options)
    assert result.verdict is not Verdict.VERIFIED
    assert not result.margin_lower > 0
