"""Calls of the command, inside this process where the time of a start-up would buy nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from curvverify.cli import main as entry

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Call:
    """How one call ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Call]]:
    """`call("verify", ...)`: the command's own entry point, in this process; time limits count from the call."""

    def run(*arguments: object) -> Call:
        monkeypatch.setattr(sys, "argv", ["curvverify", *map(str, arguments)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        monkeypatch.setattr(entry, "process_start", time.monotonic)
        code = entry.run()
        captured = capsys.readouterr()
        return Call(code, captured.out, captured.err)

    yield run
    logging.getLogger("curvverify").handlers.clear()


@pytest.fixture
def process() -> Callable[..., Call]:
    """`process("verify", ...)`: the same as a process of its own."""

    def run(*arguments: object, cwd: Path | None = None, timeout: float = 120.0) -> Call:
        command = [sys.executable, "-m", "curvverify", *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, check=False)
        return Call(ended.returncode, ended.stdout, ended.stderr)

    return run
