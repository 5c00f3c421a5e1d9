"""`curvverify radius MODEL --data D.npz --out radii.csv`: certified radii of a data set."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curvverify.cli.inputs import existing, parse_shapes
from curvverify.cli.output import setup_logging, stderr_console, stdout_console
from curvverify.errors import UsageError

if TYPE_CHECKING:
    from curvverify.certificates.record import Domain, RadiusOptions
    from curvverify.graph import LoadedModel
    from curvverify.report.radii import Row
    from curvverify.spec.dataset import Samples

INTERRUPTED = 130


def radius(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file of a classifier.")],
    data: Annotated[Path, typer.Option(metavar="D.npz", help="Arrays x_SPLIT and y_SPLIT; bytes are divided by 255.")],
    out: Annotated[Path, typer.Option(metavar="RADII.csv", help="One line per sample, appended batch by batch.")],
    split: Annotated[str, typer.Option(help="Which x_SPLIT and y_SPLIT of the data.")] = "test",
    norm: Annotated[Literal["l2", "linf"], typer.Option(help="Distance that radii are measured in.")] = "l2",
    eps: Annotated[
        list[str] | None, typer.Option(metavar="R[,R...]", help="Decide these radii instead of finding the largest.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Only the first samples; 0 takes all.")] = 0,
    attack: Annotated[bool, typer.Option("--attack", help="Also attack every sample by gradient descent.")] = False,
    domain: Annotated[
        str, typer.Option(metavar="LOW,HIGH|none|auto", help="Values inputs may take; auto: 0,1 for bytes, else none.")
    ] = "auto",
    effort: Annotated[Literal["fast", "normal", "high"], typer.Option(help="How hard to work.")] = "normal",
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 64,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where RADII.csv ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw accuracy curves and radii.")] = None,
    shape: Annotated[list[str] | None, typer.Option(metavar="X=1,3,32,32", help="Shape of a dynamic input.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log on stderr.")] = False,
) -> None:
    """Certify the radius around every sample within which its label cannot change."""
    setup_logging(verbose)
    radii, where = parse_eps(eps or ()), parse_domain(domain)
    from curvverify.certificates.radius import network_size, resolve_domain
    from curvverify.certificates.record import RadiusOptions
    from curvverify.graph import load
    from curvverify.report.radii import open_for_append
    from curvverify.spec.dataset import checked_samples, read_split

    x, y = read_split(existing(data), split)
    count = min(limit or len(x), len(x))
    chosen = resolve_domain(where, str(x.dtype) == "uint8")
    options = RadiusOptions(norm, radii, chosen, effort, attack, batch)
    loaded = load(existing(model), shapes=parse_shapes(shape or ()) or None)
    sizes, images = network_size(loaded), loaded.graph.input_shape
    samples = checked_samples(x[:count], y[:count], *sizes, chosen, f"{data} ({split})", images)
    _say(samples, options, loaded)
    done, stream = open_for_append(out, _settings(loaded, data, split, options), resume)
    with stream:
        try:
            _run(stream, done, loaded, samples, options)
        except KeyboardInterrupt:
            stderr_console().print(f"interrupted: {out} is complete so far; the same command with --resume goes on")
            raise typer.Exit(INTERRUPTED) from None
    _report(out, count, options, loaded, as_json, plot)


def parse_eps(arguments: tuple[str, ...] | list[str]) -> tuple[float, ...]:
    """`0.5,1.0` or several options; UsageError for what is no positive number."""
    found = []
    for text in (part for argument in arguments for part in argument.split(",")):
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0.0 < value < float("inf"):
            raise UsageError(f"--eps {text!r}: give positive numbers, as in --eps 0.5,1.0")
        found.append(value)
    return tuple(found)


def parse_domain(text: str) -> Domain | str | None:
    """`auto`, `none` or `LOW,HIGH`."""
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--domain {text!r}: give LOW,HIGH, none or auto") from None
    return low, high


def _say(samples: Samples, options: RadiusOptions, loaded: LoadedModel) -> None:
    kind = "bytes divided by 255" if samples.scaled else "floating-point inputs as they are"
    if options.domain is None:
        where = "inputs without bounds (--domain 0,1 for images)"
    else:
        where = f"inputs in [{options.domain[0]:g}, {options.domain[1]:g}] only"
    stderr_console().print(f"{loaded.name}: {len(samples)} samples, {kind}; {where}", markup=False, soft_wrap=True)


def _settings(loaded: LoadedModel, data: Path, split: str, options: RadiusOptions) -> dict[str, Any]:
    """What rows depend on: rows made with other settings are not mixed."""
    chosen = asdict(replace(options, batch=1))
    stamp = {"size": data.stat().st_size} if data.exists() else {}
    return {"model_sha256": loaded.sha256, "data": data.name, **stamp, "split": split, **chosen}


def _run(stream: Any, done: list[Row], loaded: LoadedModel, samples: Samples, options: RadiusOptions) -> None:
    """Certify what is left, batch by batch, with a progress bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from curvverify.certificates.radius import Certifier
    from curvverify.report.radii import Row, append

    finished = {row.index for row in done}
    left = [i for i in range(len(samples)) if i not in finished]
    if not left:
        return
    console = stderr_console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("constants of the network", total=len(samples), completed=len(samples) - len(left))
        certifier = Certifier(loaded, samples.y.tolist(), options)
        certified = 0.0
        for start in range(0, len(left), options.batch):
            index = left[start : start + options.batch]
            found = list(certifier.run(samples.x[index], samples.y[index]))
            append(stream, [Row(i, sample) for i, sample in zip(index, found, strict=True)])
            certified += sum(sample.radius_certified for sample in found)
            mean = certified / (start + len(index))
            progress.update(task, advance=len(index), description=f"mean radius {mean:.4g}")


def _report(
    out: Path, count: int, options: RadiusOptions, loaded: LoadedModel, as_json: bool, plot: Path | None
) -> None:
    """Tables or JSON on stdout, the picture, and exit code 1 where a counterexample contradicts a radius."""
    from curvverify.report.radii import radii_tables, read_rows, summarise, typical_eps

    rows = [row for row in read_rows(out) if row.index < count]
    summary = summarise(rows, options.eps or typical_eps(rows))
    if as_json:
        from curvverify.report.serialise import plain

        domain = None if options.domain is None else list(options.domain)
        head = {"model": loaded.name, "norm": options.norm, "domain": domain, "csv": str(out)}
        json.dump(plain({**head, **asdict(summary)}), sys.stdout)
        typer.echo()
    else:
        for table in radii_tables(summary, f"{loaded.name}, {options.norm}"):
            stdout_console().print(table)
    if plot is not None:
        from curvverify.plots.radii import radii_figure

        radii_figure([row.sample for row in rows], options.norm, plot)
        typer.echo(f"picture: {plot}", err=True)
    if summary.contradictions:
        stderr_console().print(f"CONTRADICTION: {summary.contradictions} certified radii do not hold", style="bold red")
        raise typer.Exit(1)
