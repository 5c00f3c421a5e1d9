"""`curvverify compare`: methods side by side, other tools joined, and what is drawn and written of them."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from curvverify.cli.child import Instance
from curvverify.cli.compare import sampled
from curvverify.demo import FAILS, HOLDS, MODEL
from curvverify.errors import ParseError, UnreadableError
from curvverify.report.batch import Key, Record, read_records
from curvverify.report.compare import margins_csv, merged, methods_markdown, short_names, to_json
from curvverify.report.joined import read_joined

KEYS: list[Key] = [
    ("fam", "onnx/a.onnx", "vnnlib/p_0.vnnlib"),
    ("fam", "onnx/a.onnx", "vnnlib/p_1.vnnlib.gz"),
    ("fam", "onnx/b.onnx", "vnnlib/p_1.vnnlib"),
]


def record(key: Key, method: str, verdict: str, margin: float | None = None) -> Record:
    return Record(*key, 60.0, verdict, 1.5, 0.25, margin, method=method)


def test_methods_side_by_side(call, tmp_path: Path) -> None:
    """On the demo's two queries: the margins grow from method to method, the files agree, a second call resumes."""
    pytest.importorskip("matplotlib")
    out, table, pictures = tmp_path / "r.jsonl", tmp_path / "m.csv", tmp_path / "pictures"
    other = tmp_path / "abcrown.csv"
    other.write_text("instance,verdict,seconds\nholds,holds,2.5\nfails.vnnlib,violated,1.25\nelsewhere,unknown,9\n")
    arguments = ("compare", HOLDS, FAILS, "--network", MODEL, "--methods", "interval,linear,branching", "--out", out)
    arguments += ("--join", other, "--csv", table, "--plot", pictures, "--markdown", tmp_path / "t.md", "--timeout", 40)
    done = call(*arguments)
    assert done.code == 0, done.err
    assert "1 of 3 lines are about other instances" in done.err
    records = read_records(out)
    assert [len({r.method for r in records}), len(records)] == [3, 6]
    rows = {(row["vnnlib"], row["method"]): row for row in csv.DictReader(table.read_text().splitlines())}
    margins = [float(rows[str(HOLDS), m]["margin_lower"]) for m in ("interval", "linear", "branching")]
    assert margins[0] < 0.0 < margins[1] <= margins[2]
    assert [rows[str(HOLDS), m]["verdict"] for m in ("interval", "linear", "abcrown")] == ["unknown", "unsat", "unsat"]
    assert {row["verdict"] for (q, _), row in rows.items() if q == str(FAILS)} == {"sat"}
    line = next(line for line in done.lines if "holds" in line)
    assert f"{margins[0]:+.4g}" in line
    assert "unsat" in line
    assert [p.read_bytes()[1:4] for p in sorted(pictures.iterdir())] == [b"PNG", b"PNG"]
    assert [text.split("|")[1].strip() for text in (tmp_path / "t.md").read_text().splitlines()[2:]] == [
        "interval", "linear", "branching", "abcrown",
    ]  # fmt: skip

    again = call(*arguments[:6], "interval,taylor", *arguments[7:9], "--resume", "--json", "-")
    assert again.code == 0, again.err
    assert "[3/4]" in again.err
    assert "[2/4]" not in again.err
    data = json.loads(again.out)
    assert [(s["method"], s["decided"], s["total"]) for s in data["summaries"]] == [
        ("interval", 1, 2),
        ("taylor", 2, 2),
    ]
    assert len(read_records(out)) == 8


def test_a_method_of_ones_own_by_module(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from curvverify.verification.bound_methods import IntervalBound\n\n\nclass Mine:\n    name = 'mine'\n\n"
        "    def lower(self, problem):\n        return IntervalBound().lower(problem) - 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = ("compare", HOLDS, "--network", MODEL, "--methods", "interval,mine:Mine", "--json", "m.json")
    done = call(*asked)
    assert done.code == 0, done.err
    first, second = json.loads((tmp_path / "m.json").read_text())["records"]
    assert second["margin_lower"] == pytest.approx(first["margin_lower"] - 1.0)
    assert "mine:Mine" in done.out


def test_a_sample_is_of_every_family() -> None:
    instances = [Instance(f, "a.onnx", f"{i}.vnnlib", 60.0, Path()) for f, n in (("a", 9), ("b", 2)) for i in range(n)]
    drawn = sampled(instances, 3, seed=1)
    assert [i.family for i in drawn] == ["a"] * 3 + ["b"] * 2
    assert drawn == sorted(drawn, key=instances.index)
    assert drawn == sampled(instances, 3, seed=1) != sampled(instances, 3, seed=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((HOLDS,), "needs a network: add --network"),
        ((HOLDS, "--network", MODEL, "--methods", "linear,lineal"), "unknown method 'lineal': choose from interval"),
        ((HOLDS, "--network", MODEL, "--methods", "linear,linear"), "different names with commas between"),
        ((HOLDS, "--network", MODEL, "--resume"), "add --out"),
        ((HOLDS, "--network", MODEL, "--methods", "nowhere:Mine"), "looked for as MODULE:NAME"),
    ],
)
def test_wrong_calls_say_what_is_missing(call, arguments: tuple[object, ...], words: str) -> None:
    done = call("compare", *arguments)
    assert done.code == 2
    assert words in done.err


