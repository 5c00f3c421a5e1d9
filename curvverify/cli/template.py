"""A process with everything imported that forks one child per request: a child starts within milliseconds.

`python -m curvverify.cli.template SOCKET`, started by `curvverify.cli.warm`.  A request is one line of JSON over a
connection of its own; the answers are the child's process number, and at its end its exit code and largest resident
memory.  The end of stdin is the end of whoever started the template: its children are killed, and it ends too.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from importlib import import_module

PRELOADED = (
    "curvverify.cli.main",
    "curvverify.verification.driver",
    "curvverify.graph.onnx_import.module",
    "curvverify.graph.onnx_import.converters",
    "curvverify.report.serialise",
    "curvverify.report.witness",
    "onnx.shape_inference",
    "onnx.version_converter",
)
"""What `curvverify verify` imports, except ONNX Runtime: it starts a thread, and threads do not survive a fork."""


class Server:
    """Forks on request, and tells every requester how its child ended."""

    def __init__(self, listener: socket.socket):
        self.listener = listener
        self.running: dict[int, socket.socket] = {}
        """The requester by child."""
        self.woken, self.wake = socket.socketpair()
        for end in (self.woken, self.wake, listener):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake.fileno(), warn_on_full_buffer=False)
        self.ready = selectors.DefaultSelector()
        for source in (listener, self.woken, sys.stdin):
            self.ready.register(source, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until stdin ends, then kill what runs."""
        while True:
            for key, _ in self.ready.select():
                if key.fileobj is sys.stdin:
                    for pid in self.running:
                        _kill(pid)
                    return
                if key.fileobj is self.woken:
                    self.woken.recv(4096)
                    self.reap()
                else:
                    self.answer(self.listener.accept()[0])

    def answer(self, requester: socket.socket) -> None:
        """Fork the child that one request asks for."""
        requester.setblocking(True)
        with requester.makefile("r", encoding="utf-8") as lines:
            line = lines.readline()
        if not line:  # it has changed its mind
            requester.close()
            return
        pid = os.fork()
        if pid == 0:
            requester.close()
            self.become(json.loads(line))
        self.running[pid] = requester
        _tell(requester, f"{pid}\n")

    def reap(self) -> None:
        """Lay ended children to rest."""
        while self.running:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            requester = self.running.pop(pid)
            unit = 1 if sys.platform == "darwin" else 1024
            _tell(requester, f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss * unit}\n")
            requester.close()

    def become(self, request: dict[str, object]) -> None:
        """In the child: run the call with its own files and process group, and end with its exit code."""
        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self.listener, self.woken, self.wake, *self.running.values()):
                end.close()
            self.ready.close()
            for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
                os.dup2(os.open(str(path), flags, 0o600), number)
            os.chdir(str(request["cwd"]))
            module, _, function = str(request["call"]).partition(":")
            code = getattr(import_module(module), function)(*request["arguments"]) or 0  # type: ignore[misc]
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            if isinstance(ended.code, str):
                sys.stderr.write(ended.code)
        except BaseException as error:  # noqa: BLE001 - told as an exception that nobody caught
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def command(*arguments: str) -> int:
    """The command `curvverify ARGUMENTS...`; its exit code."""
    from curvverify.cli.main import run

    sys.argv = ["curvverify", *arguments]
    return run()


def warm_up() -> None:
    """Do what the first command of a process does before its own work: late imports, and reading the arguments."""
    from curvverify.graph.onnx_import.module import import_onnx2torch

    import_onnx2torch()
    if command("verify", "--print-config") != 0:
        raise RuntimeError("the command line cannot be read")


def _kill(pid: int) -> None:
    """End a child and everything in its process group; alone where it has no group of its own yet."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)


def _tell(requester: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):  # it is gone; its child is killed with it, or by its time limit
        requester.sendall(text.encode())


def main(path: str) -> None:
    """Listen on the socket, import, and serve; the socket's file goes at the end."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(256)
    os.rename(path + ".new", path)  # nobody finds it before somebody listens
    try:
        for name in PRELOADED:
            import_module(name)
        warm_up()
    except Exception:  # noqa: BLE001 - whatever it is, whoever waits must hear of it
        traceback.print_exc()
        os._exit(1)
    gc.freeze()  # what is imported is never garbage: the collector would copy its pages into every child
    Server(listener).run()
    with contextlib.suppress(OSError):
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
