"""`curvverify batch instances.csv --out results.jsonl`: every instance in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvverify.cli.options import as_flags, resolve, with_options
from curvverify.cli.output import stderr_console, stdout_console, write_file
from curvverify.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    from curvverify.cli.child import Instance
    from curvverify.report.batch import Key, Record

GRACE = 5.0
INTERRUPTED = 130


@with_options(without=("timeout", "threads"))
def batch(
    instances: Annotated[list[Path], typer.Argument(metavar="INSTANCES.csv...", help="Lines onnx,vnnlib,timeout.")],
    out: Annotated[Path, typer.Option(metavar="RESULTS.jsonl", help="One line per finished instance, appended.")],
    jobs: Annotated[int, typer.Option(min=0, help="Processes at once; 0 shares the cores out.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads per process; 0 shares the cores out.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where RESULTS.jsonl ends.")] = False,
    timeout: Annotated[float | None, typer.Option(metavar="CAP", help="Largest time limit per instance.")] = None,
    memory_cap: Annotated[float, typer.Option(metavar="GIB", help="Kill a process whose memory exceeds this.")] = 16.0,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the competition's table.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw decided instances over time.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--filter", metavar="GLOB", help="Only where family, onnx or vnnlib match.")
    ] = None,
    expected: Annotated[
        list[Path] | None,
        typer.Option(metavar="CSV", help="Known verdicts (default: expected.csv beside the instances)."),
    ] = None,
    executor: Annotated[
        str, typer.Option(metavar="WHERE", help="local, dask://HOST:PORT, dask://local?workers=N, slurm://PARTITION.")
    ] = "local",
    merge: Annotated[bool, typer.Option("--merge", help="The files are results: write them as one to --out.")] = False,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Options, by name; flags win.")] = None,
    **overrides: Any,
) -> None:
    """Run many instances, each in a killable process; the exit code is 1 where a verdict contradicts a known one."""
    if merge:
        _merge(instances, out)
        return
    options = resolve(config, overrides)
    chosen = chosen_instances(instances, only or (), timeout)
    jobs, threads = share_cores(jobs, threads)
    flags = [*as_flags(options, without=("timeout", "threads")), "--threads", str(threads), "--real-semantics"]
    from curvverify.cli.child import Limits
    from curvverify.cli.executors import opened, run_all
    from curvverify.report.batch import append, open_for_append

    if out.exists() and out.stat().st_size and not resume:
        raise UsageError(f"{out} holds results already: add --resume to go on, or name another file")
    done, stream = open_for_append(out)
    finished = {record.key for record in done}
    left = [instance for instance in chosen if instance.key not in finished]
    with stream, terminate_as_interrupt():
        try:
            with opened(executor, jobs, threads) as (pool, here):
                running = run_all(left, flags, Limits(GRACE, memory_cap), pool, here)
                with contextlib.closing(running):
                    for record in shown(running, len(chosen) - len(left), len(chosen)):
                        append(stream, record)
        except KeyboardInterrupt:
            stderr_console().print(f"interrupted: {out} is complete so far; the same command with --resume goes on")
            raise typer.Exit(INTERRUPTED) from None
    known = known_verdicts(expected or [path.with_name("expected.csv") for path in instances], bool(expected))
    _report(out, {i.key for i in chosen}, known, csv, plot)


def _merge(files: list[Path], out: Path) -> None:
    """One file of the results of several; exit code 1 where two of them contradict each other."""
    from curvverify.report.batch import merged, read_records

    if out.exists():
        raise UsageError(f"{out} is there already: name another file")
    for path in files:
        if not path.is_file():
            raise UnreadableError(f"{path}: no such file of results")
    records, contradictions = merged([read_records(path) for path in files])
    write_file(out, "".join(record.to_line() + "\n" for record in records))
    console = stdout_console()
    console.print(f"{out}: {len(records)} instances", markup=False, soft_wrap=True)
    for one, other in contradictions:
        text = f"CONTRADICTION: {' '.join(one.key)}: {one.verdict} and {other.verdict}"
        console.print(text, style="bold red", markup=False, soft_wrap=True)
    if contradictions:
        raise typer.Exit(1)


def share_cores(jobs: int, threads: int) -> tuple[int, int]:
    """Processes at once and threads each, 0 meaning a fair share: together they take the machine's cores."""
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))  # type: ignore[attr-defined]
    if jobs == 0:
        jobs = max(1, cores // max(threads, 1))
    return jobs, threads or max(1, cores // jobs)


def known_verdicts(files: list[Path], required: bool) -> dict[Key, str]:
    """The verdicts of the expected.csv files, by instance; those that do not exist are left out unless `required`."""
    from curvverify.spec.instances import load_expected

    return {
        (_family(path), *_names(path, line.onnx, line.vnnlib)): line.verdict
        for path in files
        if required or path.exists()
        for line in load_expected(path)
    }


def read_instances(path: Path) -> list[Instance]:
    """The lines of an instances.csv; the family is the name of its folder."""
    from curvverify.cli.child import Instance
    from curvverify.spec.instances import load_instances

    return [
        Instance(_family(path), *_names(path, line.onnx, line.vnnlib), line.timeout, path.parent)
        for line in load_instances(path)
    ]


def _family(path: Path) -> str:
    return path.resolve().parent.name


def _names(path: Path, onnx: Path, vnnlib: Path) -> tuple[str, str]:
    """Network and property as the table names them; the competition's list of several networks stays as it is."""
    several = str(onnx).startswith("[")
    return str(onnx) if several else os.path.relpath(onnx, path.parent), os.path.relpath(vnnlib, path.parent)


def chosen_instances(files: list[Path], only: Sequence[str], cap: float | None) -> list[Instance]:
    """The instances of all files that match, each once, with their time limits capped."""
    found: dict[Key, Instance] = {}
    for path in files:
        for instance in read_instances(path):
            if not only or any(fnmatchcase(name, glob) for glob in only for name in instance.key):
                limit = instance.timeout if cap is None else min(cap, instance.timeout)
                found.setdefault(instance.key, replace(instance, timeout=limit))
    if not found:
        raise UsageError("no instance matches " + ", ".join(only) if only else "the tables hold no instance")
    return list(found.values())


def shown(records: Iterator[Record], done: int, total: int) -> Iterator[Record]:
    """The same records, with a progress bar on a terminal and a line each elsewhere, both on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = stderr_console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, completed=done)
        for record in records:
            done += 1
            line = f"{record.verdict:<10} {record.seconds:7.1f} s  {record.family}  {record.onnx}  {record.vnnlib}"
            if console.is_terminal:
                progress.update(task, advance=1, description=line)
            else:
                console.print(f"[{done}/{total}] {line}", markup=False, soft_wrap=True)
            yield record


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """While inside, SIGTERM ends the batch as Ctrl-C does, so that no process is left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(out: Path, chosen: set[Key], known: dict[Key, str], csv: Path | None, plot: Path | None) -> None:
    """The summary of the chosen instances on stdout, the further files, and exit code 1 on a contradiction."""
    from curvverify.report.batch import read_records, summarise, to_competition_csv
    from curvverify.report.tables import summary_table

    records = [record for record in read_records(out) if record.key in chosen]
    summaries = summarise(records, known)
    console = stdout_console()
    console.print(summary_table(summaries))
    if csv is not None:
        write_file(csv, to_competition_csv(records))
    if plot is not None:
        from curvverify.plots.cactus import cactus

        cactus({out.stem: records}, plot)
    wrong = [record for summary in summaries for record in summary.contradictions]
    for record in wrong:
        text = f"CONTRADICTION: {' '.join(record.key)}: {record.verdict}, known to be {known[record.key]}"
        console.print(text, style="bold red", markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)
