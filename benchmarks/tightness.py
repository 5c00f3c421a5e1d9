"""Margins of the bound methods side by side, on the instances of one or more families, without branching or attack.

    .venv/bin/python benchmarks/tightness.py ../shared/vnncomp/eran_sigmoid_2021 ../shared/vnncomp/eran_relu_2021

One row per method: interval bounds; linear bounds with one pass (CROWN with lines at the interval's midpoint); linear
bounds with Frank-Wolfe lines in every row.  Proved instances, median of the worst margin, median and largest seconds
after loading, one thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import torch

from curvverify.bounding.linear import Effort, linear_bounds, optimised_row_bounds
from curvverify.graph import LoadedModel, load
from curvverify.spec import load_instances, load_query
from curvverify.types import Interval
from curvverify.verification.checker import Checker
from curvverify.verification.property import Property, compile_query
from curvverify.verification.state import Subproblems

ITERATIONS = (1, 2, 3, 8)


def margins(loaded: LoadedModel, vnnlib: Path) -> dict[str, tuple[float, float]]:
    """(worst margin, seconds) per method."""
    prop = compile_query(load_query(vnnlib))
    checker, problems = Checker(loaded.graph, prop), Subproblems.of(prop)
    found = {}
    with torch.no_grad():
        started = time.monotonic()
        found["interval"] = worst(checker.interval(problems)), time.monotonic() - started
        for n in ITERATIONS:
            started = time.monotonic()
            margin = linear_margin(loaded, prop, n)
            found[f"linear, {n} pass{'es' if n > 1 else ''}"] = margin, time.monotonic() - started
    return found


def linear_margin(loaded: LoadedModel, prop: Property, iterations: int) -> float:
    """The worst margin with so many passes per node and twice as many per row of the property, to the end."""
    graph, problems = loaded.graph, Subproblems.of(prop)
    box = Interval(*(t.reshape(-1, *graph.input_shape) for t in (prop.boxes.lower, prop.boxes.upper)))
    relaxation = linear_bounds(graph, box, Effort(iterations))
    rows = prop.wanted(problems.group, problems.open)
    wanted = prop.select_rows(rows, graph.output_shape, graph.input_shape)
    effort = Effort(1 if iterations == 1 else 2 * iterations)
    bounds = optimised_row_bounds(relaxation, graph.output, wanted, effort, lambda lower: False)
    every = torch.full((len(problems), len(prop.output)), -torch.inf, dtype=torch.float64)
    every[:, rows] = bounds.lower
    return worst(problems.proved(prop.margins(problems.group, every)))


def worst(problems: Subproblems) -> float:
    """The smallest margin over all disjuncts."""
    return float(problems.margins.amax(2).min())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+", type=Path, metavar="FOLDER")
    torch.set_num_threads(1)
    for family in parser.parse_args().families:
        rows: dict[str, list[tuple[float, float]]] = {}
        models: dict[Path, LoadedModel] = {}
        for instance in load_instances(family / "instances.csv"):
            loaded = models.get(instance.onnx) or models.setdefault(instance.onnx, load(instance.onnx))
            for method, result in margins(loaded, instance.vnnlib).items():
                rows.setdefault(method, []).append(result)
        sys.stdout.write(
            f"\n{family.name}\n\n| method | proved | median margin | median s | max s |\n|---|---|---|---|---|\n"
        )
        for method, results in rows.items():
            proved = sum(margin > 0 for margin, _ in results)
            middle = statistics.median(m if math.isfinite(m) else -math.inf for m, _ in results)
            seconds = [s for _, s in results]
            sys.stdout.write(
                f"| {method} | {proved} of {len(results)} | {middle:.3g} | "
                f"{statistics.median(seconds):.2f} | {max(seconds):.2f} |\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
