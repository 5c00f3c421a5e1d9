"""`curvverify verify QUERY --network MODEL`: the command that the VNN-LIB 2.0 standard prescribes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvverify.cli.inputs import (
    Network,
    check_element_types,
    check_name,
    check_semantics,
    existing,
    one_network,
    parse_networks,
    parse_shapes,
)
from curvverify.cli.live import interrupt_cancels, open_text, progress_line
from curvverify.cli.options import resolve, to_toml, with_options
from curvverify.cli.output import setup_logging, write_file
from curvverify.errors import CurvverifyError, UsageError

if TYPE_CHECKING:
    from curvverify.spec.query import Query
    from curvverify.verification.options import Options
    from curvverify.verification.result import Result


@dataclass(frozen=True)
class Job:
    """One call of the command, its arguments read."""

    query: Path
    networks: tuple[Network, ...]
    shapes: dict[str, tuple[int, ...]]
    options: Options
    started: float
    """When the time limit began to run, on the monotonic clock."""
    real_semantics: bool
    bounds: Path | None = None
    method: str | None = None


@with_options()
def verify(
    context: typer.Context,
    query: Annotated[Path | None, typer.Argument(metavar="QUERY", help="VNN-LIB file, 1.0 or 2.0, .gz too.")] = None,
    network: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]MODEL.onnx", help="The network; NAME as the query declares it.")
    ] = None,
    serialise_assignments: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a witness as NAME.pb files instead of on stdout.")
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="The whole result as JSON; - prints it instead.")
    ] = None,
    result_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the competition's format.")
    ] = None,
    real_semantics: Annotated[
        bool,
        typer.Option(
            "--real-semantics",
            envvar="CURVVERIFY_REAL_SEMANTICS",
            help="Consent to an answer about the real numbers where the query declares a floating-point type.",
        ),
    ] = False,
    shape: Annotated[list[str] | None, typer.Option(metavar="X=1,3,32,32", help="Shape of a dynamic input.")] = None,
    bounds: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Bounds on values, .json or .npz, that a proof may rest on.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME|MODULE:NAME", help="Bounds by one method alone; the names are those of `compare`."),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Options, by name; flags win.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all options as TOML and stop.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log the stages on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress line on a terminal.")] = False,
    **overrides: Any,
) -> None:
    """Decide whether some input of the query's box has an unsafe output: sat, unsat, unknown or timed-out."""
    started = context.obj if context.obj is not None else time.monotonic()
    options = resolve(config, overrides)
    if print_config:
        typer.echo(to_toml(options), nl=False)
        return
    if query is None:
        raise UsageError("no query given: curvverify verify QUERY.vnnlib --network MODEL.onnx")
    setup_logging(verbose)

    def work() -> tuple[Query, Result]:
        networks, shapes = parse_networks(network or ()), parse_shapes(shape or ())
        job = Job(query, networks, shapes, options, started, real_semantics, bounds, method)
        return decide(job, live=not (quiet or verbose))

    parsed, result = _reported(work, result_file)
    _deliver(parsed, result, result_file, json_file, serialise_assignments)
    if not quiet and sys.stderr.isatty() and (text := open_text(result)):
        typer.echo(text, err=True)


def decide(job: Job, live: bool = False) -> tuple[Query, Result]:
    """Read the files and run the verifier until the deadline, which counts from `job.started`.

    `live`: with a progress line where stderr is a terminal.
    """
    model = one_network(job.networks)
    if job.method is not None and ":" in job.method:
        sys.path.insert(0, os.getcwd())
    from curvverify.spec import load_query

    query = load_query(job.query)
    check_name(model, query)
    check_semantics(query, job.real_semantics)
    path = existing(model.path)
    from curvverify.graph import load
    from curvverify.types import Deadline
    from curvverify.verification.driver import SAFETY
    from curvverify.verification.driver import verify as run

    loaded = load(path, shapes=job.shapes or None)
    check_element_types(query, loaded)
    given = None
    if job.bounds is not None:
        from curvverify.plugins.exchange import given_file

        given = given_file(job.bounds, loaded, query)
    deadline = Deadline.after(SAFETY * job.options.timeout, job.started)
    with interrupt_cancels(deadline), progress_line(deadline, live) as line:
        return query, run(loaded, query, job.options, deadline=deadline, progress=line, given=given, method=job.method)


def answer(query: Query, result: Result, assignments: bool) -> str:
    """What stdout gets: the verdict, and after `sat` the witness in the form of the query's version."""
    if result.witness is None or not assignments:
        return str(result.verdict)
    from curvverify.report.witness import witness_text

    return f"{result.verdict}\n{witness_text(query, result.witness)}"


def _reported(work: Callable[[], tuple[Query, Result]], result_file: Path | None) -> tuple[Query, Result]:
    """Do the work; where it fails, the competition's result file still says `unknown`, or `error` for a bug."""
    try:
        return work()
    except CurvverifyError:
        if result_file is not None:
            write_file(result_file, "unknown\n")
        raise
    except Exception:
        if result_file is not None:
            write_file(result_file, "error\n")
        raise


def _deliver(
    query: Query, result: Result, result_file: Path | None, json_file: str | None, assignments: Path | None
) -> None:
    """Write the files that were asked for, then the answer on stdout."""
    if result_file is not None:
        from curvverify.report.witness import result_file_text

        write_file(result_file, result_file_text(query, result))
    text = answer(query, result, assignments is None)
    if json_file is not None:
        from curvverify.report.serialise import to_json

        record = json.dumps(to_json(result))
        if json_file == "-":
            text = record
        else:
            write_file(Path(json_file), record + "\n")
    if assignments is not None and result.witness is not None:
        from curvverify.report.assignments import write_assignments

        write_assignments(query, result.witness, assignments)
    if result.provenance.given and result.verdict == "unsat":
        typer.echo(f"verified, given bounds from {result.provenance.given}", err=True)
    typer.echo(text)
