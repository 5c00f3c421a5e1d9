"""`curvverify bounds MODEL --box QUERY`: what every node of the network can take over the query's box."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curvverify.cli.inputs import existing, parse_shapes
from curvverify.cli.options import resolve, with_options
from curvverify.cli.output import setup_logging, stdout_console, write_file

if TYPE_CHECKING:
    from curvverify.graph import LoadedModel
    from curvverify.spec.query import Query
    from curvverify.verification.node_bounds import BoundsReport

SAMPLES = 2000


@with_options(
    without=("attack_seconds", "attack_starts", "property_iterations", "branch", "branch_inputs", "branch_batch")
)
def bounds(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.")],
    box: Annotated[Path, typer.Option(metavar="QUERY", help="VNN-LIB file whose input box is meant.")],
    method: Annotated[Literal["interval", "linear"], typer.Option(help="How the bounds are found.")] = "linear",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every entry's bounds.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture of the output bounds against samples.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write them by ONNX value name: .json, .npz, or .vnnlib as hidden nodes."),
    ] = None,
    single: Annotated[bool, typer.Option("--float32", help="Exported numbers are rounded outward to float32.")] = False,
    given_bounds: Annotated[
        Path | None, typer.Option("--bounds", metavar="FILE", help="Given bounds, .json or .npz, to be tightened.")
    ] = None,
    shape: Annotated[list[str] | None, typer.Option(metavar="X=1,3,32,32", help="Shape of a dynamic input.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with options.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log the stages on stderr.")] = False,
    **overrides: Any,
) -> None:
    """Print proved bounds on every node of a network over an input box."""
    options = resolve(config, overrides)
    setup_logging(verbose)
    model, box, shapes = existing(model), existing(box), parse_shapes(shape or ())
    from curvverify.graph import load
    from curvverify.spec import load_query
    from curvverify.verification.node_bounds import bounds as node_bounds

    query = load_query(box)
    loaded = load(model, shapes=shapes) if shapes else load(model)
    given = None
    if given_bounds is not None:
        from curvverify.plugins.exchange import given_file

        given = given_file(given_bounds, loaded, query)
        typer.echo(given.note, err=True)
    report = node_bounds(loaded, query, options, method=method, given=given)
    if export is not None:
        _export(report, loaded, query, export, single)
    if as_json:
        from curvverify.report.serialise import to_json

        json.dump(to_json(report), sys.stdout)
        typer.echo()
    else:
        from curvverify.report.tables import bounds_table

        stdout_console().print(bounds_table(report))
    if plot is not None:
        _picture(report, loaded, query, options.seed, plot)


def _export(report: BoundsReport, loaded: LoadedModel, query: Query, path: Path, single: bool) -> None:
    """The bounds as a file for other tools, and on stderr which values have none."""
    from curvverify.plugins.exchange import exported, write_bounds
    from curvverify.plugins.hidden import hidden_query

    file = exported(report, loaded, single)
    if path.suffix == ".vnnlib":
        write_file(path, hidden_query(query, file, loaded))
    else:
        write_bounds(path, file)
    typer.echo(f"{path}: bounds on {len(file.values)} values", err=True)
    if file.nameless:
        names = ", ".join(file.nameless[:5]) + (", ..." if len(file.nameless) > 5 else "")
        typer.echo(
            f"without bounds, as constants or folded into others: {len(file.nameless)} values ({names})", err=True
        )


def _picture(report: BoundsReport, loaded: LoadedModel, query: Query, seed: int, path: Path) -> None:
    """Outputs at random inputs of the query's boxes, inside the proved bounds."""
    from curvverify.plots.outputs import draw_bounds_against_samples
    from curvverify.plots.style import new_figure, save

    figure, (axis,) = new_figure(1, 6.0, 4.0)
    last = report.nodes[-1]
    samples = sample_outputs(loaded, query, SAMPLES, seed)
    draw_bounds_against_samples(axis, last.lower.numpy(), last.upper.numpy(), samples)
    save(figure, path)
    typer.echo(f"picture: {path}", err=True)


def sample_outputs(loaded: LoadedModel, query: Query, count: int, seed: int) -> Any:
    """Outputs (count, m) of the layer graph at inputs drawn uniformly from the query's boxes that are not empty."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    boxes = [tuple(torch.from_numpy(bound) for bound in g.box.cover) for g in query.groups if not g.box.empty]
    outputs = []
    with torch.no_grad():
        for i, (lower, upper) in enumerate(boxes[:count]):
            size = count // len(boxes) + (i < count % len(boxes))
            x = lower + (upper - lower) * torch.rand(size, len(lower), dtype=torch.float64, generator=generator)
            for part in x.split(100):
                outputs.append(loaded.graph(part.reshape(-1, *loaded.graph.input_shape)).flatten(1))
    return torch.cat(outputs).numpy()
