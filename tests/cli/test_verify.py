"""`curvverify verify` and the other commands that run the verifier, on the embedded example and small instances."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from curvverify.demo import FAILS, HOLDS, MODEL
from curvverify.report.batch import read_records
from curvverify.report.serialise import from_json
from curvverify.report.witness import parse_witness
from curvverify.spec import load_query


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    """A folder of the competition's layout around the embedded example: one unsat, one sat, one broken instance."""
    folder = tmp_path / "moons"
    (folder / "onnx").mkdir(parents=True)
    (folder / "vnnlib").mkdir()
    shutil.copy(MODEL, folder / "onnx")
    shutil.copy(HOLDS, folder / "vnnlib")
    shutil.copy(FAILS, folder / "vnnlib")
    (folder / "vnnlib" / "broken.vnnlib").write_text("(vnnlib-version <2.0>) (declare-network\n")
    rows = [("holds", "unsat"), ("fails", "sat"), ("broken", "unknown")]
    lines = [f"onnx/moons.onnx,vnnlib/{name}.vnnlib,60" for name, _ in rows]
    (folder / "instances.csv").write_text("\n".join(lines) + "\n")
    known = [f"{line},{verdict},hand," for line, (_, verdict) in zip(lines, rows, strict=True)]
    (folder / "expected.csv").write_text("onnx,vnnlib,timeout,verdict,confidence,fastest_s\n" + "\n".join(known) + "\n")
    return folder


def test_unsat_from_a_process(process) -> None:
    """The one line of a whole process, and the time it takes on an idle machine within reason."""
    done = process("verify", HOLDS, "--network", f"moons={MODEL}", "--timeout", 60)
    assert (done.code, done.out) == (0, "unsat\n")
    assert done.err == ""


def test_sat_with_its_witness(call) -> None:
    done = call("verify", FAILS, "--network", MODEL, "-v")
    assert done.code == 0
    assert done.lines[:2] == ["sat", "X real [1,2]"]
    assert load_query(FAILS).satisfied_by(*parse_witness(done.out, load_query(FAILS))) == (0, 0)
    assert "falsify" in done.err


def test_json_instead_and_beside(call, tmp_path: Path) -> None:
    done = call("verify", FAILS, "--network", MODEL, "--json", "-", "--seed", 4)
    result = from_json(json.loads(done.out))
    assert result.verdict == "sat"
    assert result.witness.replayed
    assert result.provenance.options["seed"] == 4
    path = tmp_path / "result.json"
    assert call("verify", HOLDS, "--network", MODEL, "--json", path).out == "unsat\n"
    assert from_json(json.loads(path.read_text())).margin_lower > 0.0


def test_result_file_and_serialised_assignments(call, tmp_path: Path) -> None:
    result, folder = tmp_path / "result.txt", tmp_path / "assignments"
    done = call("verify", FAILS, "--network", MODEL, "--result-file", result, "--serialise-assignments", folder)
    assert done.out == "sat\n"
    assert sorted(path.name for path in folder.iterdir()) == ["X.pb", "Y.pb"]
    assert result.read_text().startswith("sat\nX real [1,2]\n")


@pytest.mark.parametrize(
    ("query", "network", "code", "word"),
    [
        ("missing.vnnlib", MODEL, 4, "missing.vnnlib"),
        (HOLDS, "missing.onnx", 4, "missing.onnx"),
        (HOLDS, HOLDS, 4, "holds.vnnlib"),
        (MODEL, MODEL, 4, "moons.onnx"),
        (HOLDS, f"f={MODEL}", 2, "moons="),
        (HOLDS, f"[('f', '{MODEL}'), ('g', '{MODEL}')]", 3, "several networks"),
    ],
)
def test_errors(call, tmp_path: Path, query: object, network: object, code: int, word: str) -> None:
    result = tmp_path / "result.txt"
    done = call("verify", query, "--network", network, "--result-file", result)
    assert done.code == code
    assert done.out == ""
    assert word in done.err
    assert "Traceback" not in done.err
    assert result.read_text() == "unknown\n"


