"""Boxes and polytopes: what a proof covers, what a witness must satisfy."""

import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvverify.spec import Group, InputBox, Polytope, Query, parse_query
from curvverify.spec.exact import decimals

X0 = "(declare-const X_0 Real)(declare-const Y_0 Real)"
BOX = X0 + "(assert (<= X_0 1))(assert (>= X_0 0))"


def box(lower, upper):
    return InputBox(decimals([Decimal(v) for v in lower]), decimals([Decimal(v) for v in upper]))


def polytope(output, bound, strict=False, over_input=None):
    rows = decimals([Decimal(v) for v in output]).reshape(1, -1)
    inputs = None if over_input is None else decimals([Decimal(v) for v in over_input]).reshape(1, -1)
    return Polytope(rows, inputs, decimals([Decimal(bound)]), np.array([strict]))


def test_cover_holds_the_exact_and_the_float32_box():
    b = box(["0.1", "-1"], ["0.1", "0.3"])
    low, high = b.cover
    assert low[0] == np.nextafter(0.1, 0) < 0.1 < high[0] == float(np.float32(0.1))
    assert (low[1], high[1]) == (-1.0, float(np.float32(0.3)))
    assert not b.empty


def test_an_interval_without_float32_numbers_has_the_nearest_one_as_witness():
    low, high = box(["0.1"], ["0.1"]).witness_range
    assert low.dtype == np.float32
    assert low[0] == high[0] == np.float32(0.1)


def test_witness_range_is_inside_the_exact_box():
    low, high = box(["0.1"], ["0.3"]).witness_range
    assert Decimal(float(low[0])) >= Decimal("0.1")
    assert Decimal(float(np.nextafter(low[0], np.float32(0)))) < Decimal("0.1")
    assert Decimal(float(high[0])) <= Decimal("0.3")


def test_empty_only_where_exact_and_float32_box_are_both_empty():
    assert box(["1"], ["0"]).empty
    assert not box(["1.00000001"], ["1"]).empty  # both sides are 1 in float32: the scorer accepts 1
    assert box(["1.00000001"], ["1"]).holds(np.float32([1.0]))
    assert not box(["1"], ["1"]).empty
    assert not box(["1.5"], ["1"]).holds(np.float32([1.5]))


@given(
    st.decimals(-2, 2, places=9), st.decimals(min_value=-1, max_value=1, places=9).map(lambda d: d * Decimal("1e-6"))
)
def test_emptiness_is_by_definition(lower, width):
    upper = lower + width
    by_definition = lower > upper and np.float32(float(lower)) > np.float32(float(upper))
    assert box([lower], [upper]).empty == by_definition


def test_box_sides_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 lower bounds and 1 upper"):
        box(["0", "0"], ["1"])


def test_contains_is_exact():
    p = polytope(["1", "1"], "0.3")
    y = np.array([0.1, 0.2])
    assert not p.contains(np.zeros(1), y)  # the float64 numbers nearest 0.1 and 0.2 sum to a little more than 0.3
    assert p.contains(np.zeros(1), np.array([0.1, np.nextafter(0.2, 0)]))
    assert polytope(["1"], "1").contains(np.zeros(1), np.ones(1))
    assert not polytope(["1"], "1", strict=True).contains(np.zeros(1), np.ones(1))


