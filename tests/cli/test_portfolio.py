"""The portfolio: what the other tool says counts only where it is in time, well formed and, for `sat`, replayed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from curvverify.cli import portfolio as portfolio_module
from curvverify.cli.child import Instance
from curvverify.cli.portfolio import NOBODY, OURS, Part, Portfolio, decided_by, overhead
from curvverify.demo import FAILS, HOLDS, MODEL
from curvverify.errors import UnreadableError
from curvverify.plugins.answers import replayed, runtime, verdict_of
from curvverify.plugins.scripts import checked_script, run_script
from curvverify.report.batch import read_records
from curvverify.report.witness import parse_witness
from curvverify.spec import load_query, parse_query

Tool = Callable[[str], Path]


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """`tool("echo unsat")`: a run_instance.sh whose stdout is its result file."""

    def make(code: str) -> Path:
        path = tmp_path / "other" / "run_instance.sh"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\nRESULT=$5\n{{\n{code}\n}} >"$RESULT"\n')
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """curvverify's own part, which decides nothing."""
    monkeypatch.setattr(Portfolio, "_ours", lambda self, instance, started: Part(OURS, "timeout", 0.0))


def decide(script: Path, query: Path = HOLDS, timeout: float = 90.0):
    """The record and result file of one of the demo's queries."""
    runner = Portfolio(script, 45.0, ["--threads", "1"], 8.0)
    instance = Instance("demo", str(MODEL), str(query), timeout, Path())
    return runner.decide(instance, time.monotonic())


def test_what_curvverify_decides_is_never_asked_of_the_other(tool: Tool) -> None:
    record, text = decide(tool("touch asked; echo sat"))
    assert (record.verdict, text, decided_by(record)) == ("unsat", "unsat\n", OURS)
    assert not record.notes
    assert len(record.stages) == 1
    assert overhead(record) >= 0.0


@pytest.mark.usefixtures("undecided")
def test_an_unsat_in_time_is_passed_on(tool: Tool) -> None:
    record, text = decide(tool("echo unsat; echo 'proved by hand'"))
    assert (record.verdict, text, decided_by(record)) == ("unsat", "unsat\n", "other")


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(
    ("code", "verdict", "note"),
    [
        ("echo unknown", "unknown", ""),
        ("echo timeout", "timed-out", ""),
        ("echo error", "unknown", ""),
        ("echo unsat; exit 3", "unknown", "crash: ended with code 3"),
        ("echo unsat; kill -SEGV $$", "unknown", "crash: ended with code -11"),
        ("true", "unknown", "malformed: it left no result file"),
        ("echo UNSAT", "unknown", "malformed result file: its first line is 'UNSAT'"),
        ("echo holds", "unknown", "malformed result file"),
        ("printf 'unsat.'", "unknown", "malformed result file"),
        ("echo sat", "unknown", "sat without a witness"),
        ("echo unsat; sleep 61.5", "timed-out", "late: still running"),
    ],
)
def test_what_is_no_answer_is_no_verdict(tool: Tool, code: str, verdict: str, note: str) -> None:
    record, text = decide(tool(code), timeout=3.0 if "sleep" in code else 90.0)
    assert record.verdict == verdict
    assert text in ("unknown\n", "timeout\n")
    assert decided_by(record) == NOBODY
    assert note in " ".join(record.notes)


def witness(x: float, y: float) -> str:
    return f"echo sat; echo 'X real [1,2]'; echo {x}; echo {y}; echo 'Y real [1,2]'; echo 0.0; echo 0.0"


@pytest.mark.usefixtures("undecided")
def test_a_sat_is_replayed(tool: Tool) -> None:
    """The other tool's outputs do not count: ONNX Runtime's are passed on."""
    record, text = decide(tool(witness(0.25, 0.45)), FAILS)
    assert (record.verdict, decided_by(record)) == ("sat", "other")
    query = load_query(FAILS)
    x, y = parse_witness(text, query)
    assert query.satisfied_by(x, y) == (0, 0)
    assert np.array_equal(runtime(str(MODEL))(x), y)
    for code, reason in (
        (witness(0.6, 0.8), "not in the unsafe set"),
        (witness(0.2, 0.45), "outside of every box, by 0.05"),
        ("echo sat; echo 'X real [1,2]'; echo nan; echo 0; echo 'Y real [1,2]'; echo 0.0; echo 0.0", "finite inputs"),
        ("echo sat; echo 'X real [1,3]'; echo 1.0", "entries, found"),
        ("echo sat; echo '((X_0 0.25) (Y_0 0.1))'", "finite inputs"),
        ("echo sat; echo gibberish", "expected a header"),
    ):
        record, text = decide(tool(code), FAILS)
        assert (record.verdict, text) == ("unknown", "unknown\n")
        assert "sat is not passed on" in record.notes[0]
        assert reason in record.notes[0]


def test_a_witness_just_outside_is_moved_into_the_box() -> None:
    query = parse_query(
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= Y_0 1))"
    )

    def double(x: np.ndarray) -> np.ndarray:
        return 2 * x

    x, y = replayed(query, np.array([1.00005], np.float32), double)
    assert (x.tolist(), y.tolist()) == ([1.0], [2.0])
    with pytest.raises(UnreadableError, match="outside of every box"):
        replayed(query, np.array([1.01], np.float32), double)
    with pytest.raises(UnreadableError, match="not in the unsafe set"):
        replayed(query, np.array([0.4], np.float32), double)


