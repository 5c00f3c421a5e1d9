"""`curvverify evaluate MODEL... --data D.npz`: accuracy, certified and attacked shares, and curvature, side by side."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from curvverify.cli.inputs import existing
from curvverify.cli.output import setup_logging, stderr_console, stdout_console
from curvverify.cli.radius import parse_domain, parse_eps
from curvverify.errors import UsageError


def evaluate(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="ONNX files of classifiers.")],
    data: Annotated[Path, typer.Option(metavar="D.npz", help="Arrays x_SPLIT and y_SPLIT; bytes are divided by 255.")],
    split: Annotated[str, typer.Option(help="Which x_SPLIT and y_SPLIT of the data.")] = "test",
    limit: Annotated[int, typer.Option(min=0, help="Only the first samples; 0 takes all.")] = 0,
    eps: Annotated[
        list[str] | None, typer.Option(metavar="R[,R...]", help="l_2 radii to certify and attack at.")
    ] = None,
    linf: Annotated[float | None, typer.Option(help="l_inf radius to attack at.")] = None,
    domain: Annotated[
        str, typer.Option(metavar="LOW,HIGH|none|auto", help="Values inputs may take; auto: 0,1 for bytes, else none.")
    ] = "auto",
    effort: Annotated[Literal["fast", "normal", "high"], typer.Option(help="How hard to certify.")] = "normal",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per model.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log on stderr.")] = False,
) -> None:
    """Compare trained classifiers: clean, certified and attacked accuracy, and curvature."""
    setup_logging(verbose)
    radii, where = parse_eps(eps or ()), parse_domain(domain)
    if linf is not None and not 0.0 < linf < float("inf"):
        raise UsageError(f"--linf {linf}: give a positive number")
    from curvverify.certificates.radius import network_size, resolve_domain
    from curvverify.graph import load
    from curvverify.report.evaluation import evaluation_table
    from curvverify.report.serialise import plain
    from curvverify.spec.dataset import checked_samples, read_split
    from curvverify.train.evaluate import evaluate as evaluated

    x, y = read_split(existing(data), split)
    count = min(limit or len(x), len(x))
    chosen = resolve_domain(where, str(x.dtype) == "uint8")
    found = []
    for path in models:
        loaded = load(existing(path))
        size, shape = network_size(loaded), loaded.graph.input_shape
        samples = checked_samples(x[:count], y[:count], *size, chosen, f"{data} ({split})", shape)
        found.append(evaluated(loaded, samples, radii, linf, chosen, effort))
        if as_json:
            json.dump(plain(asdict(found[-1])), sys.stdout)
            typer.echo()
        else:
            stderr_console().print(f"{path}: {found[-1].seconds:.1f} s", markup=False, soft_wrap=True)
    if not as_json:
        stdout_console().print(evaluation_table(found))
