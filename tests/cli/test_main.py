"""The command as a whole: start-up, names, capabilities, errors."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import curvverify
from curvverify.cli.main import report_bug
from curvverify.cli.start import process_start

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "matplotlib", "onnx2torch", "vnnlib")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_start_up_imports_nothing_heavy() -> None:
    done = python(f"import sys, curvverify.cli.main; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_python_package_costs_nothing_to_import() -> None:
    done = python(f"import sys, curvverify; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert done.stdout.split() == []


def test_python_interface_stays_callable() -> None:
    """`curvverify.verify` is the function, however often it is read and whatever was imported before."""
    code = (
        "import curvverify, curvverify.bounding.linear; print(callable(curvverify.verify), callable(curvverify.bounds))"
    )
    done = python(f"{code}; {code}")
    assert done.stdout.split() == ["True"] * 4, done.stderr


def test_name_and_version(call) -> None:
    assert call("--name").out == "curvverify\n"
    assert call("--version").out == f"{curvverify.__version__}\n"


def test_process_start_counts_the_imports() -> None:
    begun = time.monotonic()
    code = "import time; time.sleep(0.3); from curvverify.cli.start import process_start"
    done = python(f"{code}; print(time.monotonic() - process_start())")
    assert 0.3 < float(done.stdout) <= time.monotonic() - begun + 0.05
    assert process_start() < begun


def test_supports(call) -> None:
    assert call("supports", "--vnnlib-versions").lines == ["1.0", "2.0"]
    assert call("supports", "--onnx-element-types").lines == ["real"]
    assert call("supports", "--serialise-assignments", "--unsat-proofs").lines == ["true", "false"]
    low, high = call("supports", "--onnx-opset-versions").lines
    assert 1 <= int(low) < int(high)
    operators = call("supports", "--onnx-operators").lines
    assert {"Conv", "Gemm", "Relu", "Tanh", "Softplus", "Add"} <= set(operators)


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify",),
        ("verify", "q.vnnlib", "--timeout", "soon"),
        ("verify", "q.vnnlib", "--no-such-flag"),
        ("verify", "q.vnnlib", "--network", "m.onnx", "--shape", "X"),
        ("supports",),
        ("no-such-command",),
    ],
)
def test_usage_errors(call, arguments: tuple[str, ...]) -> None:
    done = call(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err


def test_a_bug_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["curvverify"])
    report_bug(RuntimeError, RuntimeError("first\nsecond"), None)
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "RuntimeError: first" in text
    assert "report" in text


@pytest.mark.parametrize("flags", [[], ["-v"]])
def test_a_bug_ends_with_1_and_shows_its_trace_only_on_request(flags: list[str]) -> None:
    done = python(
        "import sys; from curvverify.cli import main as entry\n"
        "def boom(): raise RuntimeError('a bug')\n"
        f"entry.process_start = boom; sys.argv = ['curvverify', 'verify', *{flags}]; entry.main()"
    )
    assert done.returncode == 1
    assert "a bug" in done.stderr
    assert ("Traceback" in done.stderr) == bool(flags)
