"""VNN-LIB 2.0: what is read, and what is said about what is not."""

import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest

from curvverify.errors import ParseError, UnsupportedError
from curvverify.spec import Variable, parse_query

HEAD = """\
(vnnlib-version <2.0>)
(declare-network f
  (declare-input X float32 [1,2])
  (declare-output Y float32 [2]))
"""
BOX = HEAD + "".join(f"(assert (and (>= X[0,{i}] 0.0) (<= X[0,{i}] 1.0)))" for i in range(2)) + "\n"
LINE = 6
SEVERAL = """\
(vnnlib-version <2.0>)
(declare-network f
  (declare-input A real [2,2])
  (declare-input B real [])
  (declare-output C real [2])
  (declare-output D real [1,3]))
(assert (and (>= B -1.0) (<= B 1.0)))
""" + "".join(f"(assert (and (>= A[{i},{j}] {i}.{j}) (<= A[{i},{j}] 9.0)))\n" for i in range(2) for j in range(2))


def rows(query, disjunct=0):
    p = query.groups[0].disjuncts[disjunct]
    over = p.input_matrix if p.input_matrix is not None else np.zeros((p.rows, query.inputs))
    return [(tuple(over[k]), tuple(p.output_matrix[k]), float(p.bound[k]), bool(p.strict[k])) for k in range(p.rows)]


@pytest.mark.parametrize(
    ("assertion", "expected"),
    [
        ("(<= Y[0] Y[1])", [((0, 0), (1, -1), 0, False)]),
        ("(> Y[0] 0.5)", [((0, 0), (-1, 0), -0.5, True)]),
        ("(== Y[0] 1.0)", [((0, 0), (1, 0), 1, False), ((0, 0), (-1, 0), -1, False)]),
        ("(<= (- Y[0]) (- (* 2.0 Y[1]) X[0,1] 1.0))", [((0, 1), (-1, -2), -1, False)]),
        ("(<= (* Y[0] (+ 1.0 1.0) 3.0) (- 6.0))", [((0, 0), (6, 0), -6, False)]),
    ],
)
def test_rows(assertion, expected):
    assert rows(parse_query(BOX + f"(assert {assertion})")) == expected


def test_unequal_is_either_strict_side():
    query = parse_query(BOX + "(assert (!= Y[0] 1.0))")
    assert rows(query, 0) == [((0, 0), (1, 0), 1, True)]
    assert rows(query, 1) == [((0, 0), (-1, 0), -1, True)]


def test_several_assertions_with_or_are_a_conjunction():
    query = parse_query(BOX + "(assert (or (<= Y[0] 0.0) (>= Y[0] 1.0)))" * 2)
    assert len(query.groups[0].disjuncts) == 4


def test_constants_are_read_from_their_text():
    text = "-0." + "123456789" * 10
    query = parse_query(BOX + f"(assert (>= X[0,0] {text}))(assert (<= X[0,0] 0.{'9' * 50}))(assert (<= Y[0] {text}))")
    assert query.groups[0].box.upper[0] == Decimal("0." + "9" * 50)
    assert query.groups[0].disjuncts[0].bound[0] == Decimal(text)


def test_variables_are_flattened_in_order_of_declaration():
    query = parse_query(SEVERAL + "(assert (<= (+ C[1] (* 2.0 D[0,2]) (* 3.0 A[1,0]) (* 4.0 B)) 0.0))")
    assert query.variables == (
        Variable("A", "real", (2, 2), False),
        Variable("B", "real", (), False),
        Variable("C", "real", (2,), True),
        Variable("D", "real", (1, 3), True),
    )
    assert (query.inputs, query.outputs, query.network, query.version) == (5, 5, "f", "2.0")
    assert rows(query) == [((0, 0, 3, 0, 4), (0, 1, 0, 0, 2), 0, False)]
    assert [str(v) for v in query.groups[0].box.lower] == ["0.0", "0.1", "1.0", "1.1", "-1.0"]


