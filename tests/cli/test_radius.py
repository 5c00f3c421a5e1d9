"""`curvverify radius`: the file it writes, how it goes on after a kill, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from curvverify.report.radii import COLUMNS, read_rows
from tests.cli.conftest import Call
from tests.graph.onnx_models import network

RANDOM = np.random.default_rng(11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with 4 inputs and 3 classes, and data in bytes (test) and floats (float)."""
    place = tmp_path_factory.mktemp("radius")
    constants = {
        "W": RANDOM.normal(size=(4, 8)).astype(np.float32),
        "b": RANDOM.normal(size=8).astype(np.float32),
        "V": RANDOM.normal(size=(8, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["X", "W", "b"], ["z"]),
        helper.make_node("Softplus", ["z"], ["a"]),
        helper.make_node("MatMul", ["a", "V"], ["Y"]),
    ]
    onnx.save(network(nodes, {"X": [1, 4]}, ["Y"], constants), place / "net.onnx")
    x = RANDOM.integers(0, 256, (20, 2, 2), dtype=np.uint8)
    z = (x.reshape(20, 4) / 255.0) @ constants["W"].astype(float) + constants["b"]
    y = (np.logaddexp(0.0, z) @ constants["V"]).argmax(1)
    y[3] = (y[3] + 1) % 3
    bad = x / 255.0
    bad[5, 0, 1] = np.nan
    np.savez(
        place / "d.npz", x_test=x, y_test=y, x_float=x / 255.0, y_float=y, x_bad=bad, y_bad=y, x_wide=x[:, :, :1],
        y_wide=y, x_label=x, y_label=y + 1,
    )  # fmt: skip
    return place


def arguments(folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("radius", folder / "net.onnx", "--data", folder / "d.npz", "--out", out, *more)


def test_table_file_json_and_picture(folder: Path, tmp_path: Path, call: Callable[..., Call]) -> None:
    out, picture = tmp_path / "r.csv", tmp_path / "r.png"
    ended = call(*arguments(folder, out, "--attack", "--json", "--plot", picture))
    assert ended.code == 0
    assert "[0, 1] only" in ended.err
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(COLUMNS)
    assert [int(r["index"]) for r in rows] == list(range(20))
    assert float(rows[3]["radius_certified"]) == 0.0
    assert all(float(r["radius_certified"]) <= float(r["radius_attacked"]) for r in rows)
    data = json.loads(ended.out)
    assert data["samples"] == 20
    assert data["clean"] == 0.95
    assert data["contradictions"] == 0
    assert picture.stat().st_size > 1000
    table = call(*arguments(folder, out, "--attack", "--resume"))
    assert table.code == 0
    assert "certified" in table.out


def test_decisions_at_given_radii(folder: Path, tmp_path: Path, call: Callable[..., Call]) -> None:
    ended = call(*arguments(folder, tmp_path / "e.csv", "--eps", "0.05,0.2", "--eps", "0.1", "--json"))
    at = json.loads(ended.out)["at"]
    assert [a["eps"] for a in at] == [0.05, 0.1, 0.2]
    assert all(a["certified"] <= a["attacked"] for a in at)
    assert all(a["undecided"] == round(20 * (a["attacked"] - a["certified"])) for a in at)


def test_resumes_where_it_was_cut_off(folder: Path, tmp_path: Path, call: Callable[..., Call]) -> None:
    out = tmp_path / "r.csv"
    assert call(*arguments(folder, out)).code == 0
    whole = read_rows(out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:9]) + lines[9][:20])  # killed while writing a line
    refused = call(*arguments(folder, out))
    assert refused.code == 2
    assert "--resume" in refused.err
    assert call(*arguments(folder, out, "--resume")).code == 0
    again = read_rows(out)
    assert [r.index for r in again] == list(range(20))
    assert out.read_text().splitlines()[:9] == [line.rstrip("\n") for line in lines[:9]]
    for a, b in zip(whole, again, strict=True):
        assert a.sample.radius_certified == pytest.approx(b.sample.radius_certified, rel=1e-3)
    other = call(*arguments(folder, out, "--resume", "--eps", "0.1"))
    assert other.code == 2
    assert "other settings" in other.err


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_survives_a_kill(folder: Path, tmp_path: Path, call: Callable[..., Call]) -> None:
    out = tmp_path / "r.csv"
    command = [sys.executable, "-m", "curvverify", *map(str, arguments(folder, out, "--batch", "1"))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60.0
    while time.monotonic() < until and (not out.exists() or out.read_bytes().count(b"\n") < 4):
        time.sleep(0.02)
        if process.poll() is not None:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert call(*arguments(folder, out, "--batch", "1", "--resume")).code == 0
    assert [r.index for r in read_rows(out)] == list(range(20))


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--split", "train"), 4, "no x_train and y_train"),
        (("--split", "bad"), 2, "sample 5 has entries that are NaN"),
        (("--split", "wide"), 2, "the network takes 4 numbers"),
        (("--split", "label"), 2, "classes 0 to 2"),
        (("--eps", "-1"), 2, "positive"),
        (("--eps", "a"), 2, "positive"),
        (("--domain", "0"), 2, "LOW,HIGH"),
        (("--domain", "1,0"), 2, "empty"),
        (("--domain", "0,0.5"), 2, "leaves the domain"),
    ],
)
def test_refuses_before_any_work(
    folder: Path, tmp_path: Path, call: Callable[..., Call], more: tuple[str, ...], code: int, message: str
) -> None:
    out = tmp_path / "r.csv"
    ended = call(*arguments(folder, out, *more))
    assert (ended.code, message in ended.err) == (code, True), ended.err
    assert not out.exists()


def test_refuses_what_is_no_data(folder: Path, tmp_path: Path, call: Callable[..., Call]) -> None:
    (tmp_path / "no.npz").write_text("nothing")
    ended = call("radius", folder / "net.onnx", "--data", tmp_path / "no.npz", "--out", tmp_path / "r.csv")
    assert ended.code == 4
    missing = call("radius", folder / "net.onnx", "--data", tmp_path / "missing.npz", "--out", tmp_path / "r.csv")
    assert missing.code == 4


def test_floats_are_not_bounded_unless_asked(folder: Path, tmp_path: Path, call: Callable[..., Call]) -> None:
    ended = call(*arguments(folder, tmp_path / "f.csv", "--split", "float", "--limit", "4", "--norm", "linf"))
    assert ended.code == 0
    assert "without bounds" in ended.err
    assert len(read_rows(tmp_path / "f.csv")) == 4
