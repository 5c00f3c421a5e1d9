"""One instance in one killable process: time limit, memory cap, and what the process left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from curvverify.cli.warm import TEMPLATE, Child
from curvverify.report.batch import Key, Record, RunKey

POLL = 0.1
"""Seconds between looks at a running process; its end is noticed at once."""

GIB = 2.0**30
WITHOUT_VERDICT = {2: "error", 3: "unsupported", 4: "unreadable"}
"""What an exit code other than 0 means; 1 and signals are `error`."""


@dataclass(frozen=True)
class Instance:
    """One line of an instances.csv, with its files found."""

    family: str
    onnx: str
    vnnlib: str
    timeout: float
    folder: Path
    method: str = ""
    """What `--method` gets; nothing where empty."""

    @property
    def key(self) -> Key:
        return self.family, self.onnx, self.vnnlib

    @property
    def run_key(self) -> RunKey:
        return (*self.key, self.method)

    @property
    def network(self) -> str:
        """What `--network` gets: the file beside the table; the competition's list of several stays as it is."""
        return self.onnx if self.onnx.lstrip().startswith("[") else str(self.folder / self.onnx)


@dataclass(frozen=True)
class Limits:
    """When a process is killed."""

    grace: float
    """Seconds beyond the time limit."""
    memory_gib: float


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: a signal), time, memory, and why it was killed, if it was."""

    code: int
    seconds: float
    peak_gib: float
    killed: str


def run_instance(
    instance: Instance, flags: list[str], limits: Limits, stop: threading.Event | None = None
) -> Record | None:
    """Run `curvverify verify` on the instance in a process of its own; None where `stop` was set before it ended.

    Any executor on any machine may call this: the process is a child of the calling process's template.
    """
    threads = flags[flags.index("--threads") + 1] if "--threads" in flags else None
    with tempfile.TemporaryDirectory(prefix="curvverify-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        environment = {"OMP_NUM_THREADS": threads} if threads else {}
        child = TEMPLATE.start(*request(instance, flags), out, err, environment)
        begun = time.monotonic()
        ended = watch(child, begun, instance.timeout, limits, stop)
        return None if ended is None else _record(instance, ended, _text(out), _text(err))


def request(instance: Instance, flags: list[str]) -> tuple[str, list[str]]:
    """What the process calls: `curvverify verify` on the instance."""
    arguments = ["verify", str(instance.folder / instance.vnnlib), "--network", instance.network]
    arguments += ["--timeout", str(instance.timeout), "--json", "-", "-v", *flags]
    arguments += ["--method", instance.method] if instance.method else []
    return "curvverify.cli.template:command", arguments


def watch(child: Child, begun: float, timeout: float, limits: Limits, stop: threading.Event | None) -> Ended | None:
    """Wait for the end of the process, bring it about where a limit is passed; None where `stop` was set."""
    peak, killed = 0.0, ""
    while not child.wait(POLL):
        elapsed = time.monotonic() - begun
        peak = max(peak, tree_memory(child.pid) / GIB)
        if stop is not None and stop.is_set():
            kill(child)
            return None
        if elapsed > timeout + limits.grace:
            killed = f"time: still running {limits.grace:g} s after its limit of {timeout:g} s"
        elif peak > limits.memory_gib:
            killed = f"memory: {peak:.2f} GiB, over the cap of {limits.memory_gib:g} GiB"
        if killed:
            kill(child)
            break
    assert child.code is not None
    return Ended(child.code, time.monotonic() - begun, max(peak, child.peak / GIB), killed)


def kill(child: Child) -> None:
    """End the process with everything it started, and wait for it."""
    while not child.wait(0.0):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # its own group, which it makes first of all
        child.wait(POLL)


def tree_memory(pid: int) -> float:
    """Resident bytes of a process and everything it started."""
    total = 0.0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:
        pass
    return total


def _record(instance: Instance, ended: Ended, out: str, err: str) -> Record:
    """What the process's end, stdout and stderr add up to."""
    seconds, peak = round(ended.seconds, 3), round(ended.peak_gib, 3)
    record = Record(*instance.key, instance.timeout, "error", seconds, peak, method=instance.method)
    if ended.killed:
        verdict = "memory-out" if ended.killed.startswith("memory") else "timed-out"
        return replace(record, verdict=verdict, error=ended.killed)
    if ended.code != 0:
        error = _last_lines(err) or f"ended with code {ended.code}"
        return replace(record, verdict=WITHOUT_VERDICT.get(ended.code, "error"), error=error)
    try:
        record = _with_result(record, json.loads(out))
    except (ValueError, KeyError, TypeError) as error:
        return replace(record, error=f"no readable result: {error}")
    if record.decided and ended.seconds > instance.timeout:
        note = f"answered {record.verdict}, but after the limit"
        return replace(record, verdict="timed-out", notes=(*record.notes, note))
    return record


def _with_result(record: Record, data: dict[str, Any]) -> Record:
    """The record with the verdict and further fields out of the result that the process printed."""
    return replace(
        record,
        verdict=data["verdict"],
        margin_lower=float(data["margin_lower"]),
        stages=tuple(data["stages"]),
        notes=tuple(data["notes"]),
    )


def _last_lines(text: str, count: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-count:])


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.exists() else ""
