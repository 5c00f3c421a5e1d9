"""The command `curvverify`.  Start-up imports neither torch nor onnx: every command imports what it needs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.main import get_command

from curvverify.cli.batch import batch
from curvverify.cli.bounds import bounds
from curvverify.cli.compare import compare
from curvverify.cli.curvature import curvature
from curvverify.cli.demo import demo
from curvverify.cli.evaluate import evaluate
from curvverify.cli.portfolio import portfolio
from curvverify.cli.radius import radius
from curvverify.cli.start import process_start
from curvverify.cli.supports import supports
from curvverify.cli.train import train
from curvverify.cli.verify import verify
from curvverify.errors import CurvverifyError

NAME = "curvverify"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
ISSUES = "please report it with the command and the output of `-v`"

app = typer.Typer(
    name=NAME,
    help="Sound verification of neural networks: an ONNX model and a VNN-LIB property in, a verdict out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (verify, batch, compare, portfolio, bounds, curvature, radius, train, evaluate, demo, supports):
    app.command()(command)


def _printer(text: Callable[[], str]) -> Callable[[bool], None]:
    """The callback of a flag that prints one line and ends the program."""

    def callback(value: bool) -> None:
        if value:
            typer.echo(text())
            raise typer.Exit

    return callback


def _version() -> str:
    from importlib.metadata import version

    return version(NAME)


@app.callback()
def _global_options(
    _name: Annotated[
        bool, typer.Option("--name", help="Print the tool's name.", callback=_printer(lambda: NAME), is_eager=True)
    ] = False,
    _show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_printer(_version), is_eager=True)
    ] = False,
) -> None:
    pass


def _share_cores_politely() -> None:
    """Let idle OpenMP threads sleep, unless the user says otherwise.

    Spinning ones slow other processes on the same cores down a hundredfold; alone on a machine they are faster.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, which is later


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: giving it back and faulting it in anew took a third of the time of attention."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have no mallopt
        allocator = ctypes.CDLL(None).mallopt
        allocator(M_MMAP_THRESHOLD, 32 << 20)
        allocator(M_TRIM_THRESHOLD, 2**31 - 1)


def main() -> None:
    """Entry point of the program: run the command, then leave at once.

    Without an orderly end of the interpreter: unloading torch takes up to a second, which the answer's reader waits.
    """
    code = run()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run() -> int:
    """The exit code of the command: 0 after any verdict, otherwise that of the error's class; a bug is raised."""
    _share_cores_politely()
    _keep_freed_memory()
    sys.excepthook = report_bug
    try:
        _whole_command()(obj=process_start(), prog_name=NAME)  # not app(): it would replace the hook above
    except CurvverifyError as error:
        typer.echo(f"{NAME}: {error}", err=True)
        return error.exit_code
    except SystemExit as ended:  # how typer ends, after success too
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


@functools.cache
def _whole_command() -> Any:
    """The commands with their flags, built once: a process that forks others has done it for them."""
    return get_command(app)


def report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What an unexpected exception prints: one line, and with -v the traceback.  Python then exits with 1."""
    if verbose():
        traceback.print_exception(kind, error, trace)
    what = str(error).strip().splitlines()
    typer.echo(f"{NAME}: internal error: {kind.__name__}: {what[0] if what else ''}; {ISSUES}", err=True)


def verbose() -> bool:
    """Whether the user asked for details, known even where the failure came before the flags were read."""
    return bool({"-v", "--verbose"} & set(sys.argv)) or "CURVVERIFY_TRACEBACK" in os.environ
