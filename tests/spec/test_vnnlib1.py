"""VNN-LIB 1.0: what is read, and what is said about what is not."""

from decimal import Decimal

import numpy as np
import pytest

from curvverify.errors import ParseError, UnsupportedError
from curvverify.spec import parse_query

DECLARED = """\
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
"""
BOX = DECLARED + "(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= X_1 1))(assert (>= X_1 0))\n"
LINE = BOX.count("\n") + 1


def rows(query, group=0, disjunct=0):
    """Every row as (input, output, bound, strict) of floats."""
    p = query.groups[group].disjuncts[disjunct]
    over = p.input_matrix if p.input_matrix is not None else np.zeros((p.rows, query.inputs))
    return [(tuple(over[k]), tuple(p.output_matrix[k]), float(p.bound[k]), bool(p.strict[k])) for k in range(p.rows)]


@pytest.mark.parametrize(
    ("assertion", "expected"),
    [
        ("(<= Y_0 Y_1)", ((0, 0), (1, -1), 0, False)),
        ("(>= Y_0 Y_1)", ((0, 0), (-1, 1), 0, False)),
        ("(< Y_0 0.5)", ((0, 0), (1, 0), 0.5, True)),
        ("(> Y_0 .5)", ((0, 0), (-1, 0), -0.5, True)),
        ("(<= 1. Y_0)", ((0, 0), (-1, 0), -1, False)),
        ("(<= Y_0 -1e-06)", ((0, 0), (1, 0), -1e-6, False)),
        ("(<= Y_0 +3)", ((0, 0), (1, 0), 3, False)),
        ("(<= Y_0 (- 3))", ((0, 0), (1, 0), -3, False)),
        ("(<= (+ Y_0 Y_1 2.5) 3E0)", ((0, 0), (1, 1), 0.5, False)),
        ("(<= (- Y_0 Y_1 1) 3)", ((0, 0), (1, -1), 4, False)),
        ("(<= (- Y_0) (* 2 Y_1))", ((0, 0), (-1, -2), 0, False)),
        ("(<= (* Y_0 (+ 1 1) 3) 6)", ((0, 0), (6, 0), 6, False)),
        ("(<= (* 2 (+ Y_0 (* 3 Y_1) 1)) 6)", ((0, 0), (2, 6), 4, False)),
        ("(<= (* (- X_0 X_0) Y_0) Y_1)", ((0, 0), (0, -1), 0, False)),
        ("(<= Y_0 X_1)", ((0, -1), (1, 0), 0, False)),
        ("(<= (+ X_0 X_1) 1)", ((1, 1), (0, 0), 1, False)),
        ("(<= (+ Y_0 Y_0 (- Y_1 Y_1)) 1)", ((0, 0), (2, 0), 1, False)),
        ("( <=\n  Y_0 ; a comment with ( and )\n\t0.5\n)", ((0, 0), (1, 0), 0.5, False)),
    ],
)
def test_rows(assertion, expected):
    assert rows(parse_query(BOX + f"(assert {assertion})")) == [expected]


def test_equality_is_two_rows():
    assert rows(parse_query(BOX + "(assert (= Y_0 1))")) == [((0, 0), (1, 0), 1, False), ((0, 0), (-1, 0), -1, False)]


def test_equality_fixes_an_input():
    query = parse_query(DECLARED + "(assert (= X_0 0.5))(assert (= 2 (* 4 X_1)))(assert (<= Y_0 1))")
    assert list(query.groups[0].box.lower) == list(query.groups[0].box.upper) == [Decimal("0.5")] * 2
    assert query.groups[0].disjuncts[0].rows == 1


def test_bounds_are_kept_to_the_last_digit():
    text = "0." + "123456789" * 10
    query = parse_query(BOX + f"(assert (<= X_0 {text}))(assert (<= (- Y_0 {text}) 1))")
    assert query.groups[0].box.upper[0] == Decimal(text)
    assert str(query.groups[0].disjuncts[0].bound[0]) == "1" + text[1:]


def test_the_tightest_bound_counts():
    query = parse_query(
        BOX + "(assert (<= X_0 0.75))(assert (<= X_0 0.9))(assert (<= (* -2 X_0) -0.5))(assert (<= Y_0 1))"
    )
    assert (query.groups[0].box.lower[0], query.groups[0].box.upper[0]) == (Decimal("0.25"), Decimal("0.75"))


