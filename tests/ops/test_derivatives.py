"""What holds for the derivative bounds of every registered elementwise operator, against 40 and more digits."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY
from curvverify.ops.base import Elementwise
from curvverify.ops.elementwise.accuracy import RELATIVE_ERROR
from curvverify.ops.elementwise.branches import Branched
from curvverify.ops.elementwise.gelu import GeluTanh
from curvverify.ops.elementwise.hinge import PRelu
from curvverify.ops.elementwise.levels import LITERAL
from curvverify.ops.registry import ELEMENTWISE
from curvverify.types import Interval

from .cases import CASES, Case
from .test_laws import DEGENERATE, HUGE, INFINITE, case, forty_digits, intervals_of, points_of, samples  # noqa: F401

ORDERS = (1, 2, 3)
BRANCHED = [c for c in CASES if isinstance(c.op, Branched)]
FAR = (1e-300, 1e-17, 1e-8, 2.0, 5.0, 15.0, 20.0, 30.0, 38.0, 41.0, 300.0, 700.0, 745.0, 1e5, 1e100, 1e155, 1e300)
"""Where exponentials underflow and squares overflow."""


def interval(*ends: tuple[float, float]) -> Interval:
    both = torch.tensor(ends, dtype=torch.float64)
    return Interval(both[:, 0], both[:, 1])


def known(case: Case, z: float) -> bool:  # noqa: F811
    """Where the exact derivatives are: inside the domain, not at a kink."""
    outside = (case.low >= 0.0 and z <= 0.0) or (case.high <= 0.0 and z >= 0.0)
    return not outside and math.isfinite(z) and all(abs(z - k) > 1e-30 * max(abs(z), 1e-300) for k in case.kinks)


@pytest.mark.parametrize("case", BRANCHED, ids=lambda c: c.name)
def test_levels_are_accurate(case: Case) -> None:  # noqa: F811
    """The assumption of `accuracy` for the derivatives, far out too."""
    assert isinstance(case.op, Branched)
    far = torch.tensor([s * z for z in FAR for s in (1.0, -1.0)], dtype=torch.float64)
    points = torch.cat([points_of(case, 12)[:12], far])
    for branch in case.op.branches:
        inner = points[(points > branch.left) & (points < branch.right)]
        inner = inner[[known(case, z) for z in inner.tolist()]]
        for order in ORDERS:
            level = branch.levels[order]
            for z, value in zip(inner.tolist(), level.value(inner).tolist(), strict=True):
                exact = case.derivative(order, z)
                if abs(exact) > 1e308:
                    assert not abs(value) < 1e307, z
                else:
                    assert abs(value - exact) <= RELATIVE_ERROR * (abs(exact) + level.scale) + TINY, (order, z)


@pytest.mark.parametrize("case", BRANCHED, ids=lambda c: c.name)
def test_extremes_are_where_they_are_declared(case: Case) -> None:  # noqa: F811
    """The next derivative changes its sign within an ulp of the point; the value is right to two ulp."""
    assert isinstance(case.op, Branched)
    for branch in case.op.branches:
        for order in ORDERS:
            for point, value in branch.levels[order].extremes:
                step = 4.0 * math.ulp(point) if point else 1e-30
                if point or case.op.name != "Power":  # differences at 0 are wrong by 1e-80, more than such a power
                    assert abs(case.derivative(order, point) - value) <= LITERAL * abs(value)
                    left, right = (case.derivative(order + 1, point + s * step) for s in (-1.0, 1.0))
                    assert left * right < 0


def strange() -> Interval:
    return interval(*DEGENERATE, *HUGE, *INFINITE[:-1])


@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_are_inside(case: Case, order: int) -> None:  # noqa: F811
    """At the ends and inside random, degenerate, tiny, huge and infinite intervals."""
    x = intervals_of(case, 6)
    x = Interval(
        *(torch.cat([a, b]) for a, b in zip((x.lower, x.upper), (strange().lower, strange().upper), strict=True))
    )
    bounds = case.op.derivative(order, x)
    assert not bounds.lower.isnan().any()
    assert not bounds.upper.isnan().any()
    largest = torch.finfo(torch.float64).max
    lower, upper = x.lower.clamp(-largest, largest), x.upper.clamp(-largest, largest)
    at = torch.stack([lower, 0.5 * lower + 0.5 * upper, upper, torch.full_like(lower, 1.25).clamp(lower, upper)])
    for column, low, high in zip(at.T.tolist(), bounds.lower.tolist(), bounds.upper.tolist(), strict=True):
        for z in {z for z in column if known(case, z)} if (low, high) != (-math.inf, math.inf) else ():
            exact = case.derivative(order, z)
            doubt = 1e-30 * abs(exact) + (1e-70 if z == 0 else 1e-250)  # the differences' own error
            assert low - doubt <= exact <= high + doubt, z


@pytest.mark.parametrize("case", [c for c in BRANCHED if c.op.branches], ids=lambda c: c.name)
@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_are_tight(case: Case, order: int) -> None:  # noqa: F811
    """Both bounds are attained, up to 1e-14 of the derivative's size."""
    assert isinstance(case.op, Branched)
    x = intervals_of(case, 200)
    bounds = case.op.derivative(order, x)
    low, high = torch.full_like(x.lower, math.inf), torch.full_like(x.lower, -math.inf)
    for branch in case.op.branches:
        level = branch.levels[order]
        extremes = torch.tensor([p for p, _ in level.extremes], dtype=torch.float64)[:, None]
        at = torch.cat([samples(x, 201), extremes.clamp(x.lower, x.upper)]).clamp(branch.left, branch.right)
        value = branch.at(order, at)
        meets = branch.meets(x)
        low = torch.where(meets, torch.minimum(low, value.amin(0)), low)
        high = torch.where(meets, torch.maximum(high, value.amax(0)), high)
    finite = bounds.lower.isfinite() & bounds.upper.isfinite()
    scale = max(branch.levels[order].scale for branch in case.op.branches)
    slack = 1e-14 * (scale + low.abs() + high.abs()) + TINY
    assert bool(((bounds.lower <= low) & (bounds.lower >= low - slack))[finite].all())
    assert bool(((bounds.upper >= high) & (bounds.upper <= high + slack))[finite].all())
    kinked = torch.zeros_like(finite)
    for kink in case.kinks:
        kinked |= (x.lower <= kink) & (x.upper >= kink)
    assert bool((finite | kinked).all())


