"""What holds for the bounds on difference quotients of every registered elementwise operator."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from torch import Tensor

from curvverify.ops.base import Elementwise
from curvverify.ops.elementwise.branches import Branched
from curvverify.ops.elementwise.clip import Clip
from curvverify.ops.elementwise.gelu import GeluTanh
from curvverify.ops.elementwise.hinge import Hinge
from curvverify.ops.registry import ELEMENTWISE
from curvverify.types import Interval

from .cases import CASES, Case
from .test_derivatives import interval, known, strange
from .test_laws import case, forty_digits, generator, intervals_of, samples  # noqa: F401

TIGHT = [c for c in CASES if isinstance(c.op, Hinge) or (isinstance(c.op, Branched) and c.op.branches)]


def anchors(case: Case, x: Interval) -> Tensor:  # noqa: F811
    """Points of the intervals: anywhere, at the ends, close to an end, at corners."""
    g = generator(case)
    share = torch.rand(x.shape, generator=g, dtype=torch.float64)
    kind = torch.randint(5, x.shape, generator=g)
    share = torch.where(kind == 0, share.round(), torch.where(kind == 1, 1e-8 * share, share))
    lower, upper = x.lower.clamp(min=-1e300), x.upper.clamp(max=1e300)
    corner = torch.tensor(case.corners, dtype=torch.float64)[torch.randint(len(case.corners), x.shape, generator=g)]
    at = torch.where(kind == 2, corner, lower * (1.0 - share) + upper * share)
    return at.clamp(lower, upper)


def exact_value(case: Case, z: float) -> mp.mpf:  # noqa: F811
    with mp.workdps(450 if abs(z) < 1e6 else 60):
        return case.exact(mp.mpf(z))


@pytest.mark.parametrize("order", [1, 2])
def test_quotients_are_inside(case: Case, order: int) -> None:  # noqa: F811
    """Of random, tiny, huge and infinite intervals, at points far from the anchor and close to it."""
    x, odd = intervals_of(case, 4), strange()[::2]
    x = Interval(torch.cat([x.lower, odd.lower]), torch.cat([x.upper, odd.upper]))
    at = anchors(case, x)
    bounds = case.op.secant(order, at, x)
    f = (lambda z: exact_value(case, z)) if order == 1 else (lambda z: case.derivative(1, z))
    assert not bounds.lower.isnan().any()
    assert not bounds.upper.isnan().any()
    lower, upper = x.lower.clamp(min=-1e300), x.upper.clamp(max=1e300)
    others = torch.stack([lower, upper, at - 1.0, at * (1.0 + 1e-12), 0.3 * lower + 0.7 * upper])
    columns = others.clamp(lower, upper).T.tolist()
    for a, ys, low, high in zip(at.tolist(), columns, bounds.lower.tolist(), bounds.upper.tolist(), strict=True):
        if known(case, a) and (low, high) != (-math.inf, math.inf):
            for y in {y for y in ys if abs(y - a) > (order - 1) * 1e-30 and known(case, y)}:
                quotient = (f(y) - f(a)) / (mp.mpf(y) - mp.mpf(a))
                doubt = 1e-30 * abs(quotient) + (order - 1) * mp.mpf(10) ** -70 / abs(
                    y - a
                )  # error of `case.derivative`
                assert low - doubt <= quotient <= high + doubt, (a, y)


def sampled(op: Elementwise, order: int, z: Tensor) -> Tensor:
    """sigma or sigma' by autograd."""
    z = z.clone().requires_grad_()
    value = op.forward(z)
    return value.detach() if order == 1 else torch.autograd.grad(value.sum(), z)[0]


def test_quotients_are_means_of_the_derivative(case: Case) -> None:  # noqa: F811
    x = intervals_of(case, 300)
    for order in (1, 2):
        quotients, slopes = case.op.secant(order, anchors(case, x), x), case.op.derivative(order, x)
        assert bool(((quotients.lower >= slopes.lower) & (quotients.upper <= slopes.upper)).all())
        assert bool((quotients.lower <= quotients.upper).all())