def test_acasxu_property_6_is_a_conjunction_of_disjunctions():
    query = parse_query(
        DECLARED
        + "(assert (or (and (<= X_0 2) (>= X_0 1)) (and (<= X_0 -1) (>= X_0 -2))))"
        + "(assert (<= X_1 1))(assert (>= X_1 0))(assert (or (<= Y_1 Y_0) (and (<= Y_0 1) (<= Y_1 1))))"
    )
    assert [(int(g.box.lower[0]), int(g.box.upper[0]), len(g.disjuncts)) for g in query.groups] == [
        (1, 2, 2),
        (-2, -1, 2),
    ]
    assert len(rows(query, 1, 1)) == 2


def test_or_with_a_simple_assertion_joins_every_branch():
    query = parse_query(BOX + "(assert (or (<= Y_0 0) (>= Y_0 1)))(assert (<= Y_1 2))")
    assert [rows(query, 0, d)[0][1:3] for d in range(2)] == [((0, 1), 2)] * 2
    assert [rows(query, 0, d)[1][1:3] for d in range(2)] == [((1, 0), 0), ((-1, 0), -1)]


def test_constant_comparisons_are_decided():
    query = parse_query(BOX + "(assert (or (and (<= 1 2) (<= Y_0 0)) (and (< 1 1) (<= Y_0 5)) (= Y_0 Y_0)))")
    assert [p.rows for p in query.groups[0].disjuncts] == [1, 0]
    assert query.satisfied_by([0, 0], [9, 9]) == (0, 1)


def test_a_plain_contradiction_leaves_no_group_and_a_note():
    query = parse_query(BOX + "(assert (<= 2 1))")
    assert query.groups == ()
    assert "contradict" in query.notes[0]
    assert query.satisfied_by([0, 0], [0, 0]) is None


def test_an_empty_box_is_kept():
    query = parse_query(BOX + "(assert (<= X_0 -1))(assert (<= Y_0 0))")
    assert query.groups[0].box.empty
    assert query.satisfied_by([0, 0], [0, 0]) is None


def test_deep_nesting_costs_no_recursion():
    depth = 20_000
    query = parse_query(
        BOX + "(assert " + "(and (or " * depth + "(<= Y_0 " + "(- " * depth + "7" + ")" * (3 * depth + 2)
    )
    assert rows(query) == [((0, 0), (1, 0), 7, False)]


