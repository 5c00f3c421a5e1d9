"""`curvverify portfolio --budget S -- PATH/run_instance.sh ...`: curvverify first, then any competition tool."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvverify.cli.options import as_flags, resolve, with_options
from curvverify.cli.output import stderr_console, stdout_console, write_file
from curvverify.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    from curvverify.cli.child import Ended, Instance
    from curvverify.report.batch import Record

RESERVE = 1.0
"""Seconds that are kept back for replaying the other tool's witness and writing the result."""

LEAST = 1.0
"""The other tool is not started for less than so many seconds."""

GRACE = 1.0
"""Seconds after its budget at which curvverify's own process is killed."""

OURS = "curvverify"
NOBODY = "nobody"


@dataclass(frozen=True)
class Part:
    """What one of the tools did."""

    tool: str
    verdict: str
    seconds: float
    problem: str = ""
    result: str = ""
    """The result file, where it decides."""


@dataclass(frozen=True)
class Portfolio:
    """curvverify for `budget` seconds, then the script for the rest of an instance's time."""

    script: Path
    budget: float
    flags: list[str]
    memory_gib: float

    def decide(self, instance: Instance, started: float) -> tuple[Record, str]:
        """The record of one instance, whose time limit counts from `started`, and its result file."""
        from curvverify.report.batch import Record

        parts = [self._ours(instance, started)]
        if parts[-1].verdict not in ("sat", "unsat"):
            left = started + instance.timeout - RESERVE - time.monotonic()
            if left >= LEAST:
                parts.append(self._theirs(instance, left))
        last = parts[-1]
        decided = last.verdict in ("sat", "unsat")
        ended = all(part.verdict == "timeout" for part in parts)
        verdict = last.verdict if decided else "timed-out" if ended else "unknown"
        seconds = time.monotonic() - started
        if decided and seconds > instance.timeout:
            decided, verdict = False, "timed-out"
            parts.append(Part("portfolio", verdict, 0.0, f"answered {last.verdict}, but after the limit"))
        stages = tuple({"name": p.tool, "verdict": p.verdict, "seconds": round(p.seconds, 3)} for p in parts)
        notes = tuple(f"{p.tool}: {p.problem}" for p in parts if p.problem)
        word = {"timed-out": "timeout"}.get(verdict, verdict)
        record = Record(*instance.key, instance.timeout, verdict, round(seconds, 3), 0.0, stages=stages, notes=notes)
        return record, last.result if decided else word + "\n"

    def _ours(self, instance: Instance, started: float) -> Part:
        """curvverify in a process of its own, for its budget, which begins when its imports are done."""
        from curvverify.cli.warm import TEMPLATE
        from curvverify.plugins.answers import verdict_of

        begun = time.monotonic()
        TEMPLATE.ready()
        limit = min(self.budget, started + instance.timeout - time.monotonic())
        if limit <= 0.0:
            return Part(OURS, "timeout", time.monotonic() - begun, "its start took all the time there was")
        with tempfile.TemporaryDirectory(prefix="curvverify-") as folder:
            result = Path(folder) / "result.txt"
            arguments = ["verify", str(instance.folder / instance.vnnlib), "--network", instance.network]
            arguments += ["--timeout", f"{limit:.3f}", "--result-file", str(result), "--real-semantics", *self.flags]
            ended, said = self._warm("curvverify.cli.template:command", arguments, folder, limit)
            seconds = time.monotonic() - begun
            if ended.killed:
                return Part(OURS, "timeout" if ended.killed.startswith("time") else "error", seconds, ended.killed)
            if ended.code != 0:
                return Part(OURS, "unknown", seconds, said or f"ended with code {ended.code}")
            text = result.read_text()
            return Part(OURS, verdict_of(text), seconds, result=text)

    def _theirs(self, instance: Instance, limit: float) -> Part:
        """The other tool; its `unsat` is passed on, its `sat` where the witness replays, nothing else decides."""
        from curvverify.plugins.answers import verdict_of
        from curvverify.plugins.scripts import run_script

        name = tool_name(self.script)
        vnnlib = str(instance.folder / instance.vnnlib)
        ran = run_script(self.script, instance.family, instance.network, vnnlib, limit)
        if ran.problem:
            return Part(name, "timeout" if ran.problem.startswith("late") else "error", ran.seconds, ran.problem)
        try:
            verdict = verdict_of(ran.text)
        except UnreadableError as error:
            return Part(name, "error", ran.seconds, str(error))
        if verdict != "sat":
            return Part(name, verdict, ran.seconds, result="unsat\n" if verdict == "unsat" else "")
        with tempfile.TemporaryDirectory(prefix="curvverify-") as folder:
            answer, result = Path(folder) / "answer.txt", Path(folder) / "result.txt"
            answer.write_text(ran.text)
            arguments = [instance.network, vnnlib, str(answer), str(result)]
            ended, said = self._warm("curvverify.plugins.answers:confirm", arguments, folder, RESERVE + limit)
            if ended.code == 0 and not ended.killed:
                return Part(name, "sat", ran.seconds, result=result.read_text())
            why = said or ended.killed or f"its replay ended with code {ended.code}"
            return Part(name, "error", ran.seconds, f"sat is not passed on: {why}")

    def _warm(self, call: str, arguments: list[str], folder: str, limit: float) -> tuple[Ended, str]:
        """Run the call in a warm process until it ends or is killed; how it ended, and its last words."""
        from curvverify.cli.child import Limits, watch
        from curvverify.cli.warm import TEMPLATE

        out, err = Path(folder) / "out", Path(folder) / "err"
        child = TEMPLATE.start(call, arguments, out, err, {})
        ended = watch(child, time.monotonic(), limit, Limits(GRACE, self.memory_gib), None)
        assert ended is not None
        lines = err.read_text(errors="replace").strip().splitlines() if err.exists() else []
        return ended, "".join(lines[-1:])


