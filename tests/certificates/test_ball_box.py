"""The proved value is below the true minimum over ball and box, and equal to it where nothing is lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from curvverify.bounding.constants.rows import difference_rows
from curvverify.certificates.ball_box import Problem, minimised, on_sphere, proved_radius, proved_value
from curvverify.certificates.evaluate import Evaluator
from curvverify.certificates.nearest import nearest
from curvverify.certificates.pairs import global_pairs
from curvverify.certificates.quadratic import TwoLayers, secant_mean
from curvverify.ops.elementwise.sigmoid import Tanh
from curvverify.ops.elementwise.softplus import Softplus
from curvverify.types import Interval
from tests.certificates.networks import disc, evaluator_of, two_layers


def problem_of(E: Evaluator, x: Tensor, low: float, high: float) -> Problem:
    """The margin of the largest score over the next class."""
    table = global_pairs(E.structure, [0, 1, 2])
    y = E.scores(x).argmax(1)
    t = (y + 1) % 3
    _, bend, top = table.of(y, t)
    ends = (torch.full((x.shape[1],), e, dtype=torch.float64) for e in (low, high))
    return Problem(x, difference_rows(3, y, t), bend, top, *ends, torch.arange(len(x)))


def sampled(E: Evaluator, p: Problem, k: int, radius: float, count: int = 40000) -> tuple[Tensor, Tensor]:
    d = disc(count, p.centre.shape[1], radius)
    x = (p.centre[k] + d).maximum(p.low).minimum(p.high)
    return x, (E.scores(x) * p.rows[k]).sum(1)


@pytest.mark.parametrize("activation", [nn.Softplus, nn.Tanh])
@pytest.mark.parametrize(("low", "high"), [(-torch.inf, torch.inf), (0.0, 1.0)])
def test_proved_value_is_below_the_minimum(activation: type[nn.Module], low: float, high: float) -> None:
    E = evaluator_of(two_layers(activation), 2)
    p = problem_of(E, torch.rand(8, 2, dtype=torch.float64), low, high)
    for radius in (0.1, 0.4, 1.0):
        r = torch.full((8,), radius, dtype=torch.float64)
        found = minimised(E, p, r, dtype=torch.float64, steps=200, enough=1e9)
        value = proved_value(E, p, found.displacement, found.multiplier, r, r)
        for k in range(8):
            _, h = sampled(E, p, k, radius)
            assert float(value[k]) <= float(h.min())
            if radius == 0.1 and activation is nn.Softplus:
                assert float(value[k]) >= float(h.min()) - 0.02
    # any point and multiplier will do
    d = disc(8, 2, 0.3)
    d = (p.centre + d).maximum(p.low).minimum(p.high) - p.centre
    r = torch.full((8,), 0.3, dtype=torch.float64)
    value = proved_value(E, p, d, 1.5 * p.bend + 0.1, r, r)
    assert all(float(value[k]) <= float(sampled(E, p, k, 0.3)[1].min()) for k in range(8))


def test_not_a_number_proves_nothing() -> None:
    E = evaluator_of(two_layers(), 2)
    p = problem_of(E, torch.rand(2, 2, dtype=torch.float64), 0.0, 1.0)
    r = torch.full((2,), 0.1, dtype=torch.float64)
    bad = torch.full((2, 2), torch.nan, dtype=torch.float64)
    assert bool((proved_value(E, p, bad, p.bend + 1.0, r, r) == -torch.inf).all())
    assert bool((proved_value(E, p, torch.zeros(2, 2).double(), 0.5 * p.bend, r, r) == -torch.inf).all())
    assert bool((proved_radius(E, p, bad, p.bend + 1.0, r) == 0.0).all())


def test_on_sphere_has_the_length_and_stays_inside() -> None:
    torch.manual_seed(0)
    q = torch.randn(50, 20, dtype=torch.float64)
    high = torch.rand(50, 20, dtype=torch.float64) * 0.3
    low = -torch.rand(50, 20, dtype=torch.float64) * 0.3
    radius = torch.full((50,), 0.5, dtype=torch.float64)
    d, s = on_sphere(q, low, high, radius, torch.full_like(radius, 1e9))
    torch.testing.assert_close(d.norm(dim=1), radius, rtol=1e-5, atol=0)
    assert bool(((d >= low) & (d <= high)).all())
    far, _ = on_sphere(q, low, high, 100.0 * radius, torch.full_like(radius, 1e9))
    torch.testing.assert_close(far, torch.where(q > 0, high, low))
    assert bool((s > 0).all())


@pytest.mark.parametrize("activation", [nn.Softplus, nn.Tanh])
def test_nearest_finds_radius_and_counterexample(activation: type[nn.Module]) -> None:
    E = evaluator_of(two_layers(activation, seed=5), 2)
    p = problem_of(E, torch.rand(12, 2, dtype=torch.float64), -2.0, 3.0)
    reach = torch.full((12,), 8.0, dtype=torch.float64)
    zero = torch.zeros(12, dtype=torch.float64)
    found = nearest(E, p, zero, torch.full((12,), 0.3, dtype=torch.float64), reach)
    radius = proved_radius(E, p, found.displacement, found.multiplier, reach)
    for k in range(12):
        x, h = sampled(E, p, k, min(float(radius[k]), 8.0))
        assert float(h.min()) > 0.0 or float(radius[k]) == 0.0
        x, h = sampled(E, p, k, 8.0, 100000)
        wrong = (x[h <= 0] - p.centre[k]).norm(dim=1)
        if len(wrong):
            assert float(radius[k]) <= float(wrong.min())
            assert float(found.distance[k]) <= float(wrong.min()) * 1.5


@pytest.mark.parametrize("op", [Softplus(), Softplus(3.0), Tanh()])
def test_secant_mean_holds(op: Softplus | Tanh) -> None:
    torch.manual_seed(1)
    z = 3.0 * torch.randn(400, dtype=torch.float64)
    ends = z.unsqueeze(1) + torch.randn(400, 2, dtype=torch.float64) * 4.0
    range_ = Interval(ends.amin(1), ends.amax(1))
    q = secant_mean(op, z, 1e-13, range_)
    for share in torch.linspace(0, 1, 41, dtype=torch.float64):
        y = range_.lower + share * (range_.upper - range_.lower)
        d = y - z
        far = d.abs() > 1e-3
        value = 2.0 * (op.forward(y) - op.forward(z) - op.slope(z) * d) / d.square()
        assert bool(((value <= q.upper + 1e-9) & (value >= q.lower - 1e-9))[far].all())


@pytest.mark.parametrize("activation", [nn.Softplus, nn.Tanh])
def test_anchored_quadratic_certifies_only_what_holds(activation: type[nn.Module]) -> None:
    E = evaluator_of(two_layers(activation, n=4, seed=2), 4)
    two = TwoLayers.of(E)
    assert two is not None
    p = problem_of(E, torch.rand(6, 4, dtype=torch.float64), 0.0, 1.0)
    certified = 0
    for k in range(6):
        one = p[torch.tensor([k])]
        for radius in (0.05, 0.2, 0.4, 0.8):
            x, h = sampled(E, p, k, radius)
            d = x[int(h.argmin())] - p.centre[k]
            if two.certified(one, radius, d):
                certified += 1
                assert float(h.min()) > 0.0
    assert certified >= 3
