"""The competition's scripts: another tool's are run and ended, those of a portfolio are written."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from curvverify.errors import UnreadableError, UsageError

SCRIPTS = ("install_tool.sh", "prepare_instance.sh", "run_instance.sh")


@dataclass(frozen=True)
class Ran:
    """How a call of another tool's run_instance.sh ended."""

    text: str
    """Its result file; empty where there is none, or it does not count."""
    seconds: float
    problem: str
    """Why the result does not count: a crash, or no answer in time; empty where it does."""


def checked_script(path: Path) -> Path:
    """The script's absolute path; UnreadableError or UsageError where it cannot be run."""
    if not path.is_file():
        raise UnreadableError(f"{path}: no such script")
    if not os.access(path, os.X_OK):
        raise UsageError(f"{path} is not executable: chmod +x {path}")
    return path.absolute()


def run_script(script: Path, category: str, network: str, vnnlib: str, timeout: float) -> Ran:
    """Run run_instance.sh as the competition does; at the time limit, and at its end, everything it started is killed.

    Its result file counts only where it ended in time and with exit code 0.
    """
    with tempfile.TemporaryDirectory(prefix="curvverify-") as folder, tempfile.TemporaryFile() as said:
        result = Path(folder) / "result.txt"
        command = [str(script), "v1", category, network, vnnlib, str(result), f"{timeout:.3f}"]
        begun = time.monotonic()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        except OSError as error:
            return Ran("", time.monotonic() - begun, f"cannot be run: {error.strerror or error}")
        late = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            seconds = time.monotonic() - begun
            end_session(process.pid)
            code = process.wait()
        if late:
            return Ran("", seconds, f"late: still running after its {timeout:.1f} s, and killed")
        if code != 0:
            said.seek(0)
            words = said.read().decode(errors="replace").strip().splitlines()[-1:]
            return Ran("", seconds, f"crash: ended with code {code}" + "".join(f": {line[:200]}" for line in words))
        text = result.read_text(encoding="utf-8", errors="replace") if result.is_file() else ""
        return Ran(text, seconds, "" if text.strip() else "malformed: it left no result file")


def end_session(leader: int) -> None:
    """Kill every process of a session and all their descendants, whichever process groups they have made."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGSTOP)  # nothing of it starts anything while the others are found
    while left := {p.pid: p for p in _session(leader)}:
        for process in left.values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left.values(), timeout=0.2)


def _session(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                yield from process.children(recursive=True)
                yield process


def write_scripts(folder: Path, tool: Path, budget: float) -> list[Path]:
    """The competition's three scripts for curvverify in front of the tool whose run_instance.sh is given."""
    ours = f"{shlex.quote(sys.executable)} -m curvverify"
    theirs, beside = shlex.quote(str(tool)), shlex.quote(str(tool.parent))
    texts = dict(zip(SCRIPTS, (_INSTALL, _PREPARE, _RUN), strict=True))
    written = []
    for name, text in texts.items():
        path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text.format(ours=ours, theirs=theirs, beside=beside, budget=f"{budget:g}"))
            path.chmod(0o755)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written


_INSTALL = """\
#!/usr/bin/env bash
# VNN-COMP: install_tool.sh v1, of curvverify in front of {theirs}.
set -u
[ "${{1:-}}" = v1 ] || {{ echo "install_tool.sh: expected version v1, got '${{1:-}}'" >&2; exit 1; }}
{ours} --version || exit 1
if [ -x {beside}/install_tool.sh ]; then {beside}/install_tool.sh "$@"; fi
"""

_PREPARE = """\
#!/usr/bin/env bash
# VNN-COMP: prepare_instance.sh v1 CATEGORY ONNX VNNLIB, of curvverify in front of {theirs}.
set -u
[ "${{1:-}}" = v1 ] || {{ echo "prepare_instance.sh: expected version v1, got '${{1:-}}'" >&2; exit 1; }}
{ours} --version >/dev/null || exit 1
if [ -x {beside}/prepare_instance.sh ]; then {beside}/prepare_instance.sh "$@"; fi
"""

_RUN = """\
#!/usr/bin/env bash
# VNN-COMP: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULT_FILE TIMEOUT: curvverify for {budget} s, then {theirs}.
set -u
[ "${{1:-}}" = v1 ] || {{ echo "run_instance.sh: expected version v1, got '${{1:-}}'" >&2; exit 1; }}
[ $# -ge 6 ] || {{ echo "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULT_FILE TIMEOUT" >&2; exit 1; }}
result=$5
rm -f "$result"
{ours} portfolio --budget {budget} -- {theirs} "$@" </dev/null >/dev/null
[ -s "$result" ] || echo error >"$result"
exit 0
"""
