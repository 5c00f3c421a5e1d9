"""The progress line of a terminal, and Ctrl-C."""

from __future__ import annotations

import io
import math
import signal
import sys

import pytest

from curvverify import Deadline, Progress
from curvverify.cli import live
from curvverify.cli.live import interrupt_cancels, line_text, progress_line

EVENT = Progress("coupled 1", 2.0, 57.0, -0.01234567, 3, 1, 0, 1.0)


@pytest.mark.parametrize(
    ("event", "left", "parts"),
    [
        (EVENT, 57.2, ["coupled 1", "proved margin -0.01235", "3 open disjuncts", "57 s left"]),
        (Progress("linear", 0.1, 1.0, -math.inf, 1, 1, 0, 1.0), -1.0, ["none yet", "1 open disjunct ", "0 s left"]),
        (Progress("branch", 0.1, 1.0, -1.0, 1, 12, 240, 0.03125), math.inf, ["12 open", "3.12% left", "240 bounded"]),
    ],
)
def test_the_line_says_what_is_known(event: Progress, left: float, parts: list[str]) -> None:
    text = line_text(event, left) + " "
    assert all(part in text for part in parts)
    assert ("s left" in text) is math.isfinite(left)


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
