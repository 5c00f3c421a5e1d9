"""The examples do what they say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from curvverify.demo import FAILS, HOLDS, MODEL
from tests.docs.pages import ROOT, reader_environment

EXAMPLES = ROOT / "examples"


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**reader_environment(), **environment},
        timeout=600,
    )


def test_acceptance_tests_pass_and_can_fail(tmp_path: Path) -> None:
    source = (EXAMPLES / "test_acceptance.py").read_text()
    passing, failing = tmp_path / "test_acceptance.py", tmp_path / "test_demanding.py"
    passing.write_text(source)
    failing.write_text(source.replace("EPS = 0.15", "EPS = 2.0").replace("holds.vnnlib", "fails.vnnlib"))
    done = run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", passing, failing)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 failed, 4 passed" in done.stdout
    assert "counterexample" in done.stdout


@pytest.mark.parametrize(
    ("queries", "code", "verdicts"),
    [((HOLDS,), 0, ["unsat"]), ((HOLDS, FAILS), 10, ["unsat", "sat"]), (("missing.vnnlib",), 4, [])],
)
def test_gate(queries: tuple[str | Path, ...], code: int, verdicts: list[str]) -> None:
    done = run(EXAMPLES / "gate.sh", MODEL, *queries)
    assert done.returncode == code, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == verdicts


def test_gate_tells_undecided_from_falsified(tmp_path: Path) -> None:
    answers = tmp_path / "curvverify"
    answers.write_text('#!/bin/sh\ncase $2 in *unknown*) echo unknown ;; *) printf "sat\\n((X_0 1.0))\\n" ;; esac\n')
    answers.chmod(0o755)
    path = f"{tmp_path}:{reader_environment()['PATH']}"
    assert run(EXAMPLES / "gate.sh", MODEL, "unknown.vnnlib", PATH=path).returncode == 11
    assert run(EXAMPLES / "gate.sh", MODEL, "a.vnnlib", "unknown.vnnlib", PATH=path).returncode == 10


def test_the_regulariser_lowers_curvature_and_no_accuracy() -> None:
    done = run("python", EXAMPLES / "train_and_certify.py")
    assert done.returncode == 0, done.stderr
    proved = [float(x) for x in re.findall(r"([0-9.]+) % proved", done.stdout)]
    curvature = [float(x) for x in re.findall(r"curvature <= ([0-9.]+)", done.stdout)]
    assert len(proved) == 2
    assert proved[1] >= proved[0] > 50.0
    assert curvature[1] < 0.6 * curvature[0]