def test_sizes_and_element_types():
    query = parse_query(BOX + "(assert (<= Y_0 0))", "a.vnnlib")
    assert (query.inputs, query.outputs, query.version, query.path) == (2, 2, "1.0", "a.vnnlib")
    assert query.element_types == ("real",)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "found an empty file"),
        ("  ; only a comment (declare-const X_0 Real)\n", None, "found an empty file"),
        ("hello world\n", None, "expected .vnnlib-version <2.0>. or .declare-const X_0 Real., found 'hello world'"),
        ("(assert (<= X_0 1))", None, "not VNN-LIB"),
        (BOX + "(assert (<= Y_0 1)", LINE, "'.assert' is never closed: expected '.', found the end of the file"),
        (BOX + "(assert (or (<= Y_0 1)\n", LINE, "'.or' is never closed"),
        (BOX + "(assert (<= Y_0 1)))", LINE, "'.' closes nothing"),
        (BOX + "\n(assert (<= Y_0 1))\njunk", LINE + 2, "found 'junk'"),
        (BOX + "(<= Y_0 1)", LINE, "expected .declare-const .... or .assert ...., found '.<= Y_0 1.'"),
        (BOX + "(and (<= Y_0 1))", LINE, "expected .* found '.and'"),
        (
            BOX + "(assert (<= Y_0 1)\n(assert (<= Y_0 1)))",
            LINE + 1,
            "assert inside '.assert': an earlier '.' is missing",
        ),
        (BOX + "(assert (<= Y_0 1)\n(declare-const Y_2 Real))", LINE + 1, "declare-const inside '.assert'"),
        (BOX + "(assert\n (<= Y_2 1))", LINE + 1, "unknown variable: 'Y_2'"),
        (BOX + "(assert (<= (+ Y_0 Z) 1))", LINE, "unknown variable: 'Z'"),
        (BOX + "(assert (<= Y_0 1.2.3))", LINE, "not a number: '1.2.3'"),
        (BOX + "(assert (<= Y_0 nan))", LINE, "unknown variable: 'nan'"),
        (BOX + "(assert (<= Y_0 1_000))", LINE, "not a number: '1_000'"),
        (BOX + "(assert (<= Y_0 0x10))", LINE, "not a number"),
        (BOX + "(assert (<= Y_0 \u0661))", LINE, "not a number"),
        (BOX + "(assert (=> (<= Y_0 1) (<= Y_1 1)))", LINE, "unknown operator '=>': known are"),
        (BOX + "(assert (<= (/ Y_0 2) 1))", LINE, "unknown operator '/'"),
        (BOX + "(check-sat)", LINE, "unknown operator 'check-sat'"),
        (BOX + "(assert ((<= Y_0 1)))", LINE, "expected an operator after"),
        (BOX + "(assert (<= (* Y_0 X_1) 1))", LINE, "nonlinear term: product of Y_0 and X_1"),
        (BOX + "\n(assert (<= (*\n Y_0 X_1\n) 1))", LINE + 1, "nonlinear term"),
        (BOX + "(assert)", LINE, "'.assert' holds nothing"),
        (BOX + "(assert (and))", LINE, "'.and' holds nothing"),
        (BOX + "(assert (or))", LINE, "'.or' holds nothing: expected a comparison"),
        (BOX + "(assert (<= Y_0 (+)))", LINE, "'.[+]' holds nothing: expected a number"),
        (BOX + "(assert Y_0)", LINE, "expected a comparison .* in '.assert', found 'Y_0'"),
        (BOX + "(assert (+ Y_0 1))", LINE, "expected a comparison .* in '.assert', found '.[+]'"),
        (BOX + "(assert (<= Y_0 (<= Y_0 1)))", LINE, "expected a number, a variable"),
        (BOX + "(assert (<= Y_0 (and (<= Y_0 1))))", LINE, "expected a number, a variable, .* found '.and'"),
        (BOX + "(assert (<= Y_0 1 2))", LINE, "'.<=' compares two terms, found 3"),
        (BOX + "(assert (<= Y_0))", LINE, "'.<=' compares two terms, found 1"),
        (BOX + "(assert (<= Y_0 1) (<= Y_1 1))", LINE, "assert takes one formula, found 2"),
        (DECLARED, None, "no assertion"),
        (DECLARED + "(declare-const X_0 Real)", 5, "X_0 is declared twice"),
        (DECLARED + "(declare-const X_3 Real)", None, "X_2 is not declared, but X_3 is"),
        (DECLARED + "(declare-const Y_2 Int)", 5, "expected the type Real, found 'Int'"),
        (DECLARED + "(declare-const Z_0 Real)", 5, "expected a variable X_0, X_1, .* found 'Z_0'"),
        (DECLARED + "(declare-const X_02 Real)", 5, "found 'X_02'"),
        (DECLARED + "(declare-const X_2)", 5, "expected .declare-const NAME Real."),
        ("(declare-const Y_0 Real)(assert (<= Y_0 1))", None, "no input is declared"),
        ("(declare-const X_0 Real)(assert (<= X_0 1))", None, "no output is declared"),
        (DECLARED + "(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= X_1 1))", None, "X_1 has no lower bound: every"),
        (DECLARED + "(assert (>= X_0 0))(assert (<= Y_0 1))", None, "X_1 has no lower bound"),
        (
            BOX.replace("(assert (<= X_1 1))", "(assert (or (<= X_1 1) (<= Y_0 1)))"),
            None,
            "X_1 has no upper bound in branch 2 of",
        ),
    ],
)
def test_errors_name_the_line_and_what_was_expected(text, line, message):
    with pytest.raises(ParseError, match=message) as caught:
        parse_query(text, "p.vnnlib")
    assert caught.value.line == line
    assert str(caught.value).startswith("p.vnnlib: " if line is None else f"p.vnnlib:{line}: ")


@pytest.mark.parametrize(
    ("number", "message"),
    [("1e400", "number out of range"), ("1e-5000", "number out of range"), ("1e999999999", "number out of range")],
)
def test_numbers_out_of_range_are_refused(number, message):
    with pytest.raises(UnsupportedError, match=rf"p.vnnlib:{LINE}: {message}"):
        parse_query(BOX + f"(assert (<= Y_0 {number}))", "p.vnnlib")


def test_constants_beyond_exact_arithmetic_are_refused():
    product = " ".join(["1.234567890123456789e-300"] * 200)
    with pytest.raises(UnsupportedError, match="more than 2000 decimal digits"):
        parse_query(BOX + f"(assert (<= Y_0 (* {product})))")
