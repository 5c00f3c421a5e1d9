"""What a person at a terminal sees while the verifier works: one line on stderr, and Ctrl-C as a way to stop early."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from curvverify.types import Deadline
    from curvverify.verification.result import Progress, Result

DELAY = 0.7
"""Seconds before the line appears: most answers come sooner, and shall not wait for it."""

ENDED_EARLY = ("cancelled", "stopped")
"""How the notes begin that say why a run ended before its deadline."""

REFRESH = 4.0
"""Times a second that the line is drawn."""


def line_text(p: Progress, seconds_left: float) -> str:
    """`branch  proved margin -0.0142  12 open subproblems, 3.1% left  240 bounded  41 s left`."""
    margin = "none yet" if p.margin_lower == -float("inf") else f"{p.margin_lower:.4g}"
    parts = [p.stage, f"proved margin {margin}"]
    if p.bounded or p.stage == "branch":
        share = "" if p.share_left >= 1.0 else f", {100 * p.share_left:.3g}% left"
        parts += [f"{_counted(p.open_subproblems, 'open subproblem')}{share}", f"{p.bounded} bounded"]
    else:
        parts.append(_counted(p.open_disjuncts, "open disjunct"))
    if seconds_left != float("inf"):
        parts.append(f"{max(seconds_left, 0.0):.0f} s left")
    return "   ".join(parts)


def open_text(result: Result) -> str:
    """What is proved although no verdict is, what is left, and why it ended; empty where there is a verdict."""
    if result.remaining is None:
        return ""
    left, margin = result.remaining, result.margin_lower
    best = f"best proved margin {margin:.4g}" if margin > -float("inf") else "no margin proved"
    what = "subproblem" if result.subproblems else "input box"
    still = sum(d.settled_by is None for d in result.disjuncts)
    text = f"{best} (a positive one verifies); open: {_counted(still, 'disjunct')}"
    text += f" on {left.count} {what}{('s' if what == 'subproblem' else 'es') * (left.count != 1)}"
    text += f", {100 * left.share:.3g}% of the input region; --json FILE lists them"
    return "\n".join([text, *(note for note in result.notes if note.startswith(ENDED_EARLY))])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


class ProgressLine:
    """A progress callback that draws the latest event, from a thread of its own."""

    def __init__(self, deadline: Deadline):
        self.deadline = deadline
        self.latest: Progress | None = None
        self._live: Live | None = None
        self._lock = threading.Lock()
        self._ended = False
        self._timer = threading.Timer(DELAY, self._begin)
        self._timer.daemon = True

    def __enter__(self) -> ProgressLine:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._live is not None:
                self._live.stop()

    def __call__(self, progress: Progress) -> None:
        self.latest = progress

    def _begin(self) -> None:
        from rich.live import Live

        from curvverify.cli.output import stderr_console

        with self._lock:
            if not self._ended:
                self._live = Live(
                    console=stderr_console(), get_renderable=self._line, transient=True, refresh_per_second=REFRESH
                )
                self._live.start()

    def _line(self) -> Text:
        from rich.text import Text

        text = "reading" if self.latest is None else line_text(self.latest, self.deadline.remaining)
        return Text(text, style="dim", no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def progress_line(deadline: Deadline, wanted: bool) -> Iterator[ProgressLine | None]:
    """The line, where it is wanted and stderr is a terminal; None otherwise."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    with ProgressLine(deadline) as line:
        yield line


@contextlib.contextmanager
def interrupt_cancels(deadline: Deadline) -> Iterator[None]:
    """While inside, the first Ctrl-C cancels the deadline, so that the best bounds are reported; the second one ends
    the program as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def cancel(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        deadline.cancel()

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