@pytest.mark.parametrize("case", TIGHT, ids=lambda c: c.name)
@pytest.mark.parametrize("order", [1, 2])
def test_quotients_are_tight(case: Case, order: int) -> None:  # noqa: F811
    """Both bounds are attained, as dense samples show; finite where f jumps, but not at a jump."""
    x = intervals_of(case, 100)
    x = x[x.upper - x.lower > 1e-2]
    at = anchors(case, x)
    corners = torch.tensor([c + s * 1e-9 for c in case.corners for s in (1.0, -1.0)], dtype=torch.float64)[:, None]
    y = torch.cat([samples(x, 1001), corners.clamp(x.lower, x.upper)])
    apart = (y - at).abs() > 1e-4 * (x.upper - x.lower)
    quotient = (sampled(case.op, order, y) - sampled(case.op, order, at)) / (y - at)
    here = case.op.derivative(order, Interval(at, at))
    low = torch.minimum(torch.where(apart, quotient, math.inf).amin(0), here.centre)
    high = torch.maximum(torch.where(apart, quotient, -math.inf).amax(0), here.centre)
    bounds = case.op.secant(order, at, x)
    smooth = torch.ones_like(at, dtype=torch.bool)
    for kink in case.kinks:
        smooth &= (at - kink).abs() > 1e-6
    finite = low.isfinite() & high.isfinite() & smooth
    slack = 1e-4 * (high - low) + 1e-9 * (1.0 + low.abs() + high.abs())
    assert float(finite.double().mean()) > 0.5
    assert bool((bounds.lower >= low - slack)[finite].all())
    assert bool((bounds.upper <= high + slack)[finite].all())


ANCHORED_TANH = {
    0.0: (1.0, 0.5825829),
    0.25: (0.9847246, 0.6970734),
    0.5: (0.9427251, 0.7594693),
    1.0: (0.8162188, 0.7330156),
    1.5: (0.6869494, 0.6141550),
    2.0: (0.5815729, 0.4970319),
    3.0: (0.4392340, 0.3398682),
    5.0: (0.2957498, 0.2020184),
}
"""Largest |r| on the whole line from the anchored-curvature literature, for tanh and for its slope."""
ANCHORED_SOFTPLUS = {0.0: 0.25, 0.5: 0.2461812, 1.0: 0.2356813, 2.0: 0.2040547, 3.0: 0.1717373, 5.0: 0.1252244}
"""The same for the slope of softplus."""


def on_the_line(op: Elementwise, order: int, at: list[float]) -> Interval:
    point = torch.tensor(at, dtype=torch.float64)
    infinite = torch.full_like(point, math.inf)
    return op.secant(order, point, Interval(-infinite, infinite))


def test_anchored_constants() -> None:
    tanh, softplus = ELEMENTWISE["Tanh"](), ELEMENTWISE["Softplus"]()
    for sign in (1.0, -1.0):
        at = [sign * z for z in ANCHORED_TANH]
        for order in (1, 2):
            expected = [values[order - 1] for values in ANCHORED_TANH.values()]
            assert on_the_line(tanh, order, at).magnitude.tolist() == pytest.approx(expected, abs=6e-8)
        at = [sign * z for z in ANCHORED_SOFTPLUS]
        expected = list(ANCHORED_SOFTPLUS.values())
        assert on_the_line(softplus, 2, at).magnitude.tolist() == pytest.approx(expected, abs=6e-8)


WHOLE_LINE: list[tuple[str, int, float, float, float]] = [
    ("Sigmoid", 1, -2.0, 0.0, 0.204054688344197),
    ("Sigmoid", 2, -2.0, -0.0145880308708899, 0.0916269474272470),
    ("Sigmoid", 2, 0.7, -0.0911205598079939, 0.0479070900657350),
    ("Gelu", 1, 0.7, 0.0, 1.09567787690716),
    ("Gelu", 1, -2.0, -0.115755978508624, 1.0),
    ("Gelu", 2, 0.7, 0.0, 0.709335112653730),
    ("Gelu", 2, -2.0, -0.107981933026376, 0.394689274020789),
    ("Silu", 1, -2.0, -0.0977532998596934, 1.0),
    ("Silu", 2, -2.0, -0.0214638494707054, 0.340266206739585),
    ("Mish", 1, 0.7, 0.0, 1.06389448894204),
    ("Mish", 2, -2.0, -0.0280025562821116, 0.399602017076937),
    ("Atan", 1, 0.7, 0.0, 0.902401814132083),
    ("Atan", 2, 0.7, -0.644515289118581, 0.174716631400460),
    ("Erf", 1, -2.0, 0.0, 0.620631306491019),
    ("Erf", 2, 0.7, -0.967858405157305, 0.262711227787884),
]
"""(name, order, at, lowest r, highest r), by golden section with 40 digits."""


