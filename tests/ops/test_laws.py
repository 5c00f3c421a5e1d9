"""What holds for every registered elementwise operator; the exact function is evaluated with 40 digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvverify.numerics.rounding import TINY
from curvverify.ops.base import Envelope
from curvverify.ops.elementwise.accuracy import RELATIVE_ERROR
from curvverify.ops.elementwise.ramps import Ramps
from curvverify.ops.elementwise.smooth import Smooth
from curvverify.ops.registry import ELEMENTWISE
from curvverify.types import Interval

from .cases import CASES, Case

SIDES = (True, False)
SMOOTH = [case for case in CASES if isinstance(case.op, Smooth)]
EXTREME = (0.0, 1e-300, 1e-17, 1e-8, 1e-4, 0.1, 0.5, 1.0, 3.0, 8.0, 12.0, 19.5, 30.0, 37.0, 40.5, 100.0, 650.0, 1e5)


@pytest.fixture(autouse=True)
def forty_digits() -> Iterator[None]:
    with mp.workdps(40):
        yield


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def generator(case: Case) -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, case.name)))


def points_of(case: Case, count: int) -> Tensor:
    """Random points of the case's range, the extreme points inside it or beside it, and the corners."""
    inner = case.low + (case.high - case.low) * torch.rand(count, generator=generator(case), dtype=torch.float64)
    extreme = torch.tensor([s * e for e in EXTREME for s in (1.0, -1.0)], dtype=torch.float64)
    if case.low >= 0.0:
        extreme = extreme[extreme > 0.0]
    if case.high <= 0.0:
        extreme = extreme[extreme < 0.0]
    corners = torch.tensor(case.corners, dtype=torch.float64)
    extreme = torch.cat([extreme, corners, corners * (1 + 2.0**-52), corners * (1 - 2.0**-52)])
    return torch.cat([inner, extreme[case.op.forward(extreme).isfinite()]])


def intervals_of(case: Case, count: int) -> Interval:
    """Random intervals of all widths within the case's range, some ending at a corner or containing one."""
    g = generator(case)
    size = case.high - case.low
    first = case.low + size * torch.rand(count, generator=g, dtype=torch.float64)
    corner = torch.tensor(case.corners, dtype=torch.float64)
    pick = corner[torch.randint(len(corner), (count,), generator=g)]
    near = torch.rand(count, generator=g) < 0.4
    first = torch.where(near, pick, first)
    width = size * 10.0 ** (-4.0 * torch.rand(count, generator=g, dtype=torch.float64) ** 2)
    share = torch.rand(count, generator=g, dtype=torch.float64)
    share = torch.where(torch.rand(count, generator=g) < 0.2, share.round(), share)
    return Interval((first - share * width).clamp(min=case.low), (first + (1 - share) * width).clamp(max=case.high))


def samples(x: Interval, count: int) -> Tensor:
    """(count, *S): both ends and points between them, denser at the ends."""
    share = 0.5 - 0.5 * torch.linspace(0.0, math.pi, count, dtype=torch.float64).cos()
    share = share.reshape(-1, *(1 for _ in x.shape))
    inner = (x.lower + (x.upper - x.lower) * share).clamp(x.lower, x.upper)
    return torch.cat([x.lower[None], inner[1:-1], x.upper[None]])


def signed_gap(case: Case, envelope: Envelope, point: Tensor, below: bool, smoothing: float, at: Tensor) -> Tensor:
    """How far sigma is on the proved side of the line at `at` (N, S), in float64; point (*S)."""
    lines = envelope.lines(point[None, None], torch.full((1, 1, *point.shape), below), smoothing)
    assert not lines.slope.isnan().any()
    assert not lines.intercept.isnan().any()
    value, line = case.op.forward(at), lines.slope[0, 0] * at + lines.intercept[0, 0]
    gap = torch.where(value == line, 0.0, value - line)
    return gap if below else -gap


def batched(x: Interval) -> Interval:
    return Interval(x.lower[None], x.upper[None])


def test_every_operator_has_a_case() -> None:
    """`Ramps` is none that the front end reads."""
    assert {type(case.op).__name__ for case in CASES} == {*ELEMENTWISE, "Ramps"}
    assert all(name == op.__name__ for name, op in ELEMENTWISE.items())