@with_options(without=("timeout",))
def portfolio(
    context: typer.Context,
    tool: Annotated[
        list[str],
        typer.Argument(
            metavar="-- PATH/run_instance.sh [v1 CATEGORY ONNX VNNLIB RESULT_FILE TIMEOUT]", help="The tool."
        ),
    ],
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="How long curvverify tries first, once started.")],
    instances: Annotated[
        Path | None, typer.Option(metavar="INSTANCES.csv", help="Run a list instead of one instance.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RESULTS.jsonl", help="One line per instance, appended.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where RESULTS.jsonl ends.")] = False,
    timeout: Annotated[float | None, typer.Option(metavar="CAP", help="Largest time limit per instance.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--filter", metavar="GLOB", help="Only where family, onnx or vnnlib match.")
    ] = None,
    memory_cap: Annotated[float, typer.Option(metavar="GIB", help="Kill curvverify above this.")] = 16.0,
    write_scripts: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the competition's three scripts, and stop.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Options, by name; flags win.")] = None,
    **overrides: Any,
) -> None:
    """Run curvverify for a while, then another competition tool for the rest of the time; its `sat` is replayed.

    A crash, a late or a malformed answer of the other tool is reported, and never becomes a verdict.
    """
    from curvverify.plugins.scripts import checked_script

    if not budget > 0.0:
        raise UsageError(f"--budget must be positive, not {budget:g}")
    script, arguments = checked_script(Path(tool[0])), tool[1:]
    if write_scripts is not None:
        from curvverify.plugins.scripts import write_scripts as write

        for path in write(write_scripts, script, budget):
            typer.echo(str(path))
        return
    flags = as_flags(resolve(config, overrides), without=("timeout",))
    runner = Portfolio(script, budget, flags, memory_cap)
    if instances is None:
        started = context.obj if context.obj is not None else time.monotonic()
        _one(runner, arguments, started)
        return
    if arguments or out is None:
        raise UsageError("with --instances: give --out RESULTS.jsonl, and nothing behind PATH/run_instance.sh")
    _many(runner, instances, out, resume, timeout, only or [])


def tool_name(script: Path) -> str:
    """What a tool is called in results: the folder of its script."""
    return script.parent.name or script.name


