"""The competition's three scripts, called as the competition calls them: from elsewhere, with relative paths."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from curvverify.demo import FAILS, HOLDS, MODEL
from curvverify.report.witness import parse_witness
from curvverify.spec import load_query

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_PYTHON = f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A benchmark with spaces in its name, to be called from the folder above it."""
    place = tmp_path / "my benchmark"
    place.mkdir()
    for source in (MODEL, HOLDS, FAILS):
        shutil.copy(source, place)
    return place


def script(name: str, *arguments: object, cwd: Path, scripts: Path = REPOSITORY / "vnncomp") -> int:
    """The exit code of a script, called by its relative path, stdin empty, the note of its process in `cwd`."""
    command = [os.path.relpath(scripts / name, cwd), *map(str, arguments)]
    environment = os.environ | {"TMPDIR": str(cwd)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    return done.returncode


def run(onnx: str, vnnlib: str, cwd: Path, timeout: str = "60.0", scripts: Path = REPOSITORY / "vnncomp") -> str:
    """The result file of one instance."""
    assert script("run_instance.sh", "v1", "demo", onnx, vnnlib, "result.txt", timeout, cwd=cwd, scripts=scripts) == 0
    return (cwd / "result.txt").read_text()


@pytest.fixture
def installed() -> None:
    if not (REPOSITORY / ".venv/bin/curvverify").exists():
        pytest.skip("the scripts use the checkout's own .venv, and there is none")


@pytest.fixture
def pretended(tmp_path: Path):
    """Copies of the scripts beside a .venv whose `curvverify` is a given shell script."""

    def make(code: str) -> Path:
        shutil.copytree(REPOSITORY / "vnncomp", tmp_path / "vnncomp")
        binaries = tmp_path / ".venv" / "bin"
        binaries.mkdir(parents=True)
        for name, text in (("curvverify", f"#!/bin/sh\n{code}\n"), ("python", FAKE_PYTHON)):
            (binaries / name).write_text(text)
            (binaries / name).chmod(0o755)
        return tmp_path / "vnncomp"

    return make


@pytest.mark.usefixtures("installed")
def test_verified(folder: Path) -> None:
    assert run("my benchmark/moons.onnx", "my benchmark/holds.vnnlib", folder.parent) == "unsat\n"


@pytest.mark.usefixtures("installed")
def test_falsified_with_a_witness_that_replays(folder: Path) -> None:
    (folder / "moons.onnx.gz").write_bytes(gzip.compress((folder / "moons.onnx").read_bytes()))
    (folder / "moons.onnx").unlink()
    text = run("my benchmark/moons.onnx", "my benchmark/fails.vnnlib", folder.parent)
    assert text.splitlines()[:2] == ["sat", "X real [1,2]"]
    query = load_query(FAILS)
    x, y = parse_witness(text, query)
    replayed = onnxruntime.InferenceSession(MODEL).run(None, {"X": x.reshape(1, 2)})[0]
    assert np.array_equal(np.asarray(replayed).ravel(), y)
    assert query.satisfied_by(x, y) == (0, 0)


@pytest.mark.usefixtures("installed")
def test_several_networks_are_unknown(folder: Path) -> None:
    networks = "[('f', 'my benchmark/moons.onnx'), ('g', 'my benchmark/moons.onnx')]"
    assert run(networks, "my benchmark/holds.vnnlib", folder.parent) == "unknown\n"


@pytest.mark.usefixtures("installed")
def test_a_missing_file_is_unknown(folder: Path) -> None:
    assert run("my benchmark/moons.onnx", "no such.vnnlib", folder.parent) == "unknown\n"


@pytest.mark.parametrize(
    ("code", "word"),
    [("sleep 30", "timeout"), ("exit 1", "error"), ("kill -9 $$", "error"), ("echo half >/dev/stdout", "error")],
)
def test_a_tool_that_gives_no_answer(folder: Path, pretended, code: str, word: str) -> None:
    (folder.parent / "result.txt").write_text("unsat\n")
    begun = time.monotonic()
    assert run("my benchmark/moons.onnx", "x", folder.parent, "1.0", pretended(code)) == word + "\n"
    assert time.monotonic() - begun < 3.0


def test_arguments_arrive_whole(folder: Path, pretended) -> None:
    scripts = pretended('for a in "$@"; do echo "$a" >>seen; done; cp seen "$8"')
    lines = run("my benchmark/moons.onnx", "a b.vnnlib", folder.parent, "7.5", scripts).splitlines()
    assert lines[:6] == ["verify", "a b.vnnlib", "--network", "my benchmark/moons.onnx", "--timeout", "7.5"]
    assert lines[6:] == ["--result-file", "result.txt", "--real-semantics"]


def test_prepare_ends_what_was_left_running(folder: Path, pretended) -> None:
    cwd = folder.parent
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "curvverify"], start_new_session=True)
    (cwd / f"curvverify-vnncomp-{os.getuid()}").write_text(f"{left.pid}\n")
    names = ("my benchmark/moons.onnx", "my benchmark/holds.vnnlib")
    try:
        assert script("prepare_instance.sh", "v1", "demo", *names, cwd=cwd, scripts=pretended("")) == 0
        assert left.wait(5) == -9
    finally:
        left.kill()
        left.wait()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("install_tool.sh", ("v2",)),
        ("prepare_instance.sh", ("v2", "demo", "a", "b")),
        ("prepare_instance.sh", ("v1", "demo", "no such file", "b")),
        ("run_instance.sh", ("v2", "demo", "a", "b", "result.txt", "1")),
        ("run_instance.sh", ("v1", "demo")),
    ],
)
def test_wrong_calls_fail(tmp_path: Path, name: str, arguments: tuple[str, ...]) -> None:
    assert script(name, *arguments, cwd=tmp_path) != 0
    assert not (tmp_path / "result.txt").exists()
