"""Processes that start within milliseconds: children of a template that has everything imported."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

START = 120.0
"""Seconds within which a template must have its imports done."""

END = 3.0
"""Seconds within which a template ends once told."""


class Template:
    """The template of this process, started with the first child, and started again should it have died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = ""

    def start(
        self, call: str, arguments: Sequence[str], stdout: Path, stderr: Path, environment: Mapping[str, str]
    ) -> Child:
        """A child that runs `module:function` on the arguments; RuntimeError where no template can be started.

        The environment is the template's, hence that of the first call.
        """
        request = {"call": call, "arguments": list(arguments), "cwd": os.getcwd()}
        request |= {"stdout": str(stdout.resolve()), "stderr": str(stderr.resolve())}
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._launch(environment)
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self._socket)
        connection.sendall(json.dumps(request).encode() + b"\n")
        return Child.behind(connection)

    def ready(self) -> None:
        """Return once the template has its imports done."""
        nowhere = Path(os.devnull)
        while not self.start("builtins:len", ["nothing"], nowhere, nowhere, {}).wait(START):
            pass

    def close(self) -> None:
        """End the template, and with it every child that still runs.  The end of this process does the same."""
        with self._lock:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()
                try:
                    self._process.wait(END)
                except subprocess.TimeoutExpired:  # it is still importing, and has no children yet
                    self._process.kill()
                    self._process.wait()
                with contextlib.suppress(OSError):
                    os.unlink(self._socket)
                    os.rmdir(os.path.dirname(self._socket))
            self._process = None

    def _launch(self, environment: Mapping[str, str]) -> None:
        if self._process is not None and self._process.stdin is not None:  # of a template that died
            self._process.stdin.close()
        folder = tempfile.mkdtemp(prefix="curvverify-")
        self._socket = os.path.join(folder, "socket")
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "curvverify.cli.template", self._socket],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
                env={**os.environ, **environment},
            )
            while not os.path.exists(self._socket):
                if self._process.poll() is not None:
                    said.seek(0)
                    text = said.read().decode(errors="replace").strip()
                    raise RuntimeError(f"the template of warm processes does not start: {text[-2000:]}")
                time.sleep(0.005)


@dataclass(eq=False)
class Child:
    """A running child: process number, and at its end the exit code (negative: a signal) and largest memory."""

    connection: socket.socket
    pid: int = 0
    code: int | None = None
    peak: float = 0.0
    """Largest resident bytes."""
    _buffer: bytes = b""

    @classmethod
    def behind(cls, connection: socket.socket) -> Child:
        """The child that a request was sent for; RuntimeError where the template ends before it is there."""
        child = cls(connection)
        line = child._line(START)
        if not line:
            raise RuntimeError("the template of warm processes ended before it started a child")
        child.pid = int(line)
        return child

    def wait(self, seconds: float) -> bool:
        """Whether the child has ended, after at most so many seconds; with its template gone, it was killed."""
        if self.code is None and (line := self._line(seconds)) is not None:
            code, peak = line.split() if line else (-9, 0)
            self.code, self.peak = int(code), float(peak)
            self.connection.close()
        return self.code is not None

    def _line(self, seconds: float) -> str | None:
        """The template's next line: None where there is none yet, empty where the template is gone."""
        while b"\n" not in self._buffer:
            if not select.select([self.connection], [], [], seconds)[0]:
                return None
            try:
                data = self.connection.recv(4096)
            except ConnectionResetError:
                data = b""
            if not data:
                return ""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


TEMPLATE = Template()
"""The one of this process."""

atexit.register(TEMPLATE.close)
