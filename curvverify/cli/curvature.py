"""`curvverify curvature MODEL`: Lipschitz and curvature constants of every node, or estimates over a data set."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curvverify.cli.inputs import existing, parse_shapes
from curvverify.cli.output import setup_logging, stdout_console, write_file
from curvverify.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    from curvverify.bounding.region import RegionLike
    from curvverify.graph import LoadedModel


def curvature(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.")],
    everywhere: Annotated[bool, typer.Option("--global", help="Constants over all of R^n (the default).")] = False,
    box: Annotated[Path | None, typer.Option(metavar="QUERY", help="VNN-LIB file whose input box is meant.")] = None,
    ball: Annotated[Path | None, typer.Option(metavar="X.npy", help="Centre of an l2 ball, with --radius.")] = None,
    radius: Annotated[float | None, typer.Option(help="Radius of the ball; inf for all of R^n.")] = None,
    anchored: Annotated[
        bool, typer.Option("--anchored", help="Constants for differences from the ball's centre only: smaller.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="D.npz", help="Estimates over samples (x_<split>, y_<split>), no bounds.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which samples of --data.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first samples of --data.")] = None,
    loss: Annotated[
        Literal["margin", "cross-entropy"], typer.Option(help="What --data differentiates, without --pair.")
    ] = "cross-entropy",
    iterations: Annotated[int, typer.Option(min=1, help="Hessian-vector products per sample of --data.")] = 20,
    pair: Annotated[tuple[int, int] | None, typer.Option(metavar="Y T", help="The output z_Y - z_T alone.")] = None,
    norm: Annotated[Literal["l2", "linf"], typer.Option(help="Norm of the input.")] = "l2",
    as_json: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON to a file, or to stdout for -.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of both constants over depth.")] = None,
    shape: Annotated[list[str] | None, typer.Option(metavar="X=1,3,32,32", help="Shape of a dynamic input.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log the stages on stderr.")] = False,
) -> None:
    """Print proved upper bounds on Lipschitz constants and curvature, node by node."""
    setup_logging(verbose)
    regions = {"--global": everywhere, "--box": box, "--ball": ball, "--data": data}
    chosen = [flag for flag, value in regions.items() if value]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other: choose one region")
    if (radius is None) != (ball is None):
        raise UsageError("a ball needs both its centre, --ball X.npy, and its --radius")
    if anchored and ball is None:
        raise UsageError("--anchored needs a point: --ball X.npy --radius R (R may be inf)")
    if data is not None and (plot is not None or norm != "l2"):
        raise UsageError("--plot and --norm are about constants, which --data does not compute")
    model, shapes = existing(model), parse_shapes(shape or ())
    from curvverify.graph import load

    region: RegionLike = None
    if box is not None:
        region = existing(box)
    elif ball is not None and radius is not None:
        region = _ball(existing(ball), radius)
    loaded = load(model, shapes=shapes) if shapes else load(model)
    if data is not None:
        _estimates(loaded, existing(data), split, limit, pair, loss, iterations, as_json)
        return
    from curvverify.bounding.constants.report import curvature as constants

    report = constants(loaded, region, pair=pair, norm=norm, anchored=anchored)
    if as_json is not None:
        _write(report, as_json)
    if as_json != "-":
        from curvverify.report.constants import constants_table, remarks

        stdout_console().print(constants_table(report))
        for line in remarks(report):
            typer.echo(line)
    if plot is not None:
        from curvverify.plots.constants import draw_constants

        draw_constants(report, plot)
        typer.echo(f"picture: {plot}", err=True)


def _write(record: object, target: str) -> None:
    from curvverify.report.serialise import to_json

    text = json.dumps(to_json(record), indent=2, allow_nan=False)
    if target == "-":
        typer.echo(text)
    else:
        write_file(Path(target), text + "\n")


def _ball(path: Path, radius: float) -> Any:
    import numpy as np
    import torch

    from curvverify.types import Ball

    try:
        centre = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path}: not a .npy file: {error}") from error
    if not isinstance(centre, np.ndarray) or not np.issubdtype(centre.dtype, np.number):
        raise UnreadableError(f"{path}: an array of numbers is needed, as numpy.save writes it")
    if math.isnan(radius) or radius < 0.0:
        raise UsageError(f"--radius {radius}: must be at least 0, or inf")
    return Ball(torch.from_numpy(np.asarray(centre, dtype=np.float64)), radius)


def _estimates(
    loaded: LoadedModel,
    data: Path,
    split: str,
    limit: int | None,
    pair: tuple[int, int] | None,
    loss: str,
    iterations: int,
    as_json: str | None,
) -> None:
    """Norms and normalised curvature over the samples: mean and deviation, plainly marked as estimates."""
    from rich.progress import Progress

    from curvverify.bounding.constants.estimates import CrossEntropy, Margin, Pair, curvature_estimates
    from curvverify.cli.output import stderr_console
    from curvverify.report.constants import estimates_table
    from curvverify.spec.dataset import checked_samples, read_split

    nodes = loaded.graph.nodes
    raw, labels = read_split(data, split)
    sizes, shape = (nodes[0].size, nodes[-1].size), loaded.graph.input_shape
    samples = checked_samples(raw[:limit], labels[:limit], *sizes, what=f"{data} ({split})", shape=shape)
    x, y = samples.x.reshape(-1, *loaded.graph.input_shape), samples.y
    function = Pair(*pair) if pair is not None else Margin(y) if loss == "margin" else CrossEntropy(y)
    with Progress(console=stderr_console(), transient=True) as bar:
        task = bar.add_task("samples", total=len(x))
        found = curvature_estimates(
            loaded.graph, x, function, iterations=iterations, progress=lambda done, _: bar.update(task, completed=done)
        )
    if as_json is not None:
        _write(found, as_json)
    if as_json != "-":
        stdout_console().print(estimates_table(loaded.name, found))
