"""The progress line of a terminal, and Ctrl-C."""

from __future__ import annotations

import io
import math
import signal
import sys
from dataclasses import replace

import pytest
import torch

from curvverify import Deadline, Options, Progress, verify
from curvverify.cli import live
from curvverify.cli.live import interrupt_cancels, line_text, open_text, progress_line
from curvverify.graph import load
from curvverify.spec import parse_query

EVENT = Progress("coupled 1", 2.0, 57.0, -0.01234567, 3, 1, 0, 1.0)


@pytest.mark.parametrize(
    ("event", "left", "parts"),
    [
        (EVENT, 57.2, ["coupled 1", "proved margin -0.01235", "3 open disjuncts", "57 s left"]),
        (Progress("linear", 0.1, 1.0, -math.inf, 1, 1, 0, 1.0), -1.0, ["none yet", "1 open disjunct ", "0 s left"]),
        (
            Progress("branch", 0.1, 1.0, -1.0, 1, 12, 240, 0.03125),
            math.inf,
            ["12 open subproblems, 3.12% left", "240 bounded"],
        ),
    ],
)
def test_the_line_says_what_is_known(event: Progress, left: float, parts: list[str]) -> None:
    text = line_text(event, left) + " "
    assert all(part in text for part in parts)
    assert ("s left" in text) is math.isfinite(left)


def test_what_is_proved_is_told_where_no_verdict_is() -> None:
    """On a terminal, under `unknown`: the best margin, what is left, and why it ended early."""
    torch.manual_seed(0)
    model = load(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)), (1, 3))
    asked = "\n".join(
        [*(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "X_2", "Y_0"))]
        + [f"(assert (and (>= X_{i} -1) (<= X_{i} 1)))" for i in range(3)]
    )
    least = float(model.graph(torch.rand(20000, 1, 3, dtype=torch.float64) * 2 - 1).min())
    hard = parse_query(f"{asked}\n(assert (<= Y_0 {least - 0.02:.6f}))")
    options = Options(timeout=20.0, threads=1, attack_rounds=0)
    root = verify(model, hard, replace(options, branch=False, refine_iterations=1))
    assert open_text(root).startswith(
        f"best proved margin {root.margin_lower:.4g} (a positive one verifies); open: 1 d"
    )
    assert "on 1 input box, 100% of the input region; --json FILE" in open_text(root)
    small = verify(model, hard, replace(options, memory=1e-8, refine_iterations=1, branch_inputs=0, box_inputs=0))
    assert small.verdict == "unknown"
    assert open_text(small).endswith("\nstopped: the open subproblems take 1e-08 GiB (option memory)")
    easy = parse_query(f"{asked}\n(assert (<= Y_0 {least - 10.0:.6f}))")
    assert open_text(verify(model, easy, options)) == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "DELAY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for stream, wanted, drawn in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_line(Deadline.after(30.0), wanted) as line:
            assert (line is not None) is drawn
            if line is not None:
                line(EVENT)
                line._timer.join()
        assert ("proved margin -0.01235" in stream.getvalue()) is drawn


def test_the_first_interrupt_cancels_and_the_second_one_interrupts() -> None:
    deadline = Deadline.after(30.0)
    before = signal.getsignal(signal.SIGINT)
    with interrupt_cancels(deadline):
        signal.raise_signal(signal.SIGINT)
        assert deadline.cancelled
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
