"""Closed forms against quadratics and cubics whose radii are known by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curvverify.certificates.closed_form import attack_radius, cubic_radius, lipschitz_radius, taylor_radius

positive = st.floats(1e-6, 1e6)


def number(x: float) -> Tensor:
    return torch.tensor([x], dtype=torch.float64)


def test_known_values() -> None:
    """h = 3 - 2 d - d^2 in one dimension: K = 2, g = 2, zero at d = 1; h = 3 - 4 d + d^2 is attacked at 1."""
    assert float(taylor_radius(number(3.0), number(2.0), number(2.0))) == pytest.approx(1.0, abs=1e-14)
    assert float(taylor_radius(number(3.0), number(2.0), number(2.0))) <= 1.0
    assert float(lipschitz_radius(number(3.0), number(2.0))) == pytest.approx(1.5)
    assert float(attack_radius(number(3.0), number(4.0), number(2.0))) == pytest.approx(1.0, abs=1e-13)
    assert float(attack_radius(number(3.0), number(4.0), number(2.0))) >= 1.0
    assert float(attack_radius(number(3.0), number(2.0), number(2.0))) == math.inf
    # 3 - d - d^2 / 2 * 2 - d^3 / 6 * 6 = 0 at d = 1
    assert float(cubic_radius(number(3.0), number(1.0), number(2.0), number(6.0))) == pytest.approx(1.0, abs=1e-12)


@given(positive, positive, positive, positive)
def test_statements_hold(m: float, g: float, K: float, T: float) -> None:
    margin, slope, bend, third = number(m), number(g), number(K), number(T)
    r = taylor_radius(margin, slope, bend)
    assert float(slope * r + 0.5 * bend * r * r) <= m * (1 + 1e-14)
    assert float(r) > 0
    c = cubic_radius(margin, slope, bend, third)
    assert float(slope * c + bend * c * c / 2 + third * c**3 / 6) <= m
    assert float(c) <= float(r)
    a = attack_radius(margin, slope, bend)
    assert float(a) >= float(r)
    if math.isfinite(float(a)):
        assert float(margin - slope * a + 0.5 * bend * a * a) <= 1e-9 * m


@pytest.mark.parametrize("bad", [math.nan, 0.0, -1.0, -math.inf])
def test_nothing_is_certified_by_a_bad_margin(bad: float) -> None:
    one, m = number(1.0), number(bad)
    for found in (lipschitz_radius(m, one), taylor_radius(m, one, one), cubic_radius(m, one, one, one)):
        assert float(found) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_is_certified_by_a_bad_constant(bad: float) -> None:
    one, b = number(1.0), number(bad)
    assert float(lipschitz_radius(one, b)) == 0.0
    assert float(taylor_radius(one, b, one)) == float(taylor_radius(one, one, b)) == 0.0
    assert float(cubic_radius(one, one, b, one)) == float(cubic_radius(one, one, one, b)) == 0.0
    assert float(attack_radius(one, b, one)) in (0.0, math.inf) or bad == math.inf


def test_constant_margin_is_certified_everywhere() -> None:
    assert float(taylor_radius(number(1.0), number(0.0), number(0.0))) == math.inf