SELU = ELEMENTWISE["Selu"]()
EVERYWHERE: list[tuple[str, dict[str, float], int, float, float]] = [
    ("Sigmoid", {}, 1, 0.0, 0.25),
    ("Sigmoid", {}, 2, -0.0962250448649376, 0.0962250448649376),
    ("Sigmoid", {}, 3, -0.125, 1.0 / 24.0),
    ("Tanh", {}, 1, 0.0, 1.0),
    ("Tanh", {}, 2, -0.7698003589195010, 0.7698003589195010),
    ("Tanh", {}, 3, -2.0, 2.0 / 3.0),
    ("Softplus", {"beta": 3.0}, 1, 0.0, 1.0),
    ("Softplus", {"beta": 3.0}, 2, 0.0, 0.75),
    ("Softplus", {"beta": 3.0}, 3, -0.8660254037844386, 0.8660254037844386),
    ("Gelu", {}, 1, -0.1289041451851548, 1.1289041451851548),
    ("Gelu", {}, 2, -0.1079819330263761, 0.7978845608028654),
    ("Gelu", {}, 3, -0.7787696350557323, 0.7787696350557323),
    ("GeluTanh", {}, 1, -0.1289930686587718, 1.1289930686587718),
    ("GeluTanh", {}, 2, -0.1079135158903679, 0.7978845608028654),
    ("GeluTanh", {}, 3, -0.7766914503985404, 0.7766914503985404),
    ("Silu", {}, 1, -0.0998393201288669, 1.0998393201288669),
    ("Silu", {}, 2, -0.0369143731998932, 0.5),
    ("Silu", {}, 3, -0.3081815157964791, 0.3081815157964791),
    ("Mish", {}, 1, -0.1125261223894626, 1.0884981612517279),
    ("Mish", {}, 2, -0.0590333569539363, 0.6442046372369724),
    ("Mish", {}, 3, -0.5884120448690197, 0.4538611812135795),
    ("Erf", {}, 1, 0.0, 1.1283791670955126),
    ("Erf", {}, 2, -0.9678828980765734, 0.9678828980765734),
    ("Erf", {}, 3, -2.2567583341910251, 1.0071016970486943),
    ("Atan", {}, 1, 0.0, 1.0),
    ("Atan", {}, 2, -0.6495190528383290, 0.6495190528383290),
    ("Atan", {}, 3, -2.0, 0.5),
    ("Sin", {}, 1, -1.0, 1.0),
    ("Cos", {}, 3, -1.0, 1.0),
    ("Elu", {}, 1, 0.0, 1.0),
    ("Elu", {}, 2, 0.0, 1.0),
    ("Elu", {"alpha": 0.5}, 1, 0.0, 1.0),
    ("Elu", {"alpha": 0.5}, 2, -math.inf, math.inf),
    ("Celu", {"alpha": 4.0}, 2, 0.0, 0.25),
    ("Celu", {"alpha": 4.0}, 3, -math.inf, math.inf),
    ("Selu", {}, 1, 0.0, 1.7580993408473766),
    ("Selu", {}, 2, -math.inf, math.inf),
    ("HardSwish", {}, 1, -0.5, 1.5),
    ("HardSwish", {}, 2, -math.inf, math.inf),
    ("Relu", {}, 1, 0.0, 1.0),
    ("Relu", {}, 2, -math.inf, math.inf),
    ("LeakyRelu", {"negative_slope": 0.1}, 1, 0.1, 1.0),
    ("Abs", {}, 1, -1.0, 1.0),
    ("Clip", {"lower": 0.0, "upper": 6.0}, 1, 0.0, 1.0),
    ("Clip", {"lower": 0.0, "upper": 6.0}, 2, -math.inf, math.inf),
    ("Power", {"exponent": 2.0}, 2, 2.0, 2.0),
    ("Exp", {}, 3, 0.0, math.inf),
    ("Sqrt", {}, 1, -math.inf, math.inf),
    ("Floor", {}, 1, -math.inf, math.inf),
    ("Sign", {}, 3, -math.inf, math.inf),
]


