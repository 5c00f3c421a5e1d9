"""`curvverify demo`: the embedded example, explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvverify.cli.output import setup_logging, stdout_console

if TYPE_CHECKING:
    from rich.console import Console

    from curvverify.graph import LoadedModel
    from curvverify.plots.moons import Array, Panel
    from curvverify.spec.query import Query
    from curvverify.verification.result import Result

INTRODUCTION = """\
A residual network (2 -> 12 -> 12 -> 2, tanh and softplus) tells two interleaved half circles apart.
Two questions about the point (0.6, 0.8): does every input within 0.25 of it get class 0?  Within 0.35?"""

DIGITS = """\
Two networks of one shape (784 -> 32 -> 10) read digits; the first was trained for its certificate (`curvverify train`).
One question about a drawn zero: does every image within 0.08 of it, in every pixel, get class 0?"""


def demo(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the picture goes.")] = Path("curvverify-demo.png"),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log the stages on stderr.")] = False,
) -> None:
    """Verify an embedded network: one property that holds, one that fails, and a picture."""
    setup_logging(verbose)
    console = stdout_console()
    console.print(INTRODUCTION, markup=False)
    from curvverify.demo import FAILS, HOLDS, MODEL
    from curvverify.graph import load
    from curvverify.spec import load_query

    loaded = load(MODEL)
    outcomes = []
    for path, expected in ((HOLDS, "unsat"), (FAILS, "sat")):
        query = load_query(path)
        result = _decide(loaded, query)
        command = f"curvverify verify {_short(path)} --network {_short(MODEL)}"
        console.print(f"\n{command}", style="bold", markup=False, soft_wrap=True)
        _explain(console, query, result)
        outcomes.append((query, result, expected))
    wrong = [str(result.verdict) for _, result, expected in outcomes if result.verdict != expected]
    _picture(console, loaded, [(query, result) for query, result, _ in outcomes], out)
    wrong += _digits(console)
    if wrong:
        console.print(f"\nThis is not as it should be: {', '.join(wrong)}. Please report it.", style="bold red")
        raise typer.Exit(1)


def _digits(console: Console) -> list[str]:
    """One question to two networks; the verdicts that are not as they should be."""
    from curvverify.demo.digits import CERTIFICATE, PROPERTY, STANDARD
    from curvverify.graph import load
    from curvverify.spec import load_query

    console.print(f"\n{DIGITS}", markup=False)
    wrong = []
    for path, expected in ((CERTIFICATE, "unsat"), (STANDARD, "sat")):
        result = _decide(load(path), load_query(PROPERTY))
        command = f"curvverify verify {_short(PROPERTY)} --network {_short(path)}"
        console.print(f"\n{command}", style="bold", markup=False, soft_wrap=True)
        _verdict(console, result)
        if result.verdict == "unsat":
            console.print(f"  proved: class 0 leads by {result.margin_lower:.3f} or more for every such image")
        wrong += [str(result.verdict)] if result.verdict != expected else []
    return wrong


def _short(path: Path) -> Path:
    """The path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _decide(loaded: LoadedModel, query: Query) -> Result:
    from curvverify.verification.driver import verify

    return verify(loaded, query)


def _verdict(console: Console, result: Result) -> None:
    console.print(f"  {result.verdict}", style="bold green" if result.verdict == "unsat" else "bold red", end="")
    console.print(f"  after {result.seconds:.2f} s", markup=False)


def _explain(console: Console, query: Query, result: Result) -> None:
    """The verdict in words, with the numbers it rests on."""
    low, high = query.groups[0].box.cover
    box = " x ".join(f"[{a:.2f}, {b:.2f}]" for a, b in zip(low, high, strict=True))
    _verdict(console, result)
    if result.verdict == "unsat":
        console.print(f"  proved: Y0 - Y1 >= {result.margin_lower:.3f} for every input in {box}", markup=False)
    if result.witness is not None:
        x, y = ((f"{v:.4f}" for v in values) for values in (result.witness.x, result.witness.y))
        console.print(f"  the input ({', '.join(x)}) in {box} gets class 1: Y = ({', '.join(y)})", markup=False)
        how = "ONNX Runtime replayed it" if result.witness.replayed else "not replayed"
        console.print(f"  {how} in float32, inside the box, with zero tolerance", markup=False)
    for stage in result.stages:
        left = f"open {stage.open_before} -> {stage.open_after}"
        line = f"    {stage.name:<14}{stage.seconds:7.3f} s   {left}   {stage.detail}"
        console.print(line.rstrip(), style="dim", markup=False)


def _picture(console: Console, loaded: LoadedModel, outcomes: list[tuple[Query, Result]], path: Path) -> None:
    """Write the picture where matplotlib is installed, say how to get it otherwise."""
    from curvverify.demo.moons import moons
    from curvverify.errors import UnsupportedError
    from curvverify.plots.moons import demo_figure
    from curvverify.plots.style import save

    try:
        figure = demo_figure([_panel(loaded, *outcome) for outcome in outcomes], _network(loaded), *moons(300, seed=3))
        save(figure, path)
    except UnsupportedError as error:
        console.print(f"\nno picture: {error}", markup=False)
    else:
        console.print(f"\nThe output bounds against samples: {path}", markup=False)


def _panel(loaded: LoadedModel, query: Query, result: Result) -> Panel:
    import numpy as np

    from curvverify.plots.moons import Panel
    from curvverify.verification.node_bounds import bounds

    last = bounds(loaded, query).nodes[-1]
    witness = result.witness
    return Panel(
        title=f"{Path(query.path).name}: {result.verdict}",
        box=query.groups[0].box.cover,
        bounds=(last.lower.flatten().numpy(), last.upper.flatten().numpy()),
        witness=None if witness is None else (np.array(witness.x), np.array(witness.y)),
    )


def _network(loaded: LoadedModel) -> Callable[[Array], Array]:
    """The network as a function of points (s, 2)."""
    import torch

    def run(points: Array) -> Array:
        with torch.no_grad():
            x = torch.as_tensor(points, dtype=torch.float64).reshape(-1, *loaded.graph.input_shape)
            return loaded.graph(x).flatten(1).numpy()

    return run