@pytest.mark.parametrize(("name", "order", "at", "lower", "upper"), WHOLE_LINE)
def test_quotients_on_the_whole_line(name: str, order: int, at: float, lower: float, upper: float) -> None:
    bounds = on_the_line(ELEMENTWISE[name](), order, [at])
    assert (bounds.lower.item(), bounds.upper.item()) == pytest.approx((lower, upper), rel=3e-12, abs=1e-13)


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh", "Softplus", "Gelu", "GeluTanh", "Silu", "Mish", "Erf", "Atan"])
def test_an_anchor_beside_an_inflection_costs_little(name: str) -> None:
    """The bounds move by less than 1e-9 where cancellation is worst."""
    op = ELEMENTWISE[name]()
    assert isinstance(op, Branched)
    for order in (1, 2):
        for point, _ in op.branches[0].levels[order].extremes:
            beside = [s * 10.0**-k for k in range(5, 16) for s in (1.0, -1.0)]
            bounds = on_the_line(op, order, [point, *(point + b for b in beside)])
            allowed = torch.tensor([1e-9, *(1e-9 + 3.0 * abs(b) for b in beside)], dtype=torch.float64)
            assert bool(((bounds.lower - bounds.lower[0]).abs() <= allowed).all())
            assert bool(((bounds.upper - bounds.upper[0]).abs() <= allowed).all())


def test_jumps_of_the_slope_are_finite_from_elsewhere() -> None:
    """(sigma'(y) - sigma'(a)) / (y - a) <= jump / |a - kink|; from the kink itself there is no bound."""
    x = interval((-3.0, 5.0))
    for op in (ELEMENTWISE["Relu"](), Clip(0.0, 9.0)):
        bounds = op.secant(2, torch.tensor([0.5], dtype=torch.float64), x)
        assert (bounds.lower.item(), bounds.upper.item()) == pytest.approx((0.0, 2.0), abs=1e-12)
        bounds = op.secant(2, torch.zeros(1, dtype=torch.float64), x)
        assert (bounds.lower.item(), bounds.upper.item()) == (-math.inf, math.inf)
        bounds = op.secant(2, torch.zeros(1, dtype=torch.float64), interval((0.0, 5.0)))
        assert (bounds.lower.item(), bounds.upper.item()) == pytest.approx((0.0, 0.0), abs=1e-299)


def test_relu_from_one_side() -> None:
    at = torch.tensor([1.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    bounds = ELEMENTWISE["Relu"]().secant(1, at, interval((-3.0, 5.0), (-3.0, 4.0), (-3.0, 5.0), (-math.inf, 5.0)))
    assert bounds.lower.tolist() == pytest.approx([0.25, 0.0, 0.0, 0.0], abs=1e-13)
    assert bounds.upper.tolist() == pytest.approx([1.0, 0.8, 1.0, 1.0], abs=1e-13)


def test_gelu_covers_its_deviation() -> None:
    relative = 1e-3
    op, plain = GeluTanh(GeluTanh.deviation_of(relative)), GeluTanh()
    at = [-2.0, -0.5, 0.3, 1.5]
    for order in (1, 2):
        bounds, narrow = on_the_line(op, order, at), on_the_line(plain, order, at)
        room = narrow.lower - bounds.lower
        assert bool(((room > 0.01 * relative) & (room < 0.2 * relative)).all())


def test_an_anchor_outside_gets_the_derivative() -> None:
    x = interval((-1.0, 1.0), (-1.0, 1.0), (0.5, 0.5))
    at = torch.tensor([2.0, math.nan, 0.5], dtype=torch.float64)
    for op in (ELEMENTWISE["Tanh"](), ELEMENTWISE["Relu"]()):
        bounds, whole = op.secant(1, at, x), op.derivative(1, x)
        assert bounds.lower.tolist() == whole.lower.tolist()
        assert bounds.upper.tolist() == whole.upper.tolist()
