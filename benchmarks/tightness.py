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

from curvverify.bounding.linear import Effort
from curvverify.graph import LoadedModel, load
from curvverify.spec import load_instances, load_query
from curvverify.verification.checker import Checker
from curvverify.verification.property import compile_query
from curvverify.verification.state import Subproblems

ITERATIONS = (1, 2, 3, 8)


def margins(loaded: LoadedModel, vnnlib: Path) -> dict[str, tuple[float, float]]:
    """(worst margin, seconds) per method."""
    prop = compile_query(load_query(vnnlib))
    checker, problems = Checker(loaded.graph, prop), Subproblems.of(prop)
    found = {}
    with torch.no_grad():
        started = time.monotonic()
        found["interval"] = worst(checker.interval(problems).problems), time.monotonic() - started
        for n in ITERATIONS:
            started = time.monotonic()
            bounded = checker.linear(problems, Effort(n), max(1, 2 * n if n > 1 else 1)).problems
            found[f"linear, {n} pass{'es' if n > 1 else ''}"] = worst(bounded), time.monotonic() - started
    return found


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