def test_element_types():
    assert parse_query(BOX + "(assert (<= Y[0] 0.0))").element_types == ("float32",)
    mixed = BOX.replace("Y float32", "Y float64") + "(assert (<= Y[0] Y[1]))"
    assert parse_query(mixed).element_types == ("float32", "float64")
    integers = HEAD.replace("float32", "int8") + "(assert (and (>= X[0,0] -1) (<= X[0,0] 1) (== X[0,1] 3) (<= Y[0] 5)))"
    assert parse_query(integers).element_types == ("int8",)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (BOX.replace("<2.0>", "2.0"), 1, "lacks its angle brackets: write .vnnlib-version <2.0>."),
        (BOX + "( assert (<= Y[0] 0.0))", LINE, "a space between '.' and the keyword: write .assert"),
        (BOX.replace("Y float32", "Y Real") + "(assert (<= Y[0] 0.0))", 4, "spells it in lower case, real"),
        (
            BOX.replace("Y float32", "Y flout32") + "(assert (<= Y[0] 0.0))",
            4,
            "unknown element type flout32 of Y: known",
        ),
        (BOX.replace("(vnnlib-version <2.0>)", "; 2.0"), None, "no version: expected .vnnlib-version <2.0>. first"),
        (BOX + "(assert (<= Y[0] 1e-5))", LINE, "no exponent in VNN-LIB 2.0: write 1e-5 as a plain decimal"),
        (BOX + "\n(assert (<= Y[0] 1.0)", LINE + 1, "syntax error at the end of the file"),
        (BOX + "(assert (<= Y[0] 1.0))\njunk", LINE + 1, "syntax error at 'junk', column 0"),
        (BOX + "(assert (<= Y[0] 1))", LINE, "Write floating-point constants with a decimal point"),
        (BOX + "(assert (<= Y[2] 1.0))", LINE, "Index out of bounds for variable: Y.2.. Index 2 is out of bounds"),
        (BOX + "(assert (<= Z[2] 1.0))", LINE, "Undeclared variable: Z"),
        (BOX + "(assert (<= (/ Y[0] 2.0) 1.0))", LINE, "syntax error at '/'"),
        (BOX + "(assert (and))", LINE, "syntax error"),
        (HEAD, None, "syntax error at the end of the file"),
        (HEAD.replace("[1,2]", "[1,2] initialized").replace("2.0", "2.1"), 3, "the file says version 2.1, 2.0 is read"),
        (
            HEAD + "(assert (<= X[0,1] 1.0))(assert (>= X[0,0] 0.0))",
            None,
            "X.0,0. has no upper bound|X.0,0. has no lower|X.0,1. has no lower",
        ),
    ],
)
def test_errors_name_the_line_and_what_to_write(text, line, message):
    with pytest.raises(ParseError, match=message) as caught:
        parse_query(text, "p.vnnlib")
    if text != HEAD:
        assert caught.value.line == line
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD
            + "(declare-network g (isomorphic-to f) (declare-input A float32 [1,2]) (declare-output B float32 [2]))\n"
            "(assert (== X[0,0] A[0,0]))",
            "2 networks .f, g.: only one is supported",
        ),
        (
            HEAD.replace("  (declare-output", '  (declare-hidden H float32 [1,64] "node")\n  (declare-output')
            + "(assert (<= H[0,0] 1.0))",
            'hidden nodes .H = "node". of network f',
        ),
        (
            BOX + "(assert (<= Y[0] 1.0))\n(assert (<= (* X[0,1] Y[0]) 1.0))",
            ":7: nonlinear arithmetic: product of X.0,1. and Y.0.",
        ),
        (BOX.replace("<2.0>", "<3.0>"), "VNN-LIB version 3.0: 1.0 and 2.0 are read"),
        (BOX + "(assert (<= Y[0] 1" + "0" * 400 + ".0))", "a number is out of range"),
        (BOX + "(assert (<= Y[0] 1" + "0" * 305 + ".0))", ":6: number out of range"),
        (BOX + "(assert " + "(and " * 300 + "(<= Y[0] 1.0)" + ")" * 301, "302 nested parentheses, more than 200"),
        (BOX + "(assert (or (<= Y[0] 0.0) (<= Y[0] 1.0)))" * 30, "branches, more than"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(text, message):
    with pytest.raises(UnsupportedError, match=message) as caught:
        parse_query(text, "p.vnnlib")
    assert str(caught.value).startswith("p.vnnlib")


def test_the_package_is_imported_only_for_2_0_files():
    code = "import sys, curvverify.spec as s; s.parse_query(sys.argv[1]); print('vnnlib' in sys.modules)"
    old = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (= X_0 1))"
    for text, imported in ((old, "False"), (BOX + "(assert (<= Y[0] 1.0))", "True")):
        run = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == imported