def _one(runner: Portfolio, arguments: list[str], started: float) -> None:
    """The competition's call for one instance; the result file is written whatever happens."""
    from curvverify.cli.batch import terminate_as_interrupt
    from curvverify.cli.child import Instance

    form = "v1 CATEGORY ONNX VNNLIB RESULT_FILE TIMEOUT"
    if len(arguments) != 6 or arguments[0] != "v1":
        raise UsageError(f"behind -- PATH/run_instance.sh write {form}, or use --instances")
    _, category, network, vnnlib, result, limit = arguments
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", limit):
        raise UsageError(f"TIMEOUT {limit!r} is no number of seconds")
    instance = Instance(category, network, vnnlib, float(limit), Path())
    text = "error\n"
    try:
        with terminate_as_interrupt():
            record, text = runner.decide(instance, started)
    finally:
        write_file(Path(result), text)
    for note in record.notes:
        stderr_console().print(note, markup=False, soft_wrap=True)
    typer.echo(record.verdict)


def _many(runner: Portfolio, table: Path, out: Path, resume: bool, cap: float | None, only: list[str]) -> None:
    """The instances of a list that have no result yet, one after the other, and who decided what."""
    from curvverify.cli.batch import INTERRUPTED, chosen_instances, known_verdicts, shown, terminate_as_interrupt
    from curvverify.report.batch import append, contradicts, open_for_append

    chosen = chosen_instances([table], only, cap)
    if out.exists() and out.stat().st_size and not resume:
        raise UsageError(f"{out} holds results already: add --resume to go on, or name another file")
    results = out.parent / f"{out.stem}-results"
    records, stream = open_for_append(out)
    finished = {record.key for record in records}
    left = [instance for instance in chosen if instance.key not in finished]

    def run() -> Iterator[Record]:
        for instance in left:
            record, text = runner.decide(instance, time.monotonic())
            results.mkdir(parents=True, exist_ok=True)
            write_file(results / f"{result_name(instance)}.txt", text)
            yield record

    with stream, terminate_as_interrupt():
        try:
            for record in shown(run(), len(chosen) - len(left), len(chosen)):
                append(stream, record)
                records.append(record)
        except KeyboardInterrupt:
            stderr_console().print(f"interrupted: {out} is complete so far; the same command with --resume goes on")
            raise typer.Exit(INTERRUPTED) from None
    keys = {instance.key for instance in chosen}
    records = [record for record in records if record.key in keys]
    _tell(records, tool_name(runner.script))
    known = known_verdicts([table.with_name("expected.csv")], False)
    wrong = [record for record in records if contradicts(record, known)]
    for record in wrong:
        text = f"CONTRADICTION: {' '.join(record.key)}: {record.verdict}, known to be {known[record.key]}"
        stdout_console().print(text, style="bold red", markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


def result_name(instance: Instance) -> str:
    """A file name for an instance's result."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "--".join((Path(instance.onnx).name, Path(instance.vnnlib).name)))[-200:]


def decided_by(record: Record) -> str:
    """The tool whose verdict is the record's, or nobody."""
    return str(record.stages[-1]["name"]) if record.decided and record.stages else NOBODY


def overhead(record: Record) -> float:
    """Seconds that neither of the tools took."""
    return record.seconds - sum(float(stage["seconds"]) for stage in record.stages)


def _tell(records: list[Record], tool: str) -> None:
    """Who decided what and in what time, and what went wrong with the other tool."""
    from rich.table import Table

    console = stdout_console()
    table = Table(title="who decided what")
    for i, column in enumerate(("decided by", "instances", "sat", "unsat", "median s", "max s")):
        table.add_column(column, justify="right" if i else "left")
    for name in (OURS, tool, NOBODY):
        mine = [record for record in records if decided_by(record) == name]
        words = [record.verdict for record in mine]
        times = [record.seconds for record in mine] or [0.0]
        counts = (len(mine), words.count("sat"), words.count("unsat"))
        table.add_row(name, *map(str, counts), f"{statistics.median(times):.1f}", f"{max(times):.1f}")
    console.print(table)
    extra = [overhead(record) for record in records] or [0.0]
    console.print(f"overhead of the wrapper: median {statistics.median(extra):.3f} s, at most {max(extra):.3f} s")
    for record in records:
        for note in record.notes:
            console.print(f"{' '.join(record.key)}: {note}", markup=False, soft_wrap=True)