@pytest.mark.parametrize(("name", "attributes", "order", "lower", "upper"), EVERYWHERE)
def test_bounds_on_the_whole_line(
    name: str, attributes: dict[str, float], order: int, lower: float, upper: float
) -> None:
    bounds = ELEMENTWISE[name](**attributes).derivative(order, interval((-math.inf, math.inf)))  # type: ignore[arg-type]
    assert bounds.lower.item() == pytest.approx(lower, rel=1e-15, abs=1e-300)
    assert bounds.upper.item() == pytest.approx(upper, rel=1e-15, abs=1e-300)


INSIDE, BESIDE, AT = (-1.0, 2.0), (0.0, 2.0), (0.0, 0.0)
KINKS: list[tuple[Elementwise, float, list[tuple[float, float]]]] = [
    (ELEMENTWISE["Relu"](), 0.0, [(0.0, 1.0), (1.0, 1.0), (0.0, 1.0)]),
    (PRelu(torch.tensor(0.3, dtype=torch.float64)), 0.0, [(0.3, 1.0), (1.0, 1.0), (0.3, 1.0)]),
    (ELEMENTWISE["Abs"](), 0.0, [(-1.0, 1.0), (1.0, 1.0), (-1.0, 1.0)]),
    (
        ELEMENTWISE["Selu"](),
        0.0,
        [(0.6467686030, 1.7580993408), (1.0507009874, 1.0507009874), (1.0507009874, 1.7580993408)],
    ),
    (ELEMENTWISE["HardSwish"](), 3.0, [(2.0 / 3.0 + 0.5, 1.5), (1.0, 1.0), (1.0, 1.5)]),
    (ELEMENTWISE["Clip"](lower=-9.0, upper=1.5), 1.5, [(0.0, 1.0), (0.0, 0.0), (0.0, 1.0)]),  # type: ignore[call-arg]
]


@pytest.mark.parametrize(("op", "kink", "slopes"), KINKS, ids=lambda v: v.name if isinstance(v, Elementwise) else "")
def test_only_a_kink_inside_makes_the_second_order_infinite(
    op: Elementwise, kink: float, slopes: list[tuple[float, float]]
) -> None:
    for (low, high), expected in zip((INSIDE, BESIDE, AT), slopes, strict=True):
        x = interval((kink + low, kink + high))
        first = op.derivative(1, x)
        if op.name == "HardSwish" and low < 0:
            expected = (1.0, 1.5)
        assert (first.lower.item(), first.upper.item()) == pytest.approx(expected, rel=1e-9)
        for order in (2, 3):
            higher = op.derivative(order, x)
            assert bool(higher.lower.isinf() & higher.upper.isinf()) is (low < 0.0)


def test_jumps_make_every_order_infinite() -> None:
    x = interval((0.25, 0.75), (0.5, 1.0), (1.0, 1.5), (-0.5, 0.5))
    for order in ORDERS:
        assert ELEMENTWISE["Floor"]().derivative(order, x).upper.tolist() == [0.0, math.inf, 0.0, math.inf]
        assert ELEMENTWISE["Sign"]().derivative(order, x).upper.tolist() == [0.0, 0.0, 0.0, math.inf]


