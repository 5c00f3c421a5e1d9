"""The disjunctive normal form says what the formula says, at random points and on every boundary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvverify.errors import UnsupportedError
from curvverify.spec import parse_query
from curvverify.spec.linear import Bound
from curvverify.spec.normal_form import MAX_BRANCHES, conjoin
from tests.spec import formulas as f

points = st.lists(st.sampled_from(f.POINTS), min_size=f.INPUTS + f.OUTPUTS, max_size=f.INPUTS + f.OUTPUTS)
many_points = st.lists(points, min_size=12, max_size=12)


@settings(max_examples=250, deadline=None)
@given(f.formulas(["<=", "<", ">=", ">", "="]), many_points)
def test_1_0_agrees_with_direct_evaluation(formula, candidates):
    assertions = f.bounded(formula)
    query = parse_query(f.print_1(assertions))
    check_points(assertions, [query], candidates)


@settings(max_examples=250, deadline=None)
@given(f.formulas(["<=", "<", ">=", ">", "=", "!="]), many_points)
def test_2_0_agrees_with_direct_evaluation(formula, candidates):
    assertions = f.bounded(formula)
    check_points(assertions, [parse_query(f.print_2(assertions))], candidates)


@settings(max_examples=100, deadline=None)
@given(st.lists(f.formulas(["<=", "<", ">=", ">", "="]), min_size=2, max_size=3), many_points)
def test_several_assertions_mean_all_of_them_in_both_versions(several, candidates):
    assertions = [*f.bounded(several[0]), *several[1:]]
    check_points(assertions, [parse_query(f.print_1(assertions)), parse_query(f.print_2(assertions))], candidates)


def check_points(assertions, queries, candidates):
    """Exact membership is direct evaluation; a witness must satisfy it, and does unless a float32 bound is stricter."""
    for point in candidates:
        x, y = np.array(point[: f.INPUTS], np.float32), np.array(point[f.INPUTS :], np.float32)
        expected = f.direct(assertions, x, y)
        for query in queries:
            assert f.exactly(query, x, y) == expected
            found = query.satisfied_by(x, y)
            assert found is None or expected
            if found is not None:
                group = query.groups[found[0]]
                assert group.box.holds(x)
                assert group.disjuncts[found[1]].accepts(x, y)


def test_every_constant_is_a_float32_number_then_the_witness_test_is_exact():
    assertions = f.bounded(
        f.node("or", f.node("<", f.Node("X_0"), f.Node("0.5")), f.node("=", f.Node("Y_0"), f.Node("1.0")))
    )
    query = parse_query(f.print_1(assertions))
    for x0 in (0.25, 0.5, 2.0):
        for y0 in (0.0, 1.0):
            x, y = np.float32([x0, 0.0]), np.float32([y0, 0.0])
            assert (query.satisfied_by(x, y) is not None) == f.direct(assertions, x, y)


def test_too_many_branches_are_refused_before_they_are_built():
    ors = "(assert (or (<= Y_0 0) (<= Y_0 1)))" * 40
    with pytest.raises(UnsupportedError, match=f"{2**40} branches, more than {MAX_BRANCHES}"):
        parse_query("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (>= X_0 0))" + ors)


def test_too_many_atoms_are_refused():
    long = tuple((Bound(0, True, 1),) * 300 for _ in range(400))
    with pytest.raises(UnsupportedError, match="atoms, more than"):
        conjoin([long, long])


def test_too_many_coefficients_are_refused():
    wide = "".join(f"(declare-const Y_{i} Real)" for i in range(5000))
    rows = " ".join(f"(<= Y_{i} 0)" for i in range(5000))
    with pytest.raises(UnsupportedError, match="more than 20000000 coefficients together"):
        parse_query(f"(declare-const X_0 Real){wide}(assert (= X_0 0))(assert (or {rows}))")


def test_branches_with_one_box_share_a_group_and_equal_rows_share_a_polytope():
    branches = "".join(f"(and (>= X_0 {i % 3}.0) (<= X_0 {i % 3 + 1}) (<= Y_0 {i // 6}))" for i in range(18))
    query = parse_query(f"(declare-const X_0 Real)(declare-const Y_0 Real)(assert (or {branches}))")
    assert [len(g.disjuncts) for g in query.groups] == [3, 3, 3]
    assert query.groups[0].disjuncts[0] is query.groups[1].disjuncts[0]
    assert [g.box.lower[0] for g in query.groups] == [0, 1, 2]


def test_twenty_thousand_branches():
    k = 20_000
    branches = "\n".join(f"(and (>= X_0 {i / k}) (<= X_0 {(i + 1) / k}) (<= Y_0 {-i}))" for i in range(k))
    query = parse_query(f"(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(assert (or {branches}))")
    assert len(query.groups) == k
    assert query.satisfied_by([0.50001], [-10_000.5]) == (10_000, 0)
    assert query.satisfied_by([0.50001], [-9_999.5]) is None
