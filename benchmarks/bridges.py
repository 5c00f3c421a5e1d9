"""Marabou with and without our bounds, side by side.  Needs maraboupy, whose last release wants numpy below 2: give it
an environment of its own, with curvverify in it.

    .venv/bin/python benchmarks/bridges.py ../shared/vnncomp/mnist_fc_2022 --filter 256x2 --seconds 60 --limit 4
    .venv/bin/python benchmarks/bridges.py ../shared/vnncomp/eran_relu_2021 --bounds-only --limit 4

`solve` decides one disjunct of the property after the other; a property holds where all are unsat.  `--bounds-only`
compares the output bounds of Marabou's own analysis (DeepPoly) instead: the margin is the smallest over the disjuncts.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
from maraboupy import Marabou

import curvverify
from curvverify.graph.loading import LoadedModel
from curvverify.plugins.exchange import BoundsFile, exported
from curvverify.plugins.marabou import tighten
from curvverify.spec.instances import load_instances
from curvverify.spec.query import Query


def readable(path: Path, folder: Path) -> Path:
    """A copy that Marabou reads: unpacked, and beginning behind the normalisation of the input, if there is one."""
    content = path.read_bytes()
    model = onnx.load_model_from_string(gzip.decompress(content) if path.suffix == ".gz" else content)
    nodes = list(model.graph.node)
    if (last := next((n for n in nodes[:4] if n.op_type == "Div"), None)) is not None:
        del model.graph.node[: nodes.index(last) + 1]
        model.graph.input[0].name = last.output[0]
    out = folder / "network.onnx"
    onnx.save(model, out)
    return out


def network_of(path: Path, bounds: BoundsFile, tightened: bool):
    """Marabou's network on the box of its input, with our bounds on everything behind it or without."""
    network = Marabou.read_onnx(str(path))
    box = bounds.values[network.inputNames[0]]
    for variable, a, b in zip(network.inputVars[0].ravel(), box.lower.ravel(), box.upper.ravel(), strict=True):
        network.setLowerBound(int(variable), float(a))
        network.setUpperBound(int(variable), float(b))
    if tightened:
        tighten(network, bounds)
    return network


def solved(path: Path, query: Query, bounds: BoundsFile, tightened: bool, seconds: float) -> tuple[str, float]:
    """The answer over all disjuncts within the time, and the time it took."""
    begun, answers = time.monotonic(), []
    for polytope in query.groups[0].disjuncts:
        left = seconds - (time.monotonic() - begun)
        if left < 1.0:
            return "timeout", seconds
        network = network_of(path, bounds, tightened)
        outputs = [int(v) for v in network.outputVars[0].ravel()]
        for row, b in zip(polytope.output_matrix, polytope.bound_cover, strict=True):
            terms = [(outputs[k], float(row[k])) for k in np.flatnonzero(row)]
            network.addInequality([v for v, _ in terms], [c for _, c in terms], float(b))
        options = Marabou.createOptions(timeoutInSeconds=max(1, int(left)), verbosity=0)
        answer = network.solve(verbose=False, options=options)[0]
        answers.append(answer.lower())
        if answers[-1] != "unsat":
            return answers[-1] or "timeout", time.monotonic() - begun
    return "unsat", time.monotonic() - begun


def margin(path: Path, query: Query, bounds: BoundsFile, tightened: bool) -> str:
    """The smallest margin over the disjuncts that Marabou's own bounds on the outputs give, or why there are none."""
    network = network_of(path, bounds, tightened)
    options = Marabou.createOptions(verbosity=0, tighteningStrategy="deeppoly")
    answer, found, _ = network.calculateBounds(verbose=False, options=options)
    if not found:
        return f"no bounds ({answer})"
    ends = np.array([found[int(v)] for v in network.outputVars[0].ravel()])
    margins = []
    for polytope in query.groups[0].disjuncts:
        positive, negative = np.maximum(polytope.output_matrix, 0), np.minimum(polytope.output_matrix, 0)
        lower = positive @ ends[:, 0] + negative @ ends[:, 1] - polytope.bound_cover
        margins.append(lower.max())
    return f"{min(margins):.3f}"


def ours(loaded: LoadedModel, query: Query) -> tuple[BoundsFile, float]:
    report = curvverify.bounds(loaded, query)
    return exported(report, loaded), report.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", type=Path)
    parser.add_argument("--filter", default="")
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--bounds-only", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = [i for i in load_instances(given.family / "instances.csv") if given.filter in f"{i.onnx} {i.vnnlib}"]
    sys.stdout.write("| property | our bounds s | Marabou alone | with our bounds |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        for instance in chosen[given.skip : given.skip + given.limit]:
            query, loaded = curvverify.load_query(instance.vnnlib), curvverify.load(instance.onnx)
            path = readable(instance.onnx, Path(folder))
            bounds, seconds = ours(loaded, query)
            cells = []
            for tightened in (False, True):
                if given.bounds_only:
                    cells.append(margin(path, query, bounds, tightened))
                else:
                    answer, took = solved(path, query, bounds, tightened, given.seconds)
                    cells.append(f"{answer} {took:.1f} s")
            name = f"{instance.onnx.name.split('.')[0]} {instance.vnnlib.name.split('.vnnlib')[0]}"
            sys.stdout.write(f"| {name} | {seconds:.1f} | {cells[0]} | {cells[1]} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
