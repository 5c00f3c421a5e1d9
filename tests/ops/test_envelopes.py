"""Exact numbers and single promises of the elementwise operators' envelopes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvverify.ops.base import Elementwise
from curvverify.ops.elementwise.clip import Clip
from curvverify.ops.elementwise.hinge import Abs, LeakyRelu, PRelu, Relu
from curvverify.ops.elementwise.power import Log, Power, Reciprocal, Sqrt
from curvverify.ops.elementwise.sigmoid import Sigmoid, Tanh
from curvverify.ops.elementwise.silu import HardSwish, Silu
from curvverify.ops.elementwise.smooth import Smooth
from curvverify.ops.elementwise.softplus import Exp, Softplus
from curvverify.ops.elementwise.tangents import chord, make_cell
from curvverify.ops.elementwise.trigonometric import Cos, Sin
from curvverify.types import Interval

from .cases import CASES, Case
from .test_laws import intervals_of, samples


def line(
    op: Elementwise, lower: float, upper: float, at: float, below: bool, smoothing: float = 0.0
) -> tuple[float, float]:
    """(slope, intercept) of one entry."""
    x = Interval(torch.tensor([[lower]], dtype=torch.float64), torch.tensor([[upper]], dtype=torch.float64))
    lines = op.envelope(x).lines(torch.tensor([[[at]]], dtype=torch.float64), torch.tensor([[[below]]]), smoothing)
    return lines.slope.item(), lines.intercept.item()


def close(slope: float, intercept: float) -> object:
    return pytest.approx((slope, intercept), abs=1e-12)


def test_relu_has_the_triangle() -> None:
    assert line(Relu(), -1.0, 3.0, 0.0, below=False) == close(0.75, 0.75)
    assert line(Relu(), -1.0, 3.0, -0.5, below=True) == (1.0, 0.0)
    assert line(Relu(), -3.0, 1.0, 0.5, below=True) == (0.0, 0.0)


def test_relu_slope_follows_the_point_when_smoothed() -> None:
    assert line(Relu(), -1.0, 3.0, 0.0, below=True, smoothing=0.1) == (0.5, 0.0)
    assert line(Relu(), -1.0, 3.0, 0.2, below=True, smoothing=0.1) == (0.75, 0.0)
    assert line(Relu(), -1.0, 3.0, -1.0, below=True, smoothing=0.1) == (0.0, 0.0)


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_stable_hinges_are_exact(below: bool, smoothing: float) -> None:
    assert line(Relu(), 0.5, 2.0, 1.0, below, smoothing) == (1.0, 0.0)
    assert line(Relu(), -2.0, -0.5, 1.0, below, smoothing) == (0.0, 0.0)
    assert line(LeakyRelu(0.1), -2.0, 0.0, 1.0, below, smoothing) == (0.1, 0.0)
    assert line(Abs(), -2.0, -1.0, 1.0, below, smoothing) == (-1.0, 0.0)


def test_hinge_that_is_concave_swaps_its_sides() -> None:
    assert line(LeakyRelu(2.0), -1.0, 1.0, 0.0, below=True) == close(1.5, -0.5)
    assert line(LeakyRelu(2.0), -1.0, 1.0, 0.0, below=False, smoothing=0.1) == (1.5, 0.0)


def test_prelu_slopes_broadcast_over_the_node() -> None:
    slopes = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64).reshape(3, 1, 1)
    x = Interval(-torch.ones(2, 3, 4, 5, dtype=torch.float64), torch.ones(2, 3, 4, 5, dtype=torch.float64))
    point = torch.zeros(2, 7, 3, 4, 5, dtype=torch.float64)
    lines = PRelu(slopes).envelope(x).lines(point, torch.ones(point.shape, dtype=torch.bool), 0.1)
    assert lines.slope[1, 6, :, 2, 3].tolist() == pytest.approx([0.5, 0.75, 1.5])
    assert PRelu(slopes).to(torch.float32).negative_slope.dtype == torch.float32


def test_clip_turns_at_its_lower_corner() -> None:
    op = Clip(0.0, 1.0)
    assert line(op, -1.0, 4.0, 0.0, below=True, smoothing=0.1) == close(0.125, 0.0)  # half of (hi - lo) / (u - lo)
    assert line(op, -1.0, 4.0, 3.0, below=True, smoothing=0.01) == close(0.25, 0.0)
    assert line(op, -1.0, 4.0, -0.5, below=False, smoothing=0.01) == close(0.5, 0.5)
    assert line(op, 0.25, 0.75, 0.5, below=False) == close(1.0, 0.0)
    assert line(op, 2.0, 3.0, 2.5, below=True) == close(0.0, 1.0)


def test_sigmoid_tangent_and_chord() -> None:
    slope, intercept = line(Sigmoid(), -2.0, 0.0, -1.0, below=True)
    value = 1.0 / (1.0 + math.e)
    assert (slope, intercept) == close(value * (1 - value), value + value * (1 - value))
    at = [1.0 / (1.0 + math.exp(2.0)), 0.5]
    assert line(Sigmoid(), -2.0, 0.0, -1.0, below=False) == close((at[1] - at[0]) / 2.0, at[1])


def test_admissible_tangent_meets_the_end_point() -> None:
    slope, intercept = line(Tanh(), -1.0, 2.0, 2.0, below=True)
    assert slope * 2.0 + intercept == pytest.approx(math.tanh(2.0), abs=1e-5)
    slope, intercept = line(Silu(), -9.0, 1.0, -9.0, below=True)
    assert slope * -9.0 + intercept == pytest.approx(-9.0 / (1.0 + math.exp(9.0)), abs=1e-5)


def test_cube_touches_at_minus_half() -> None:
    slope, _ = line(Power(3.0), -2.0, 4.0, -2.0, below=True)
    assert slope == pytest.approx(3.0, abs=1e-4)  # the tangent at 1 meets the cube again at -2


@pytest.mark.parametrize("op", [Sin(), Cos()])
def test_waves_between_two_minima_are_flat(op: Elementwise) -> None:
    assert line(op, -20.0, 30.0, 1.0, below=True) == pytest.approx((0.0, -1.0), abs=1e-11)
    assert line(op, -20.0, 30.0, 1.0, below=False) == pytest.approx((0.0, 1.0), abs=1e-11)
    assert line(op, -1e9, 1e9, 1.0, below=True) == (0.0, -1.0)


def test_hard_swish_upper_side_is_the_hull_of_its_corners() -> None:
    assert line(HardSwish(), -5.0, -1.0, -2.0, below=False, smoothing=0.01) == close(-1.0 / 6.0, -0.5)
    assert line(HardSwish(), -5.0, 5.0, 0.0, below=False) == close(0.5, 2.5)


def test_outside_of_the_domain_nothing_is_claimed() -> None:
    for op, lower, upper in (
        (Log(), -1.0, 1.0),
        (Sqrt(), -1.0, 1.0),
        (Reciprocal(), -1.0, 1.0),
        (Power(0.5), -1.0, 2.0),
    ):
        bounds = op.interval(Interval(torch.tensor([lower]).double(), torch.tensor([upper]).double()))
        assert (bounds.lower.item(), bounds.upper.item()) == (-math.inf, math.inf)
        assert line(op, lower, upper, 0.5, below=True) == (0.0, -math.inf)
        assert line(op, lower, upper, 0.5, below=False) == (0.0, math.inf)


def test_upper_side_of_the_logarithm_survives_zero() -> None:
    assert line(Log(), 0.0, 2.0, 1.0, below=False) == close(1.0, -1.0)
    assert line(Log(), 0.0, 2.0, 1.0, below=True) == (0.0, -math.inf)


def test_overflow_leaves_the_finite_side() -> None:
    assert line(Exp(), -1.0, 1e4, 0.0, below=False) == (0.0, math.inf)
    assert line(Exp(), -1.0, 1e4, 0.0, below=True) == pytest.approx((0.0, math.exp(-1.0)))


@pytest.mark.parametrize(
    "make", [lambda: Clip(1.0, 0.0), lambda: Clip(math.nan), lambda: Softplus(0.0), lambda: Power(math.nan)]
)
def test_meaningless_attributes_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"clip needs|softplus needs|powers are supported"):
        make()  # type: ignore[operator]


def test_curved_leaves_out_what_is_affine() -> None:
    x = Interval(torch.tensor([[-2.0, -1.0, 0.5]]).double(), torch.tensor([[-1.0, 1.0, 2.0]]).double())
    assert Relu().curved(x).tolist() == [[False, True, False]]
    assert Clip(-1.5, 3.0).curved(x).tolist() == [[True, False, False]]
    assert Sigmoid().curved(x, saturation=0.3).tolist() == [[False, True, False]]


@pytest.mark.parametrize("case", [c for c in CASES if isinstance(c.op, Smooth)], ids=lambda case: case.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_chords_hold_even_where_they_are_not_the_envelope(case: Case, sign: int) -> None:
    """The chord's intercept does not rely on the search for arcs having been right."""
    op = case.op
    assert isinstance(op, Smooth)
    x = intervals_of(case, 500)
    pieces = op.pieces(x, sign)
    slope, intercept = chord(op, make_cell(op, x), pieces, sign)
    at = samples(x, 101)
    gap: Tensor = sign * (op.forward(at) - (slope * at + intercept))
    if pieces.complete is not None:
        gap = gap[:, pieces.complete]
    assert bool((gap[:, gap.isfinite().all(0)] >= 0).all())
    assert float(gap.isfinite().double().mean()) > 0.5