def test_nothing_is_known_at_poles_and_outside_the_domain(case: Case) -> None:  # noqa: F811
    x = interval((math.nan, 1.0), (1.0, math.nan), (2.0, 1.0))
    for order in ORDERS:
        bounds = case.op.derivative(order, x)
        assert bool((bounds.lower == -math.inf).all() & (bounds.upper == math.inf).all())
    for name in ("Log", "Reciprocal"):
        bounds = ELEMENTWISE[name]().derivative(1, interval((0.0, 1.0), (-1.0, 1.0)))
        assert bool((bounds.lower == -math.inf).all() & (bounds.upper == math.inf).all())


def test_slope_of_the_root_is_bounded_below_at_zero() -> None:
    bounds = ELEMENTWISE["Sqrt"]().derivative(1, interval((0.0, 4.0)))
    assert (bounds.lower.item(), bounds.upper.item()) == pytest.approx((0.25, math.inf))


@pytest.mark.parametrize("relative", [1e-6, 9e-3])
@pytest.mark.parametrize("order", ORDERS)
def test_gelu_covers_its_deviation(order: int, relative: float) -> None:
    """The bounds of the tanh form hold for a slightly different cubic coefficient, and are not much wider."""
    op, plain = GeluTanh(GeluTanh.deviation_of(relative)), GeluTanh()
    x = intervals_of(Case(op, lambda z: z, corners=(0.0, 1.2, 1.75, -1.845)), 16)
    at = samples(x, 5)
    bounds, narrow = op.derivative(order, x), plain.derivative(order, x)
    assert bool((bounds.lower >= narrow.lower - 3.0 * GeluTanh.deviation_of(relative)).all())
    lower, upper = (t.expand_as(at).flatten().tolist() for t in (bounds.lower, bounds.upper))
    for sign in (1.0, -1.0):
        a, c = 2 * mp.sqrt(2 / mp.pi), mp.mpf(0.044715) * (1 + sign * relative)
        moved = Case(op, lambda z, a=a, c=c: z / (1 + mp.exp(-a * (z + c * z**3))))
        for z, low, high in zip(at.flatten().tolist(), lower, upper, strict=True):
            assert low <= moved.derivative(order, z) <= high


def test_slopes_of_prelu_broadcast() -> None:
    slopes = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64).reshape(3, 1)
    x = Interval(-torch.ones(2, 3, 4, dtype=torch.float64), torch.ones(2, 3, 4, dtype=torch.float64))
    bounds = PRelu(slopes).derivative(1, x)
    assert bounds.lower[1, :, 3].tolist() == [0.0, 0.5, 1.0]
    assert bounds.upper[0, :, 0].tolist() == [1.0, 1.0, 2.0]


def test_narrow_floats_are_widened(case: Case) -> None:  # noqa: F811
    """What float32 holds is a float64; the bounds are computed there."""
    x = intervals_of(case, 20).to(torch.float32)
    for order in ORDERS:
        bounds, wide = case.op.derivative(order, x), case.op.derivative(order, x.to(torch.float64))
        assert bounds.lower.dtype == torch.float64
        assert bool((bounds.lower == wide.lower).all() & (bounds.upper == wide.upper).all())
        if order < 3:
            quotients = case.op.secant(order, x.lower, x)
            wide = case.op.secant(order, x.lower.double(), x.to(torch.float64))
            assert bool((quotients.lower == wide.lower).all() & (quotients.upper == wide.upper).all())


def test_shapes_are_kept(case: Case) -> None:  # noqa: F811
    x = intervals_of(case, 24)
    stacked = Interval(x.lower.reshape(4, 2, 3), x.upper.reshape(4, 2, 3))
    middle: Tensor = stacked.centre
    for order in ORDERS:
        together, alone = case.op.derivative(order, stacked), case.op.derivative(order, x)
        assert bool((together.lower.flatten() == alone.lower).all() & (together.upper.flatten() == alone.upper).all())
    for order in (1, 2):
        together = case.op.secant(order, middle, stacked)
        alone = case.op.secant(order, middle.flatten(), x)
        assert together.lower.shape == together.upper.shape == stacked.shape
        torch.testing.assert_close(together.lower.flatten(), alone.lower, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.upper.flatten(), alone.upper, rtol=1e-12, atol=1e-12)
