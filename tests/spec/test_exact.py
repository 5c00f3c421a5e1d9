"""Directed rounding of decimals, against exact fractions."""

import decimal
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from curvverify.spec import exact

wide = st.decimals(allow_nan=False, allow_infinity=False, min_value=Decimal("-1e60"), max_value=Decimal("1e60"))
floats = st.floats(allow_nan=False, allow_infinity=False).map(Decimal)


def between(low: float, step: int) -> Decimal:
    """The middle of a float32 number and the next one, a hair below or above, or exactly."""
    high = float(np.nextafter(np.float32(low), np.float32(np.inf)))
    return exact.EXACT.add(Decimal((low + high) / 2), Decimal(step).scaleb(-80))


halves = st.builds(between, st.floats(-(2.0**90), 2.0**90, width=32), st.sampled_from([-1, 0, 1]))
numbers = st.one_of(wide, floats, halves)


@given(numbers)
@example(Decimal("0.1"))
@example(Decimal("1e-400"))
@example(Decimal("-1e300"))
@example(Decimal("3.4028235677973366e38"))
def test_float64_neighbours(value):
    low, high = exact.float_below(value), exact.float_above(value)
    assert Decimal(low) <= value <= Decimal(high)
    assert low == high or high == np.nextafter(low, np.inf)


@given(numbers)
@example(Decimal("1e39"))
@example(Decimal("-1e39"))
@example(Decimal("1e-50"))
def test_float32_neighbours(value):
    array = exact.decimals([value])
    low, high = exact.float32_below(array)[0], exact.float32_above(array)[0]
    assert low.dtype == high.dtype == np.float32
    assert Decimal(float(low)) <= value <= Decimal(float(high))
    with np.errstate(over="ignore"):
        assert low == high or high == np.nextafter(low, np.float32(np.inf))
    assert low <= exact.float32_nearest(array)[0] <= high


@given(numbers.filter(lambda v: abs(v) < Decimal("3e38")))
@example(Decimal("0.1"))
@example(Decimal(1) + Decimal(2) ** -24 + Decimal("1e-40"))
@example(Decimal(1) + Decimal(2) ** -24 - Decimal("1e-40"))
def test_covers_hold_the_number_and_both_its_float32_forms(value):
    array = exact.decimals([value])
    low, high = exact.cover_below(array)[0], exact.cover_above(array)[0]
    through_float64 = float(exact.float32_nearest(array)[0])
    neighbours = [float(f(array)[0]) for f in (exact.float32_below, exact.float32_above)]
    direct = min(through_float64, *neighbours, key=lambda v: abs(Fraction(v) - Fraction(value)))
    for form in (value, Decimal(direct), Decimal(through_float64)):
        assert Decimal(float(low)) <= form <= Decimal(float(high))


@given(numbers)
@example(Decimal("0.1"))
def test_error_of_the_nearest_float64(value):
    error = exact.nearest_error(exact.decimals([value]))[0]
    true = abs(Fraction(value) - Fraction(float(value)))
    assert Fraction(float(error)) >= true
    assert (error == 0) == (true == 0)
    assert error <= np.nextafter(float(true), np.inf)


def test_constants_are_never_rounded():
    with pytest.raises(decimal.Inexact):
        exact.EXACT.add(Decimal("1e1500"), Decimal("1e-1500"))
    long = Decimal("0." + "123456789" * 20)
    assert exact.EXACT.add(long, Decimal(1)) - 1 != 0
    assert Fraction(exact.EXACT.multiply(long, long)) == Fraction(long) ** 2
