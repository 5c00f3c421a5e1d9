"""Witnesses and result files: printed as the competition asks, and read back to the same float32 numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvverify.errors import ParseError
from curvverify.report.witness import parse_witness, result_file_text, witness_v1, witness_v2
from curvverify.spec import Query, Variable
from curvverify.types import Verdict
from curvverify.verification.result import Provenance, Result, Witness

OLD = Query((), 2, 1, "1.0")
NEW = Query(
    (),
    3,
    3,
    "2.0",
    variables=(
        Variable("first", "float32", (1, 2), False),
        Variable("count", "int64", (), False),
        Variable("Y", "float32", (2,), True),
        Variable("X", "real", (1, 1), True),
    ),
)
singles = st.floats(width=32, allow_nan=False, allow_infinity=False)


def result(verdict, witness=None):
    provenance = Provenance("0", "m", "", "q", "", "float64", {}, {})
    return Result(verdict, 0.0, (), witness, (), 1.0, provenance)


def test_the_1_0_form_is_the_contract_s():
    witness = Witness((float(np.float32(-0.30036014318466187)), float(np.float32(-1e-7))), (5.0,), True)
    assert witness_v1(witness) == "((X_0 -0.30036014318466187)\n(X_1 -0.00000010000000116860974)\n(Y_0 5.0))"


def test_the_2_0_form_is_the_contract_s():
    text = witness_v2(NEW, Witness((0.5, 1.0, 3.0), (2.0, -1.25, 0.0), True))
    assert text == "first float32 [1,2]\n0.5\n1.0\ncount int64 []\n3\nY float32 [2]\n2.0\n-1.25\nX real [1,1]\n0.0"
    x, y = parse_witness("sat\n" + text + "\n", NEW)
    assert (x.tolist(), y.tolist()) == ([0.5, 1.0, 3.0], [2.0, -1.25, 0.0])


@given(st.lists(singles, min_size=1, max_size=4), st.lists(singles, min_size=1, max_size=4))
def test_both_forms_give_back_the_same_float32_numbers(x, y):
    query = Query(
        (),
        len(x),
        len(y),
        "2.0",
        variables=(Variable("X", "float32", (1, len(x)), False), Variable("Y", "float32", (len(y),), True)),
    )
    for text in (witness_v1(Witness(tuple(x), tuple(y), True)), witness_v2(query, Witness(tuple(x), tuple(y), True))):
        assert "e" not in text.replace("float32", "")
        read_x, read_y = parse_witness(text)
        assert read_x.dtype == np.float32
        assert read_x.tobytes() == np.float32(x).tobytes()
        assert read_y.tobytes() == np.float32(y).tobytes()


def test_other_tools_spelling_is_read():
    x, y = parse_witness("sat\n(\n(X_1  1e-3)\n( X_0 2 )\n(Y_0 -.5))\n")
    assert (x.tolist(), y.tolist()) == ([2.0, float(np.float32(1e-3))], [-0.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("((X_0 1.0)", "expected ..X_0 value. ... .Y_0 value. ..."),
        ("((X_0 1.0) junk)", "expected ..X_0 value."),
        ("((X_0 1.0)(X_2 1.0)(Y_0 1.0))", "indices of X skip: found 2 values up to X_2"),
        ("((X_0 1.0)(X_0 1.0)(Y_0 1.0))", "X_0 is given twice"),
        ("((X_0 one)(Y_0 1.0))", "expected a number, found 'one'"),
        ("1.0\n2.0", "expected a header such as"),
        ("X float32 [2]\n1.0\nY float32 [1]\n1.0", "X has 2 entries, found 1 values"),
        ("X float32 [1]\none", "expected a number"),
    ],
)
def test_malformed_witnesses(text, message):
    with pytest.raises(ParseError, match=message):
        parse_witness(text)


@pytest.mark.parametrize(
    ("verdict", "line"),
    [(Verdict.VERIFIED, "unsat"), (Verdict.UNKNOWN, "unknown"), (Verdict.TIMEOUT, "timeout")],
)
def test_the_result_file_without_a_witness(verdict, line):
    assert result_file_text(OLD, result(verdict)) == line + "\n"


def test_the_result_file_with_a_witness_in_the_query_s_version():
    witness = Witness((0.5, 1.0), (2.0,), True)
    assert result_file_text(OLD, result(Verdict.FALSIFIED, witness)) == "sat\n((X_0 0.5)\n(X_1 1.0)\n(Y_0 2.0))\n"
    new = result_file_text(NEW, result(Verdict.FALSIFIED, Witness((0.5, 1.0, 3.0), (2.0, 1.0, 0.0), True)))
    assert new.startswith("sat\nfirst float32 [1,2]\n0.5\n")


def test_sat_without_a_replayed_witness_is_never_written():
    for witness in (None, Witness((0.5, 1.0), (2.0,), False)):
        with pytest.raises(ValueError, match="replayed witness only"):
            result_file_text(OLD, result(Verdict.FALSIFIED, witness))


def test_numbers_that_cannot_be_printed_are_refused():
    with pytest.raises(ValueError, match="a witness holds nan"):
        witness_v1(Witness((float("nan"),), (), True))
    with pytest.raises(ValueError, match=r"count is of type int64, the witness holds 0\.5"):
        witness_v2(NEW, Witness((0.5, 1.0, 0.5), (2.0, 1.0, 0.0), True))
    with pytest.raises(ValueError, match="X has 1 entries, the witness 0"):
        witness_v2(NEW, Witness((0.5, 1.0, 1.0), (2.0, 1.0), True))
    with pytest.raises(ValueError, match="more values than the query"):
        witness_v2(NEW, Witness((0.5, 1.0, 1.0, 1.0), (2.0, 1.0, 0.0), True))