def test_value_is_accurate(case: Case) -> None:
    points = points_of(case, 100)
    scale = case.facts.value_scale if case.facts else 0.0
    if isinstance(case.op, Ramps):  # which bounds its own sums
        scale = float(replace(case.op, weight=case.op.weight.abs()).forward(points).amax())
    computed = [case.op.forward(points)]
    if isinstance(case.op, Smooth):
        computed.append(case.op.value_and_slope(points)[0])
    for values in computed:
        for z, value, exact in zip(points.tolist(), values.tolist(), case.values(points), strict=True):
            assert abs(value - exact) <= RELATIVE_ERROR * (abs(exact) + scale) + TINY, z


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.name)
def test_slope_is_accurate(case: Case) -> None:
    assert isinstance(case.op, Smooth)
    points = points_of(case, 100)
    points = points[torch.isin(points, torch.tensor(case.corners, dtype=torch.float64)).logical_not()]
    points = points[(points.abs() > 1e-5) & (points.abs() <= 100.0)]
    for slopes in (case.op.slope(points), case.op.value_and_slope(points)[1]):
        for z, slope in zip(points.tolist(), slopes.tolist(), strict=True):
            with mp.workdps(150):
                exact = mp.diff(case.exact, mp.mpf(z), h=mp.mpf(10) ** -25 * min(1.0, abs(z)))
            scale = case.op.facts.slope_scale
            assert abs(slope - exact) <= RELATIVE_ERROR * (abs(exact) + scale) + TINY, z


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.name)
def test_gradient_is_the_slope(case: Case) -> None:
    assert isinstance(case.op, Smooth)
    points = points_of(case, 50)[:50].requires_grad_()
    (gradient,) = torch.autograd.grad(case.op.forward(points).sum(), points)
    torch.testing.assert_close(gradient, case.op.slope(points.detach()), rtol=1e-9, atol=1e-9)


def test_forward_keeps_the_dtype(case: Case) -> None:
    points = points_of(case, 50)[:50]
    value = case.op.to(torch.float32).forward(points.float())
    assert value.dtype == torch.float32
    if type(case.op).__name__ not in ("Floor", "Sign"):
        torch.testing.assert_close(value.double(), case.op.forward(points.float().double()), rtol=2e-4, atol=1e-6)


def test_interval_contains_the_values(case: Case) -> None:
    x = intervals_of(case, 40)
    bounds = case.op.interval(x)
    at = samples(x, 9)
    lower, upper = bounds.lower.expand_as(at).flatten().tolist(), bounds.upper.expand_as(at).flatten().tolist()
    for low, value, high in zip(lower, case.values(at), upper, strict=True):
        assert low <= value <= high


def test_interval_is_tight(case: Case) -> None:
    x = intervals_of(case, 200)
    corners = [x.lower.clamp(min=c).minimum(x.upper) for c in case.corners]
    bounds, values = case.op.interval(x), case.op.forward(torch.cat([samples(x, 2001), torch.stack(corners)]))
    low, high = values.amin(0), values.amax(0)
    slack = 1e-5 * (high - low) + 1e-13 * (1.0 + low.abs() + high.abs())
    assert bool((bounds.lower >= low - slack).all())
    assert bool((bounds.upper <= high + slack).all())


@pytest.mark.parametrize("smoothing", [0.0, 0.02, 0.7])
def test_lines_are_on_their_side(case: Case, smoothing: float) -> None:
    x = intervals_of(case, 2000)
    envelope = case.op.envelope(batched(x))
    share = torch.rand(2000, generator=generator(case), dtype=torch.float64) * 1.4 - 0.2
    point = x.lower + share * (x.upper - x.lower)
    at = torch.cat([samples(x, 41), point.clamp(x.lower, x.upper)[None]])
    for below in SIDES:
        gap = signed_gap(case, envelope, point, below, smoothing, at)
        assert bool((gap >= 0).all()), gap.min()


def test_lines_are_on_their_side_exactly(case: Case) -> None:
    x = intervals_of(case, 60)
    envelope = case.op.envelope(batched(x))
    share = torch.rand(60, generator=generator(case), dtype=torch.float64)
    point = (x.lower + share * (x.upper - x.lower)).clamp(x.lower, x.upper)
    at = torch.cat([samples(x, 5), point[None]])
    values = case.values(at)
    for below in SIDES:
        lines = envelope.lines(point[None, None], torch.full((1, 1, 60), below), 0.1)
        slopes, intercepts = (t[0].expand_as(at).flatten().tolist() for t in (lines.slope, lines.intercept))
        for z, value, slope, intercept in zip(at.flatten().tolist(), values, slopes, intercepts, strict=True):
            gap = value - (mp.mpf(slope) * mp.mpf(z) + mp.mpf(intercept))
            assert gap >= 0 if below else gap <= 0, (z, slope, intercept)


