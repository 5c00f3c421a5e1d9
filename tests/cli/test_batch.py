"""Batches: what is run, what is kept, and how processes end."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from curvverify.cli import child
from curvverify.cli.batch import known_verdicts, read_instances, share_cores
from curvverify.cli.child import Instance, Limits, run_instance
from curvverify.errors import ParseError
from curvverify.report.batch import (
    Record,
    append,
    merged,
    open_for_append,
    read_records,
    summarise,
    to_competition_csv,
    to_markdown,
)

LIMITS = Limits(grace=0.5, memory_gib=4.0)
RECORD = Record("fam", "onnx/a.onnx", "vnnlib/p.vnnlib", 60.0, "unsat", 3.25, 0.5, 0.125, ({"name": "linear"},))


def instance(timeout: float = 30.0) -> Instance:
    return Instance("fam", "a.onnx", "p.vnnlib", timeout, Path())


def run_code(monkeypatch: pytest.MonkeyPatch, code: str, timeout: float = 30.0, limits: Limits = LIMITS) -> Record:
    """The record of an instance whose process runs the given Python code."""
    monkeypatch.setattr(child, "request", lambda instance, flags: ("builtins:exec", [code]))
    record = run_instance(instance(timeout), [], limits)
    assert record is not None
    return record


@pytest.mark.parametrize(
    "record",
    [RECORD, replace(RECORD, margin_lower=None, error="é\n"), replace(RECORD, margin_lower=float("-inf"))],
)
def test_records_read_back(record: Record) -> None:
    assert Record.from_line(record.to_line()) == record


def test_a_truncated_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    second = replace(RECORD, onnx="b.onnx")
    path.write_text(RECORD.to_line() + "\n" + second.to_line()[:40])
    assert read_records(path) == [RECORD]
    records, stream = open_for_append(path)
    with stream:
        append(stream, second)
    assert records == [RECORD]
    assert read_records(path) == [RECORD, second]


def test_a_last_line_without_its_newline_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(RECORD.to_line())
    records, stream = open_for_append(path)
    stream.close()
    assert records == []
    assert path.read_text() == ""


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(RECORD.to_line()[:40] + "\n" + RECORD.to_line() + "\n")
    with pytest.raises(ParseError, match=":1: "):
        read_records(path)


def test_summary_counts_and_contradictions() -> None:
    verdicts = ["unsat", "sat", "unknown", "timed-out", "error", "memory-out", "unsupported"]
    records = [replace(RECORD, vnnlib=v, verdict=v, seconds=float(i)) for i, v in enumerate(verdicts)]
    known = {records[0].key: "sat", records[1].key: "sat", records[2].key: "unsat", records[4].key: "unsat"}
    other = replace(RECORD, family="other")
    first, second = summarise([*records, other], known)
    assert (first.total, first.decided, first.sat, first.unsat, first.unknown, first.failed) == (7, 2, 1, 1, 2, 3)
    assert (first.median_seconds, first.max_seconds) == (3.0, 6.0)
    assert first.contradictions == (records[0],)
    assert second.family == "other"
    assert second.contradictions == ()
    table = to_markdown([first, second]).splitlines()
    assert table[2].startswith("| fam | 2 of 7 |")
    assert len({line.count("|") for line in table}) == 1


def test_the_summary_script(tmp_path: Path) -> None:
    """Later files win, and the table ends with what contradicts the known verdicts."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text(RECORD.to_line() + "\n" + replace(RECORD, vnnlib="q", verdict="unknown").to_line() + "\n")
    second.write_text(replace(RECORD, vnnlib="q", verdict="sat").to_line() + "\n")
    (tmp_path / "fam").mkdir()
    (tmp_path / "fam" / "expected.csv").write_text("onnx/a.onnx,q,60,unsat,tools,1.0\n")
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "summarise.py"
    command = [sys.executable, script, first, second, "--expected", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1, done.stderr
    assert "| fam | 2 of 2 | 1 | 1 | 0 | 0 |" in done.stdout
    assert "CONTRADICTION: fam onnx/a.onnx q: sat, known unsat" in done.stdout


def test_competition_csv_uses_its_words() -> None:
    words = {"timed-out": "timeout", "memory-out": "error", "unsupported": "unknown", "sat": "sat"}
    for verdict, word in words.items():
        line = to_competition_csv([replace(RECORD, verdict=verdict)])
        assert line == f"fam,onnx/a.onnx,vnnlib/p.vnnlib,0.0,{word},3.250\n"


def test_instances_and_known_verdicts_share_keys(shared_path: Path) -> None:
    family = shared_path / "vnncomp" / "test"
    instances = read_instances(family / "instances.csv")
    known = known_verdicts([family / "expected.csv"], True)
    assert [i.key for i in instances] == list(known)
    assert instances[0].key == ("test", "onnx/test_nano.onnx", "vnnlib/test_nano.vnnlib")
    assert Path(instances[0].network).is_file()


def test_several_networks_stay_one_argument(shared_path: Path) -> None:
    found = read_instances(shared_path / "vnncomp" / "vnnlib2_examples" / "isomorphic_acasxu_2026" / "instances.csv")
    assert found[0].network.startswith("[('f', 'onnx/nets/")


def test_shares_of_cores() -> None:
    jobs, threads = share_cores(0, 0)
    assert threads == 1
    assert jobs >= 1
    assert share_cores(3, 2) == (3, 2)
    assert share_cores(0, 10_000) == (1, 10_000)


def test_a_hung_process_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '61.25']); time.sleep(60)"
    record = run_code(monkeypatch, code, timeout=0.5)
    assert record.verdict == "timed-out"
    assert "still running" in record.error
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "61.25"]]