def test_contradictions_end_with_1_and_name_the_method(call, tmp_path: Path) -> None:
    for path in (MODEL, HOLDS):
        shutil.copy(path, tmp_path)
    (tmp_path / "instances.csv").write_text(f"{MODEL.name},{HOLDS.name},60\n")
    arguments = ("compare", tmp_path / "instances.csv", "--methods", "interval,linear", "--out", tmp_path / "r.jsonl")
    (tmp_path / "tool.csv").write_text("holds,sat,1\n")
    done = call(*arguments, "--join", tmp_path / "tool.csv")
    assert done.code == 1
    assert f"CONFLICT: {tmp_path.name} {MODEL.name} {HOLDS.name}" in done.err
    header = "onnx,vnnlib,timeout,verdict,confidence,fastest_s\n"
    (tmp_path / "expected.csv").write_text(f"{header}{MODEL.name},{HOLDS.name},60,sat,hand,\n")
    done = call(*arguments, "--resume")
    assert done.code == 1
    wrong = [line for line in done.lines if "CONTRADICTION" in line]
    assert len(wrong) == 1
    assert f"linear {tmp_path.name} {MODEL.name} {HOLDS.name}: unsat, known to be sat" in wrong[0]


def test_every_form_of_other_results(tmp_path: Path) -> None:
    competition, plain, ours = tmp_path / "results.csv", tmp_path / "lirpa.csv", tmp_path / "old.jsonl"
    competition.write_text(
        "fam,./benchmarks/fam/onnx/a.onnx,./benchmarks/fam/vnnlib/p_1.vnnlib,0.4,holds,3.5\n"
        "fam,onnx/b.onnx.gz,vnnlib/p_1.vnnlib,0.4,run_instance_timeout,60\n"
        "fam,onnx/b.onnx,vnnlib/p_7.vnnlib,0.4,error_exit_code_1,60\n"
    )
    joined = read_joined(competition, KEYS)
    assert [(r.key, r.verdict, r.seconds, r.method) for r in joined.records] == [
        (KEYS[1], "unsat", 3.5, "results"),
        (KEYS[2], "timed-out", 60.0, "results"),
    ]
    assert joined.others == 1
    plain.write_text("a.onnx p_1,safe,1\np_0.vnnlib,violated,2\n")
    assert [(r.key, r.verdict) for r in read_joined(plain, KEYS).records] == [(KEYS[1], "unsat"), (KEYS[0], "sat")]
    ours.write_text(record(KEYS[0], "linear", "unsat").to_line() + "\n" + record(KEYS[2], "", "sat").to_line() + "\n")
    assert [(r.method, r.verdict) for r in read_joined(ours, KEYS).records] == [
        ("old: linear", "unsat"),
        ("old", "sat"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("p_1,unsat,1", "fits several instances .*name the network too"),
        ("p_0,perhaps,1", "'perhaps' is no verdict"),
        ("p_0,unsat,soon", "expected seconds, found 'soon'"),
        ("p_0,unsat", "found 2 columns"),
    ],
)
def test_malformed_results_name_their_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "tool.csv"
    path.write_text(f"p_0,unsat,1\n{line}\n")
    with pytest.raises(ParseError, match=rf"tool\.csv:2: .*{words}"):
        read_joined(path, KEYS)
    with pytest.raises(UnreadableError, match=r"nothing\.csv"):
        read_joined(tmp_path / "nothing.csv", KEYS)


def test_tables_of_records() -> None:
    records = [record(KEYS[0], "linear", "unknown", -0.5), record(KEYS[0], "taylor", "unsat", 0.25)]
    records += [record(KEYS[1], "linear", "unsat", 1.0), record(KEYS[1], "taylor", "sat")]
    comparison = merged(["taylor", "linear"], records, {KEYS[0]: "sat"})
    assert comparison.methods == ("taylor", "linear")
    assert comparison.conflicts == [KEYS[1]]
    assert [row[:3] for row in csv.reader(margins_csv(comparison).splitlines())][1] == list(KEYS[0])
    assert "| taylor | fam | 2 of 2 | 1 | 1 | 0 |" in methods_markdown(comparison)
    data = to_json(comparison)
    assert data["summaries"][0]["contradictions"] == [list(KEYS[0])]
    assert [r["margin_lower"] for r in data["records"]] == [-0.5, 0.25, 1.0, None]
    assert list(short_names(KEYS).values()) == ["a p_0", "a p_1", "b p_1"]
    assert list(short_names(KEYS[:2]).values()) == ["p_0", "p_1"]
    assert replace(records[0], method="x").run_key == (*KEYS[0], "x")