def lower_hull(z: Tensor, value: Tensor, at: Tensor) -> Tensor:
    """Value at `at` (S) of the lower convex hull of the points (N, S).

    It is the maximum over slopes s of min_i (value_i - s (z_i - at)), concave in s, and found by bisection.
    """
    z, value, at = z.T.contiguous(), value.T.contiguous(), at[:, None]
    steepest = 1e4 * (value.amax(1) - value.amin(1)) / (z.amax(1) - z.amin(1))
    low, high, best = -steepest[:, None], steepest[:, None], torch.full_like(at, -math.inf)
    for _ in range(40):
        slope = 0.5 * (low + high)
        least, where = (value - slope * (z - at)).min(1, keepdim=True)
        best = torch.maximum(best, least)
        rises = z.gather(1, where) < at
        low, high = torch.where(rises, slope, low), torch.where(rises, high, slope)
    return best[:, 0]


def test_lines_touch_the_hull(case: Case) -> None:
    x = intervals_of(case, 20)
    x = x[(x.upper - x.lower) > 1e-3]
    share = 0.02 + 0.96 * torch.rand(x.lower.shape, generator=generator(case), dtype=torch.float64)
    point = x.lower + share * (x.upper - x.lower)
    envelope = case.op.envelope(batched(x))
    corners = torch.tensor(case.corners, dtype=torch.float64)
    beside = torch.cat([corners, torch.nextafter(corners, corners - 1.0), torch.nextafter(corners, corners + 1.0)])
    grid = torch.cat([samples(x, 1001), beside[:, None].clamp(x.lower, x.upper), point[None]])
    value, here = case.op.forward(grid), case.op.forward(point)
    for below in SIDES:
        sign = 1.0 if below else -1.0
        room = sign * here - lower_hull(grid, sign * value, point)
        excess = signed_gap(case, envelope, point, below, 1e-5, point[None])[0] - room
        assert bool((excess <= 5e-5 * (value.amax(0) - value.amin(0)) + 1e-12).all()), excess.max()


DEGENERATE = [(0.0, 0.0), (1.0, 1.0), (-1.0, -1.0), (0.3, 0.3 + 1e-12), (1.0, 1.0 + 2.0**-52), (-1e-300, 1e-300)]
DEGENERATE += [(-0.5 - 1e-9, -0.5), (0.0, 5e-324), (2.0, 2.0 + 1e-8)]
HUGE = [
    (-1e3, 1e3),
    (-1e6, 1.0),
    (0.5, 1e8),
    (-1e30, 1e30),
    (-1e300, 1e300),
    (-1.7e308, 1.7e308),
    (3.0, 1e300),
    (1.0, 690.0),
    (-1e18, -3.0),
]
INFINITE = [(-math.inf, math.inf), (-math.inf, 1.0), (0.5, math.inf), (2.0, math.inf), (-math.inf, -2.0), (5.0, -5.0)]


def within(x: Interval) -> Tensor:
    """(7, *S): finite points of the intervals, their ends among them."""
    largest = torch.finfo(torch.float64).max
    lower, upper = x.lower.clamp(-largest, largest), x.upper.clamp(-largest, largest)
    middle = 0.5 * lower + 0.5 * upper
    fixed = [torch.full_like(lower, z) for z in (0.25, 1.0, -2.0)]
    return torch.stack([lower, middle, 0.5 * lower + 0.5 * middle, upper, *fixed]).clamp(lower, upper)


def check_sound_and_finite(case: Case, x: Interval, points: Tensor) -> None:
    """Interval and lines (one for each of the points (R, *S)) hold wherever the function is defined; nothing is NaN."""
    bounds, envelope, at = case.op.interval(x), case.op.envelope(batched(x)), within(x)
    assert not bounds.lower.isnan().any()
    assert not bounds.upper.isnan().any()
    value = case.op.forward(at)
    undefined = ~value.isfinite() | (x.lower > x.upper)
    assert bool(((bounds.lower <= value) & (value <= bounds.upper) | undefined).all())
    for below in SIDES:
        lines = envelope.lines(points[None], torch.full((1, *points.shape), below), 0.1)
        assert bool(lines.slope.isfinite().all())
        assert not lines.intercept.isnan().any()
        line = lines.slope[0] * at[:, None] + lines.intercept[0]
        gap = value[:, None] - line if below else line - value[:, None]
        assert bool(((gap >= 0) | undefined[:, None]).all()), (x, gap)


def test_strange_intervals(case: Case) -> None:
    ends = torch.tensor(DEGENERATE + HUGE + INFINITE, dtype=torch.float64)
    points = torch.tensor([-1.0, 0.0, 2.0, 1e9], dtype=torch.float64)[:, None].expand(-1, len(ends))
    check_sound_and_finite(case, Interval(ends[:, 0], ends[:, 1]), points)