def test_floating_point_queries_need_consent(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query = tmp_path / "float32.vnnlib"
    query.write_text(HOLDS.read_text().replace(" real ", " float32 "))
    refused = call("verify", query, "--network", MODEL)
    assert (refused.code, refused.out) == (3, "")
    assert "--real-semantics" in refused.err
    assert call("verify", query, "--network", MODEL, "--real-semantics").out == "unsat\n"
    monkeypatch.setenv("CURVVERIFY_REAL_SEMANTICS", "1")
    assert call("verify", query, "--network", MODEL).out == "unsat\n"


def test_element_types_must_match(call, tmp_path: Path) -> None:
    query = tmp_path / "float64.vnnlib"
    query.write_text(HOLDS.read_text().replace(" real ", " float64 "))
    done = call("verify", query, "--network", MODEL, "--real-semantics")
    assert done.code == 4
    assert "float64" in done.err


def test_the_deadline_is_kept(call, shared_path: Path) -> None:
    folder = shared_path / "vnncomp" / "safenlp_slice"
    query, network = folder / "vnnlib/medical_hyperrectangle_32.vnnlib", folder / "onnx/medical_perturbations_0.onnx"
    begun = time.monotonic()
    done = call("verify", query, "--network", network, "--timeout", 3, "--threads", 1)
    assert done.lines[0] in ("timed-out", "unsat", "sat")
    assert time.monotonic() - begun < 6.0


def test_first_version_witness(call, shared_path: Path) -> None:
    folder = shared_path / "vnncomp" / "acasxu"
    network = folder / "onnx/ACASXU_run2a_2_3_batch_2000.onnx"
    done = call("verify", folder / "vnnlib/prop_2.vnnlib", "--network", network)
    assert done.lines[0] == "sat"
    assert done.lines[1].startswith("((X_0 ")
    assert done.lines[-1].startswith("(Y_4 ")
    assert done.lines[-1].endswith("))")


def test_bounds(call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = call("bounds", MODEL, "--box", HOLDS, "--plot", tmp_path / "bounds.png").out
    assert {"stem", "Tanh", "softplus", "head"} <= set(table.replace("│", " ").split())
    assert (tmp_path / "bounds.png").stat().st_size > 1000
    wide = from_json(json.loads(call("bounds", MODEL, "--box", HOLDS, "--json", "--method", "interval").out))
    tight = from_json(json.loads(call("bounds", MODEL, "--box", HOLDS, "--json").out))
    assert [node.name for node in wide.nodes] == [node.name for node in tight.nodes]
    assert (tight.nodes[-1].lower > wide.nodes[-1].lower).all()
    assert (tight.nodes[-1].upper < wide.nodes[-1].upper).all()


def test_demo(call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = call("demo", "--out", tmp_path / "picture.png")
    assert done.code == 0
    assert "unsat" in done.out
    assert "proved: Y0 - Y1 >=" in done.out
    assert "ONNX Runtime replayed it" in done.out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_batch_resumes_after_a_truncated_line(call, benchmark_folder: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "results.jsonl", tmp_path / "results.csv"
    arguments = ("batch", benchmark_folder / "instances.csv", "--out", out, "--jobs", 2, "--csv", table)
    first = call(*arguments, "--timeout", 50)
    assert first.code == 0
    assert "2 of 3" in first.out
    assert sorted(r.verdict for r in read_records(out)) == ["sat", "unreadable", "unsat"]
    assert {r.timeout for r in read_records(out)} == {50.0}
    assert len(table.read_text().splitlines()) == 3

    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:30])
    again = call(*arguments, "--resume")
    assert again.code == 0
    assert "[3/3]" in again.err
    assert "[2/3]" not in again.err
    assert out.read_text().splitlines(keepends=True)[:2] == lines[:2]
    assert len(read_records(out)) == 3

    refused = call(*arguments)
    assert refused.code == 2
    assert "--resume" in refused.err


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that has ended may wait for somebody to ask."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def endless(folder: Path) -> Path:
    """A list of one instance that takes for ever: y = 0 everywhere, a difference to be bounded to within 1e-12."""
    torch.manual_seed(0)
    first, last = torch.nn.Linear(6, 8), torch.nn.Linear(16, 1, bias=False)
    twice = torch.nn.Linear(6, 16)
    twice.weight.data, twice.bias.data = first.weight.data.repeat(2, 1), first.bias.data.repeat(2)
    last.weight.data = torch.tensor([[1.0, -1.0]]).repeat_interleave(8, 1)
    module = torch.nn.Sequential(twice, torch.nn.Tanh(), last)
    torch.onnx.export(module, (torch.zeros(1, 6),), folder / "zero.onnx", dynamo=False)
    names = [*(f"X_{i}" for i in range(6)), "Y_0"]
    lines = [f"(declare-const {name} Real)" for name in names]
    lines += [f"(assert (and (>= X_{i} -1) (<= X_{i} 1)))" for i in range(6)]
    (folder / "zero.vnnlib").write_text("\n".join([*lines, "(assert (<= Y_0 -1e-12))"]) + "\n")
    (folder / "instances.csv").write_text("zero.onnx,zero.vnnlib,600\n")
    return folder / "instances.csv"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_interrupted_batch_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "curvverify", "batch", str(endless(tmp_path)), "--out", str(out)]
    batch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    observed = psutil.Process(batch.pid)
    while len(children := observed.children(recursive=True)) < 2:  # the template of processes, and the instance's own
        assert batch.poll() is None
        time.sleep(0.02)
    batch.send_signal(signal.SIGINT)
    _, err = batch.communicate(timeout=60)
    assert batch.returncode == 130
    assert "--resume" in err
    deadline = time.monotonic() + 30.0  # who was killed may take a moment to end
    while any(map(alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert read_records(out) == []


def test_batch_reports_a_contradiction(call, benchmark_folder: Path, tmp_path: Path) -> None:
    known = benchmark_folder / "expected.csv"
    known.write_text(known.read_text().replace("holds.vnnlib,60,unsat", "holds.vnnlib,60,sat"))
    done = call("batch", benchmark_folder / "instances.csv", "--out", tmp_path / "r.jsonl", "--filter", "*holds*")
    assert done.code == 1
    assert "CONTRADICTION: moons onnx/moons.onnx vnnlib/holds.vnnlib: unsat, known to be sat" in done.out