def test_too_much_memory_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import time; x = bytearray(800 * 2**20); time.sleep(60)"
    record = run_code(monkeypatch, code, limits=Limits(1.0, 0.5))
    assert record.verdict == "memory-out"
    assert "over the cap" in record.error
    assert record.peak_gib >= 0.5
    assert record.failed


@pytest.mark.parametrize(
    ("code", "verdict", "error"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "error", "-11"),
        ("raise RuntimeError('a bug')", "error", "a bug"),
        ("import sys; sys.exit('no words')", "error", "no words"),
        ("import sys; sys.stderr.write('curvverify: Foo'); sys.exit(3)", "unsupported", "Foo"),
        ("import sys; sys.stderr.write('bar'); sys.exit(4)", "unreadable", "bar"),
        ("print('unsat')", "error", "no readable result"),
        ('print(\'{"verdict": "unsat"}\')', "error", "no readable result"),
    ],
)
def test_endings_without_a_verdict(monkeypatch: pytest.MonkeyPatch, code: str, verdict: str, error: str) -> None:
    record = run_code(monkeypatch, code)
    assert record.verdict == verdict
    assert error in record.error


def test_a_verdict_and_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    result = '{"verdict": "unsat", "margin_lower": "inf", "stages": [{"name": "linear"}], "notes": ["n"]}'
    record = run_code(monkeypatch, f"print('{result}')")
    assert (record.verdict, record.margin_lower, record.notes) == ("unsat", float("inf"), ("n",))
    assert record.stages == ({"name": "linear"},)
    assert record.peak_gib > 0.0


def test_an_answer_after_the_limit_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    result = '{"verdict": "unsat", "margin_lower": 1, "stages": [], "notes": []}'
    record = run_code(monkeypatch, f"import time; time.sleep(0.4); print('{result}')", timeout=0.2)
    assert record.verdict == "timed-out"
    assert "after the limit" in record.notes[0]


def test_stop_ends_the_process_without_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "request", lambda instance, flags: ("time:sleep", [60]))
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    assert run_instance(instance(), [], LIMITS, stop) is None


def test_results_merge_once_each_and_contradictions_are_told(tmp_path: Path, call) -> None:
    open_, decided = replace(RECORD, vnnlib="q", verdict="unknown"), replace(RECORD, vnnlib="q", verdict="sat")
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    files[0].write_text(RECORD.to_line() + "\n" + open_.to_line() + "\n")
    files[1].write_text(decided.to_line() + "\n" + RECORD.to_line() + "\n")
    assert merged(map(read_records, files)) == ([RECORD, decided], [])
    out = tmp_path / "c.jsonl"
    assert call("batch", "--merge", *files, "--out", out).code == 0
    assert read_records(out) == [RECORD, decided]
    again = call("batch", "--merge", *files, "--out", out)
    assert again.code == 2
    assert "is there already" in again.err
    files[0].write_text(replace(RECORD, vnnlib="q").to_line() + "\n")
    ended = call("batch", "--merge", *files, "--out", tmp_path / "d.jsonl")
    assert ended.code == 1
    assert "CONTRADICTION: fam onnx/a.onnx q: unsat and sat" in ended.out
