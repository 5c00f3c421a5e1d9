"""Results as JSON and back, as tables and as pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from curvverify.cli.output import write_file
from curvverify.cli.verify import answer
from curvverify.errors import UnreadableError, UnsupportedError, UsageError
from curvverify.plots.cactus import cactus
from curvverify.plots.outputs import draw_bounds_against_samples
from curvverify.plots.style import new_figure, save
from curvverify.report.assignments import write_assignments
from curvverify.report.batch import Record
from curvverify.report.serialise import from_json, to_json
from curvverify.report.tables import bounds_table
from curvverify.spec import parse_query
from curvverify.types import Verdict
from curvverify.verification.node_bounds import BoundsReport, NodeBounds
from curvverify.verification.result import DisjunctBound, Provenance, Result, Stage, Witness

QUERY = parse_query(
    """(vnnlib-version <2.0>)
    (declare-network f (declare-input X real [1,2]) (declare-output Y real [1,1]))
    (assert (<= X[0,0] 1.0)) (assert (>= X[0,0] 0.0)) (assert (<= X[0,1] 1.0)) (assert (>= X[0,1] 0.0))
    (assert (>= Y[0,0] 1.0))"""
)
PROVENANCE = Provenance("0", "m", "a", "q", "b", "n", {"torch": "2"}, {"timeout": math.inf, "branch": True, "seed": 1})
RESULT = Result(
    verdict=Verdict.UNKNOWN,
    margin_lower=-math.inf,
    disjuncts=(DisjunctBound(0, 1, -math.inf, (-math.inf, -0.25), None), DisjunctBound(1, 0, 0.5, (0.5,), "linear")),
    witness=None,
    stages=(Stage("linear", 0.5, 3, 1, "margin -inf"),),
    seconds=1.25,
    provenance=PROVENANCE,
    notes=("one", "two"),
)
FALSIFIED = replace(
    RESULT, verdict=Verdict.FALSIFIED, witness=Witness((float(np.float32(0.1)), 1.0), (1.5,), replayed=True)
)


@pytest.mark.parametrize("result", [RESULT, FALSIFIED], ids=["unknown", "sat"])
def test_results_read_back(result: Result) -> None:
    text = json.dumps(to_json(result), allow_nan=False)
    assert from_json(json.loads(text)) == result


def test_bounds_read_back() -> None:
    lower = torch.tensor([[-math.inf, 0.1]], dtype=torch.float64)
    node = NodeBounds("n[1]", "Add", "Add", (1, 2), lower, lower + 1.0, True, 2)
    report = BoundsReport("m.onnx", "linear", (node,), 0.5)
    back = from_json(json.loads(json.dumps(to_json(report), allow_nan=False)))
    assert (back.model, back.method, back.seconds) == ("m.onnx", "linear", 0.5)
    assert back.nodes[0].shape == (1, 2)
    assert torch.equal(back.nodes[0].lower, node.lower)
    assert torch.equal(back.nodes[0].upper, node.upper)


def test_json_of_something_else() -> None:
    with pytest.raises(TypeError, match="Stage"):
        to_json(RESULT.stages[0])
    with pytest.raises(UnreadableError, match="kind"):
        from_json({"verdict": "sat"})
    with pytest.raises(UnreadableError, match="complete"):
        from_json({"kind": "Result", "format": 1, "verdict": "sat"})


def test_the_answer_on_stdout() -> None:
    assert answer(QUERY, RESULT, True) == "unknown"
    assert answer(QUERY, FALSIFIED, True).splitlines() == [
        "sat",
        "X real [1,2]",
        "0.10000000149011612",
        "1.0",
        "Y real [1,1]",
        "1.5",
    ]
    assert answer(QUERY, FALSIFIED, False) == "sat"
    first = parse_query(
        """(declare-const X_0 Real) (declare-const X_1 Real) (declare-const Y_0 Real)
        (assert (<= X_0 1)) (assert (>= X_0 0)) (assert (<= X_1 1)) (assert (>= X_1 0)) (assert (>= Y_0 1))"""
    )
    assert answer(first, FALSIFIED, True) == "sat\n((X_0 0.10000000149011612)\n(X_1 1.0)\n(Y_0 1.5))"


def test_serialised_assignments(tmp_path: Path) -> None:
    assert FALSIFIED.witness is not None
    paths = write_assignments(QUERY, FALSIFIED.witness, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["X.pb", "Y.pb"]
    tensor = onnx.TensorProto()
    tensor.ParseFromString(paths[0].read_bytes())
    value = numpy_helper.to_array(tensor)
    assert tensor.name == "X"
    assert value.shape == (1, 2)
    assert value.dtype == np.float32
    assert value.ravel().tolist() == list(FALSIFIED.witness.x)


def test_files_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old, and longer than the new one")
    write_file(path, "unsat\n")
    assert path.read_text() == "unsat\n"
    assert [p.name for p in tmp_path.iterdir()] == ["result.txt"]
    with pytest.raises(UsageError, match="cannot write"):
        write_file(tmp_path / "missing" / "result.txt", "unsat\n")
    write_file(Path("/dev/null"), "unsat\n")


def test_bounds_table_has_a_row_per_node() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    nodes = (NodeBounds("x[0]", "Input", "", (3,), zero, zero + 2, False, 0),)
    assert bounds_table(BoundsReport("m", "interval", nodes, 0.0)).row_count == 1


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    records = [Record("f", str(i), "p", 60.0, v, float(i), 0.1) for i, v in enumerate(["sat", "unknown", "unsat"])]
    cactus({"one": records, "none decided": records[1:2]}, tmp_path / "cactus.png")
    figure, (axis,) = new_figure(1, 4.0, 3.0)
    draw_bounds_against_samples(axis, np.zeros(3), np.ones(3), np.random.default_rng(0).uniform(size=(50, 3)))
    save(figure, tmp_path / "bounds.svg")
    assert (tmp_path / "cactus.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "bounds.svg").read_text()
    with pytest.raises(UnsupportedError, match="xyz"):
        save(figure, tmp_path / "bounds.xyz")