def test_rows_over_input_and_output():
    p = polytope(["1"], "0", over_input=["-1", "0.5"])
    assert p.contains(np.array([2.0, 2.0]), np.array([1.0]))
    assert not p.contains(np.array([2.0, 2.0]), np.array([1.5]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_satisfy_nothing(bad):
    assert not polytope(["1"], "1").contains(np.zeros(1), np.array([bad]))
    assert not polytope(["-1"], "1").contains(np.zeros(1), np.array([bad]))
    query = Query((Group(box(["0"], ["1"]), (polytope(["-1"], "1"),)),), 1, 1, "1.0")
    assert query.satisfied_by([bad], [0.0]) is None


def test_no_rows_hold_everywhere():
    p = Polytope(np.empty((0, 1), object), None, np.empty(0, object), np.empty(0, bool))
    assert p.contains(np.zeros(1), np.array([np.nan]))


def test_coefficients_that_are_no_float64_say_by_how_much():
    p = polytope(["0.1", "0.5"], "0.3", over_input=["1", "-0.2"])
    assert p.output_matrix[0, 0] == 0.1
    assert 0 < p.output_error[0, 0] < 1e-17
    assert p.output_error[0, 1] == 0
    assert p.input_error is not None
    assert 0 < p.input_error[0, 1] < 2e-17
    assert p.input_error[0, 0] == 0
    assert polytope(["1"], "0").input_error is None
    assert Decimal(float(p.bound_cover[0])) >= Decimal("0.3")
    assert p.bound_cover[0] == float(np.float32(0.3))


def test_a_witness_must_hold_exactly_and_in_float32():
    above = float(np.float32(0.1))  # a little more than 0.1
    query = parse_query(BOX + "(assert (<= Y_0 0.1))")
    assert query.satisfied_by([0.0], [above]) is None  # holds in float32 only
    assert query.satisfied_by([0.0], [np.nextafter(np.float32(0.1), np.float32(0))]) == (0, 0)
    query = parse_query(BOX + "(assert (> Y_0 0.1))")
    assert query.satisfied_by([0.0], [above]) is None  # holds exactly only: in float32 it is the bound itself
    assert query.satisfied_by([0.0], [np.nextafter(np.float32(0.1), np.float32(1))]) == (0, 0)


def test_a_strict_input_bound_closes_the_box_and_binds_the_witness():
    query = parse_query(X0 + "(assert (< X_0 1))(assert (> X_0 0.0))(assert (<= Y_0 0))")
    (group,) = query.groups
    assert (group.box.lower[0], group.box.upper[0]) == (0, 1)
    assert group.disjuncts[0].input is not None
    assert query.satisfied_by([1.0], [0.0]) is None
    assert query.satisfied_by([0.0], [0.0]) is None
    assert query.satisfied_by([0.5], [0.0]) == (0, 0)


def test_a_bound_that_is_no_decimal_is_outward_in_the_box_and_exact_in_the_row():
    query = parse_query(
        X0 + "(assert (<= (* 3 X_0) 1))(assert (>= (* -3 X_0) -2))(assert (>= X_0 0))(assert (<= Y_0 0))"
    )
    (group,) = query.groups
    assert Fraction(1, 3) < Fraction(group.box.upper[0]) < Fraction(1, 3) + Fraction(1, 10**50)
    assert query.satisfied_by([np.float32(0.3333333)], [0.0]) == (0, 0)
    assert query.satisfied_by([np.float32(0.33333334)], [0.0]) is None


def test_a_coefficient_a_hair_above_one_is_not_one():
    query = parse_query(X0 + f"(assert (<= (* 1.{'0' * 40}1 X_0) 1))(assert (>= X_0 0))(assert (<= Y_0 0))")
    assert query.groups[0].disjuncts[0].input is not None  # 1 / 1.00...01 is no finite decimal
    assert query.satisfied_by([1.0], [0.0]) is None


def test_a_point_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="a point of 2 and 1 entries for a query of 1, 1"):
        parse_query(BOX + "(assert (<= Y_0 0))").satisfied_by([0.0, 0.0], [0.0])


def test_covers_of_a_large_image_are_quick():
    rng = np.random.default_rng(0)
    lower = [Decimal(repr(float(v))) for v in rng.random(12_288)]
    b = box(lower, [v + Decimal("0.01") for v in lower])
    start = time.perf_counter()
    low, high = b.cover
    assert (low <= high).all()
    assert (b.witness_range[0] <= b.witness_range[1]).all()
    assert time.perf_counter() - start < 1.0  # 0.08 s on an idle core