any_float = st.floats(allow_nan=False, allow_infinity=True)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(ends=st.lists(st.tuples(any_float | st.floats(-20, 20), st.floats(0, 20) | any_float), min_size=4, max_size=12))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_any_interval(case: Case, ends: list[tuple[float, float]]) -> None:
    lower = torch.tensor([a for a, _ in ends], dtype=torch.float64).clamp(max=1e308)
    upper = torch.maximum(lower, lower.nan_to_num() + torch.tensor([abs(b) for _, b in ends], dtype=torch.float64))
    check_sound_and_finite(case, Interval(lower, upper), lower.nan_to_num()[None])


def test_a_batch_is_its_entries(case: Case) -> None:
    x = intervals_of(case, 24)
    stacked = Interval(x.lower.reshape(4, 2, 3), x.upper.reshape(4, 2, 3))
    g = generator(case)
    point = stacked.lower[:, None] + torch.rand(4, 5, 2, 3, generator=g, dtype=torch.float64)
    below = torch.rand(4, 5, 2, 3, generator=g) < 0.5
    together = case.op.envelope(stacked).lines(point, below, 0.2)
    assert together.slope.shape == together.intercept.shape == point.shape
    for b in range(4):
        alone = case.op.envelope(stacked[b : b + 1]).lines(point[b : b + 1, 2:3], below[b : b + 1, 2:3], 0.2)
        torch.testing.assert_close(together.slope[b, 2], alone.slope[0, 0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(together.intercept[b, 2], alone.intercept[0, 0], rtol=1e-13, atol=1e-13)


def test_float32_copy_is_close(case: Case) -> None:
    x = intervals_of(case, 300)
    x = x[(x.upper - x.lower) > 1e-2]
    g = generator(case)
    point = x.lower + torch.rand(6, *x.shape, generator=g, dtype=torch.float64) * (x.upper - x.lower)
    below = torch.rand(point.shape, generator=g) < 0.5
    envelope = case.op.envelope(batched(x))
    lines = envelope.lines(point[None], below[None], 0.3)
    copy = envelope.to(torch.float32).lines(point[None].float(), below[None], 0.3)
    assert copy.slope.dtype == copy.intercept.dtype == torch.float32
    exact, found = (lines.slope * point + lines.intercept), (copy.slope.double() * point + copy.intercept.double())
    size = 1.0 + (lines.slope * point).abs() + lines.intercept.abs()
    assert float(((exact - found).abs() / size).max()) < 1e-3


def test_saturated_entries_are_constant(case: Case) -> None:
    x = intervals_of(case, 300)
    bounds = case.op.interval(x)
    saturation = float((bounds.upper - bounds.lower).median())
    flat = bounds.upper - bounds.lower <= saturation
    envelope, free = case.op.envelope(batched(x), saturation=saturation), case.op.envelope(batched(x))
    point = 0.5 * (x.lower + x.upper)[None, None]
    for below in SIDES:
        side = torch.full(point.shape, below)
        lines, free_lines = envelope.lines(point, side, 0.1), free.lines(point, side, 0.1)
        assert bool((lines.slope[0, 0][flat] == 0).all())
        bound = bounds.lower if below else bounds.upper
        torch.testing.assert_close(lines.intercept[0, 0][flat], bound[flat], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lines.slope[0, 0][~flat], free_lines.slope[0, 0][~flat], rtol=0, atol=0)


def test_what_is_not_curved_is_straight(case: Case) -> None:
    x = intervals_of(case, 300)
    curved = case.op.curved(x)
    at = samples(x, 5)
    value = case.op.forward(at)
    chord = value[0] + (value[-1] - value[0]) * (at - x.lower) / (x.upper - x.lower).clamp(min=1e-300)
    assert float((value - chord)[:, ~curved].abs().nan_to_num().max() if bool((~curved).any()) else 0.0) < 1e-12


def test_bow_bounds_the_distance_from_the_chord(case: Case) -> None:
    """sigma leaves its chord by no more than the bow says, and the bow is finite on short intervals inside."""
    x = intervals_of(case, 60)
    bow = case.op.bow(x)
    assert bool((bow.lower <= 0).all() & (bow.upper >= 0).all())
    z = samples(x, 400)
    low, high = (case.op.forward(end) for end in (x.lower, x.upper))
    share = ((z - x.lower) / x.width).nan_to_num(0.0)
    value, chord = case.op.forward(z), torch.lerp(low.expand_as(z), high.expand_as(z), share)
    size = 1e-13 * (1.0 + low.abs() + high.abs() + value.abs())
    gap = torch.where(low.isfinite() & high.isfinite() & value.isfinite(), value - chord, 0.0)
    assert bool((gap >= bow.lower - size).all() & (gap <= bow.upper + size).all())
