"""`curvverify compare QUERY --network MODEL` or `compare INSTANCES.csv`: several methods side by side."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvverify.cli.batch import (
    GRACE,
    Where,
    chosen_instances,
    end_with_contradictions,
    known_verdicts,
    run_resumably,
    share_cores,
)
from curvverify.cli.inputs import existing
from curvverify.cli.options import as_flags, resolve, with_options
from curvverify.cli.output import stderr_console, stdout_console, write_file
from curvverify.errors import UsageError

if TYPE_CHECKING:
    from curvverify.cli.child import Instance
    from curvverify.report.batch import Record
    from curvverify.report.compare import Comparison

DEFAULT = "interval,linear,optimised,taylor,coupled,branching"


@with_options(without=("timeout", "threads"))
def compare(
    targets: Annotated[
        list[Path], typer.Argument(metavar="QUERY|INSTANCES.csv...", help="Properties, or lists of instances.")
    ],
    network: Annotated[Path | None, typer.Option(metavar="MODEL.onnx", help="The network of the properties.")] = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            help="Bounds alone: interval, linear (one pass), optimised, taylor; the verifier's stages: coupled (no "
            "branching), uncoupled (branching), branching (all); MODULE:NAME: a bound method of your own.",
        ),
    ] = DEFAULT,
    timeout: Annotated[float, typer.Option(metavar="S", help="Largest time limit per run.")] = 60.0,
    jobs: Annotated[int, typer.Option(min=0, help="Processes at once; 0 shares the cores out.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads per process; 0 shares the cores out.")] = 0,
    memory_cap: Annotated[float, typer.Option(metavar="GIB", help="Kill a process whose memory exceeds this.")] = 16.0,
    out: Annotated[
        Path | None, typer.Option(metavar="RESULTS.jsonl", help="One line per finished run, appended; resumable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where RESULTS.jsonl ends.")] = False,
    join: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Results of another tool: a competition's results.csv, a csv instance,verdict,seconds, or a .jsonl.",
        ),
    ] = None,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Everything as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Every margin, a line per run.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="The summary table as markdown.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE|DIR", help="Cactus plot; in a folder, the margins beside it.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--filter", metavar="GLOB", help="Only where family, onnx or vnnlib match.")
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Only so many of every family, drawn with the seed; 0: all.")] = 0,
    expected: Annotated[
        list[Path] | None,
        typer.Option(metavar="CSV", help="Known verdicts (default: expected.csv beside the instances)."),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Options, by name; flags win.")] = None,
    **overrides: Any,
) -> None:
    """Run several methods on the same instances, each run in a killable process, and show what each decides.

    The exit code is 1 where a verdict contradicts a known one, or the methods contradict each other.
    """
    options = resolve(config, overrides)
    names = _methods(methods, options)
    if resume and out is None:
        raise UsageError("--resume goes on with a file of results: add --out RESULTS.jsonl")
    chosen = _instances(targets, network, only or [], timeout, sample, options.seed)
    others = _joined(join or [], chosen)
    jobs, threads = share_cores(jobs, threads)
    flags = [*as_flags(options, without=("timeout", "threads")), "--threads", str(threads), "--real-semantics"]
    from curvverify.cli.child import Limits
    from curvverify.report.compare import merged

    runs = [replace(instance, method=name) for instance in chosen for name in names]
    limits, where = Limits(GRACE, memory_cap), Where("local", jobs, threads)
    with tempfile.TemporaryDirectory() as folder:
        records = run_resumably(runs, flags, limits, where, out or Path(folder) / "results.jsonl", resume)
    lists = [path for path in targets if path.suffix == ".csv"]
    known = known_verdicts(expected or [path.with_name("expected.csv") for path in lists], bool(expected))
    _report(merged(names, [*_in_order(records, runs), *others], known), json_file, csv, markdown, plot)


def _methods(text: str, options: Any) -> list[str]:
    """The names, each one checked; UsageError for an unknown or repeated one."""
    import os
    import sys

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--methods {text!r}: write different names with commas between, as in --methods {DEFAULT}")
    if any(":" in name for name in names):
        sys.path.insert(0, os.getcwd())
    from curvverify.verification.bound_methods import method_of

    for name in names:
        method_of(name, options)
    return names


def _instances(
    targets: list[Path], network: Path | None, only: list[str], timeout: float, sample: int, seed: int
) -> list[Instance]:
    """The instances of lists, and one for every property; `sample` of every family where that is fewer."""
    from curvverify.cli.child import Instance

    lists = [path for path in targets if path.suffix == ".csv"]
    queries = [existing(path) for path in targets if path.suffix != ".csv"]
    if queries and network is None:
        raise UsageError(f"{queries[0]} needs a network: add --network MODEL.onnx")
    if network is not None and not queries:
        raise UsageError("--network goes with properties; a list of instances names its own")
    found = chosen_instances(lists, only, timeout) if lists else []
    if network is not None:
        model = existing(network).resolve()
        found += [Instance(q.resolve().parent.name, str(model), str(q.resolve()), timeout, Path("/")) for q in queries]
    return sampled(found, sample, seed) if sample else found


def sampled(instances: list[Instance], count: int, seed: int) -> list[Instance]:
    """At most `count` of every family, in their order."""
    import random

    families: dict[str, list[int]] = {}
    for i, instance in enumerate(instances):
        families.setdefault(instance.family, []).append(i)
    chosen = (random.Random(seed).sample(places, min(count, len(places))) for places in families.values())
    return [instances[i] for places in chosen for i in sorted(places)]


def _joined(files: list[Path], chosen: list[Instance]) -> list[Record]:
    """What other tools said of the chosen instances."""
    from curvverify.report.joined import read_joined

    records: list[Record] = []
    for path in files:
        joined = read_joined(path, [instance.key for instance in chosen])
        if joined.others:
            about = f"{joined.others} of {joined.others + len(joined.records)} lines"
            stderr_console().print(f"{path}: {about} are about other instances", markup=False, soft_wrap=True)
        records += joined.records
    return records


def _in_order(records: list[Record], runs: list[Instance]) -> list[Record]:
    place = {run.run_key: i for i, run in enumerate(runs)}
    return sorted(records, key=lambda record: place[record.run_key])


def _report(
    comparison: Comparison, json_file: str | None, csv: Path | None, markdown: Path | None, plot: Path | None
) -> None:
    """Tables on stdout (JSON instead with `-`), the further files, and exit code 1 on a contradiction."""
    from curvverify.report.compare import margins_csv, margins_table, methods_markdown, methods_table, to_json

    console = stdout_console()
    if json_file == "-":
        typer.echo(json.dumps(to_json(comparison)))
    else:
        console.print(margins_table(comparison))
        console.print(methods_table(comparison))
        if json_file is not None:
            write_file(Path(json_file), json.dumps(to_json(comparison)) + "\n")
    if csv is not None:
        write_file(csv, margins_csv(comparison))
    if markdown is not None:
        write_file(markdown, methods_markdown(comparison))
    if plot is not None:
        _draw(comparison, plot)
    for key in comparison.conflicts:
        text = f"CONFLICT: {' '.join(key)}: sat by one method, unsat by another"
        stderr_console().print(text, style="bold red", markup=False, soft_wrap=True)
    wrong = [record for _, summary in comparison.summaries for record in summary.contradictions]
    end_with_contradictions(wrong, comparison.expected)
    if comparison.conflicts:
        raise typer.Exit(1)


def _draw(comparison: Comparison, path: Path) -> None:
    """The cactus plot, and beside it the margins where the path is a folder (one without a suffix is made)."""
    from curvverify.plots.cactus import cactus
    from curvverify.plots.margins import margins_figure

    runs = {method: comparison.of(method) for method in comparison.methods}
    if path.suffix and not path.is_dir():
        cactus(runs, path)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    cactus(runs, path / "cactus.png")
    margins_figure(runs, path / "margins.png")