def test_everything_the_other_tool_started_is_killed(tool: Tool) -> None:
    """Also what runs in process groups of its own, or was left behind by a parent that ended."""
    script = tool("timeout 100 sleep 61.75 & (setsid sleep 61.75 &) ; (sleep 61.75 &) ; sleep 61.75")
    ran = run_script(script, "demo", str(MODEL), str(HOLDS), 1.0)
    assert ran.problem.startswith("late")
    assert ran.text == ""
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "61.75"]]
    for process in left:
        process.kill()
    assert len(left) <= 1  # what calls setsid and is orphaned at once cannot be told from a stranger
    ran = run_script(tool("echo unsat; sleep 61.25 &"), "demo", str(MODEL), str(HOLDS), 20.0)
    assert verdict_of(ran.text) == "unsat"
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "61.25"]]


def test_our_own_failure_hands_over(tool: Tool, tmp_path: Path) -> None:
    record, text = decide(tool("echo unsat"), tmp_path / "missing.vnnlib")
    assert (record.verdict, text, decided_by(record)) == ("unsat", "unsat\n", "other")
    assert "no such file" in record.notes[0].lower()


def test_one_instance_from_the_command_line(tool: Tool, tmp_path: Path, process) -> None:
    result = tmp_path / "result.txt"
    arguments = ["portfolio", "--budget", 45, "--", tool("echo unsat"), "v1", "demo", MODEL, FAILS, result, "90.0"]
    ended = process(*arguments)
    assert ended.code == 0, ended.err
    assert ended.lines == ["sat"]
    assert result.read_text().startswith("sat\nX real [1,2]\n")


@pytest.mark.usefixtures("undecided")
def test_a_list_with_resume(tool: Tool, tmp_path: Path, call) -> None:
    for source in (MODEL, HOLDS, FAILS):
        shutil.copy(source, tmp_path)
    table, out = tmp_path / "instances.csv", tmp_path / "r.jsonl"
    table.write_text("moons.onnx,holds.vnnlib,60\n")
    command = ["portfolio", "--budget", 5, "--instances", table, "--out", out]
    assert call(*command, "--", tool("echo unsat")).code == 0
    assert call(*command, "--", tool("echo unsat")).code == 2
    table.write_text("moons.onnx,holds.vnnlib,60\nmoons.onnx,fails.vnnlib,60\n")
    (tmp_path / "expected.csv").write_text("moons.onnx,fails.vnnlib,60,sat,replayed,1.0\n")
    ended = call(*command, "--resume", "--", tool("echo unsat"))
    assert ended.code == 1
    assert f"CONTRADICTION: {tmp_path.name} moons.onnx fails.vnnlib: unsat, known to be sat" in ended.out
    assert [record.vnnlib for record in read_records(out)] == ["holds.vnnlib", "fails.vnnlib"]
    assert (tmp_path / "r-results" / "moons.onnx--holds.vnnlib.txt").read_text() == "unsat\n"
    assert "other" in ended.out
    assert "overhead of the wrapper" in ended.out


def test_written_scripts_call_the_portfolio(tool: Tool, tmp_path: Path, call, monkeypatch) -> None:
    import subprocess

    ended = call("portfolio", "--budget", 45, "--write-scripts", tmp_path / "my scripts", "--", tool("echo unsat"))
    assert [Path(line).name for line in ended.lines] == ["install_tool.sh", "prepare_instance.sh", "run_instance.sh"]
    (tmp_path / "other" / "prepare_instance.sh").write_text('#!/bin/sh\necho "$@" >prepared\n')
    (tmp_path / "other" / "prepare_instance.sh").chmod(0o755)

    def run(name: str, *arguments: object) -> int:
        command = [str(tmp_path / "my scripts" / name), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=90, check=False).returncode

    assert run("install_tool.sh", "v1") == 0
    assert run("install_tool.sh", "v2") == 1
    assert run("prepare_instance.sh", "v1", "demo", MODEL, HOLDS) == 0
    assert (tmp_path / "prepared").read_text().startswith("v1 demo ")
    assert run("run_instance.sh", "v1", "demo", MODEL, HOLDS, "result.txt", "90.0") == 0
    assert (tmp_path / "result.txt").read_text() == "unsat\n"
    assert run("run_instance.sh", "v1", "demo", MODEL, HOLDS, "result.txt", "no number") == 0
    assert (tmp_path / "result.txt").read_text() == "error\n"


def test_wrong_calls_are_refused(tool: Tool, tmp_path: Path, call) -> None:
    script = tool("echo unsat")
    for arguments, words in (
        (("--", script), "behind -- PATH/run_instance.sh write v1 CATEGORY"),
        (("--", script, "v1", "c", MODEL, HOLDS, tmp_path / "r", "soon"), "no number of seconds"),
        (("--instances", tmp_path / "i.csv", "--", script), "give --out"),
    ):
        ended = call("portfolio", "--budget", 5, *arguments)
        assert ended.code == 2
        assert words in ended.err
    assert call("portfolio", "--budget", 0, "--", script).code == 2
    assert call("portfolio", "--budget", 1, "--", tmp_path / "none.sh").code == 4
    script.chmod(0o644)
    with pytest.raises(Exception, match="chmod"):
        checked_script(script)
    assert portfolio_module.tool_name(script) == "other"
