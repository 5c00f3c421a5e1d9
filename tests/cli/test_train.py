"""`curvverify train`: what it writes, how it goes on after a kill, what it refuses; the network it made, certified."""

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
from onnx import numpy_helper

from tests.cli.conftest import Call


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright stripes in one of three places on 6 x 6 bytes."""
    random = np.random.default_rng(3)
    y = random.integers(0, 3, 300)
    x = random.integers(0, 60, (300, 6, 6))
    for k in range(300):
        x[k, :, 2 * y[k] : 2 * y[k] + 2] += 160
    path = tmp_path_factory.mktemp("train") / "d.npz"
    bad = x / 255.0
    bad[7] = np.nan
    np.savez(path, x_train=x[:240].astype(np.uint8), y_train=y[:240], x_test=x[240:].astype(np.uint8), y_test=y[240:])
    np.savez(path.with_name("nan.npz"), x_train=bad, y_train=y)
    np.savez(path.with_name("labels.npz"), x_train=x.astype(np.uint8), y_train=y + 0.5)
    np.savez(path.with_name("points.npz"), x_train=x.reshape(300, 36) / 255.0, y_train=y)
    return path


def arguments(data: Path, out: Path, *more: object) -> tuple[object, ...]:
    sizes = ("--epochs", 6, "--batch", 40, "--validation", 40, "--warm-up", 5, "--rate", 0.02)
    return ("train", "--data", data, "--arch", "mlp-2x12", "--out", out, "--eps", 0.6, *sizes, *more)


def test_killed_and_resumed(data: Path, tmp_path: Path, call: Callable[..., Call]) -> None:
    """SIGKILL once the first checkpoint is there; the resumed run ends bit for bit where one without a kill does."""
    whole, out = tmp_path / "whole.onnx", tmp_path / "net.onnx"
    more = ("--deterministic", "--epochs", 12, "--learn-beta", "--select", "certified")
    command = [sys.executable, "-m", "curvverify", *map(str, arguments(data, out, *more))]
    checkpoint = out.with_name("net.onnx.checkpoint")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as running:
        limit = time.monotonic() + 100.0
        while not checkpoint.exists() and time.monotonic() < limit:
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
    assert checkpoint.exists()
    assert not out.exists()
    refused = call(*arguments(data, out, *more))
    assert refused.code == 2
    assert "--resume" in refused.err
    other = call(*arguments(data, out, *more, "--resume", "--seed", 5))
    assert other.code == 2
    assert "seed: 0 there, 5 here" in other.err
    ended = call(*arguments(data, out, *more, "--resume", "--json"))
    assert ended.code == 0
    assert not checkpoint.exists()
    assert call(*arguments(data, whole, *more)).code == 0
    assert _weights(out) == _weights(whole)
    _check_what_is_written(out, json.loads(ended.out))
    _check_evaluation(out, data, call)


def _check_evaluation(out: Path, data: Path, call: Callable[..., Call]) -> None:
    """`evaluate` says what `radius --attack` does, and orders its shares."""
    radii = call("radius", out, "--data", data, "--out", out.with_name("r.csv"), "--eps", 0.6, "--attack", "--json")
    (level,) = json.loads(radii.out)["at"]
    found = json.loads(call("evaluate", out, "--data", data, "--eps", "0.6", "--linf", 0.1, "--json").out)
    assert found["at"] == [{k: level[k] for k in ("eps", "certified", "attacked")}]
    assert 0.5 < level["certified"] <= level["attacked"] <= found["clean"]
    assert level["attacked"] <= found["attacked_linf"] <= found["clean"]  # 0.1 * 6 = 0.6: the cube lies in the ball
    assert 0.0 < found["gradient_norm_estimate"] <= 2.0 * found["lipschitz_upper"]
    assert 0.0 < found["hessian_norm_estimate"] <= 2.0 * found["curvature_upper"]
    table = call("evaluate", out, out, "--data", data, "--eps", "0.6").out
    assert table.count(f"{100 * level['certified']:.2f} %") >= 2


def _check_what_is_written(out: Path, summary: dict[str, object]) -> None:
    with out.with_suffix(".csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    best = max(rows, key=lambda row: float(row["certified_estimate"]))
    assert summary["epoch"] == int(best["epoch"])
    assert summary["certified_estimate"] == float(best["certified_estimate"]) > 0.5
    assert 0.0 < summary["curvature_upper"] < float("inf")  # type: ignore[operator]
    assert out.with_suffix(".png").stat().st_size > 5000


def _weights(path: Path) -> list[bytes]:
    return [numpy_helper.to_array(w).tobytes() for w in onnx.load(path).graph.initializer]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (("--arch", "vgg"), 2, "unknown architecture 'vgg': choose mlp-LxN"),
        (("--arch", "mlp-1x5"), 2, "at least 2 layers"),
        (("--method", "magic"), 2, "unknown method 'magic': choose standard"),
        (("--epochs", 0), 2, "--epochs must be greater than 0"),
        (("--rate", "nan"), 2, "--rate must be greater than 0"),
        (("--beta", 0), 2, "--beta must be greater than 0.001"),
        (("--validation", 300), 2, "--validation 300: between 1 and 239"),
        (("--device", "tpu"), 2, "choose cpu, cuda or cuda:N"),
        (("--select", "luck"), 2, "'luck' is not one of"),
        (("--data", "nothing.npz"), 4, "nothing.npz: no such file"),
        (("--data", "nan.npz"), 4, "NaN or infinite"),
        (("--data", "labels.npz"), 4, "whole numbers"),
        (("--data", "points.npz", "--arch", "convnet"), 2, "convnet takes images"),
        (("--data", "points.npz", "--shift", 1), 2, "--shift moves images"),
        (("--out", "net.pt"), 2, "ends in .onnx"),
        (("--out", "nowhere/net.onnx"), 2, "no folder"),
    ],
)
def test_refusals(
    change: tuple[object, ...], code: int, message: str, data: Path, tmp_path: Path, call: Callable[..., Call]
) -> None:
    """One line on stderr, and nothing written."""
    changed = [data.parent / c if str(c).endswith(".npz") else tmp_path / c if ".onnx" in str(c) else c for c in change]
    ended = call(*arguments(data, tmp_path / "net.onnx", *changed))
    assert ended.code == code
    assert message in " ".join(ended.err.split())
    assert list(tmp_path.iterdir()) == []
