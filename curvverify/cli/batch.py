"""`curvverify batch instances.csv --out results.jsonl`: every instance in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvverify.cli.options import as_flags, resolve, with_options
from curvverify.cli.output import stderr_console, stdout_console, write_file
from curvverify.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    from curvverify.cli.child import Instance, Limits
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

    where = Where(executor, jobs, threads)
    records = run_resumably(chosen, flags, Limits(GRACE, memory_cap), where, out, resume)
    known = known_verdicts(expected or [path.with_name("expected.csv") for path in instances], bool(expected))
    _report(out.stem, records, known, csv, plot)


@dataclass(frozen=True)
class Where:
    """The executor by name, processes at once, and threads each."""

    executor: str
    jobs: int
    threads: int


def run_resumably(
    instances: list[Instance], flags: list[str], limits: Limits, where: Where, out: Path, resume: bool
) -> list[Record]:
    """Run the instances that `out` holds no record of, append theirs, and return the records of all of them.

    UsageError where `out` holds records and nobody asked to `resume`; an interrupt ends the program.
    """
    from curvverify.cli.executors import opened, run_all
    from curvverify.report.batch import append, open_for_append, read_records

    if out.exists() and out.stat().st_size and not resume:
        raise UsageError(f"{out} holds results already: add --resume to go on, or name another file")
    done, stream = open_for_append(out)
    finished = {record.run_key for record in done}
    left = [instance for instance in instances if instance.run_key not in finished]
    with stream, terminate_as_interrupt():
        try:
            with opened(where.executor, where.jobs, where.threads) as (pool, here):
                running = run_all(left, flags, limits, pool, here)
                with contextlib.closing(running):
                    for record in shown(running, len(instances) - len(left), len(instances)):
                        append(stream, record)
        except KeyboardInterrupt:
            stderr_console().print(f"interrupted: {out} is complete so far; the same command with --resume goes on")
            raise typer.Exit(INTERRUPTED) from None
    wanted = {instance.run_key for instance in instances}
    return [record for record in read_records(out) if record.run_key in wanted]


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
    from rich.table import Column

    console = stderr_console()
    last = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    fixed = (Column(no_wrap=True, min_width=width) for width in (12, 7, 7))
    columns = (
        BarColumn(12, table_column=next(fixed)),
        MofNCompleteColumn(table_column=next(fixed)),
        TimeElapsedColumn(table_column=next(fixed)),
        last,
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, completed=done)
        for record in records:
            done += 1
            names = (record.method, *record.key) if record.method else record.key
            line = f"{record.verdict:<10} {record.seconds:7.1f} s  " + "  ".join(names)
            if console.is_terminal:
                short = f"{record.verdict} {record.seconds:.1f} s {record.method} {Path(record.vnnlib).name}"
                progress.update(task, advance=1, description=short)
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


def _report(name: str, records: list[Record], known: dict[Key, str], csv: Path | None, plot: Path | None) -> None:
    """The summary of the chosen instances on stdout, the further files, and exit code 1 on a contradiction."""
    from curvverify.report.batch import summarise, to_competition_csv
    from curvverify.report.tables import summary_table

    summaries = summarise(records, known)
    console = stdout_console()
    console.print(summary_table(summaries))
    if csv is not None:
        write_file(csv, to_competition_csv(records))
    if plot is not None:
        from curvverify.plots.cactus import cactus

        cactus({name: records}, plot)
    end_with_contradictions([record for summary in summaries for record in summary.contradictions], known)


def end_with_contradictions(wrong: list[Record], known: Mapping[Key, str]) -> None:
    """Name the records that contradict known verdicts, and end with the exit code 1 where there are any."""
    for record in wrong:
        names = " ".join(filter(None, (record.method, *record.key)))
        text = f"CONTRADICTION: {names}: {record.verdict}, known to be {known[record.key]}"
        stdout_console().print(text, style="bold red", markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)
