"""When this process started, on the monotonic clock: a time limit counts from there, imports included."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_start() -> float:
    """`time.monotonic()` as it stood when the operating system created this process; the present if it cannot tell.

    Linux keeps the creation in clock ticks since boot (field 22 of /proc/self/stat); elsewhere psutil knows it as
    wall-clock time.
    """
    now = time.monotonic()
    elapsed = _elapsed_linux()
    if elapsed is None:
        elapsed = _elapsed_portable()
    return now - max(elapsed, 0.0)


def _elapsed_linux() -> float | None:
    try:
        text = Path("/proc/self/stat").read_text()
        ticks = int(text.rpartition(")")[2].split()[19])  # fields after the command's name start at number 3
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _elapsed_portable() -> float:
    import psutil

    try:
        return time.time() - psutil.Process().create_time()
    except psutil.Error:
        return 0.0
