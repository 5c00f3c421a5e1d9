"""Lipschitz, curvature and third-order constants beside what attacks attain and what the papers' formulas give.

    .venv/bin/python -m benchmarks.curvature graphs --count 210 --json out/curvature-graphs.json
    .venv/bin/python -m benchmarks.curvature networks ../shared/models
    .venv/bin/python -m benchmarks.curvature boxes ../shared/vnncomp/eran_sigmoid_2021 --count 3

* graphs: random smooth graphs (tests/soundness/curvature_graphs.py) over all of R^n, a box and a ball: bound over
  attained, median and worst, for our bounds and for the plain formulas.  Ends with 1 where an attack exceeds a bound.
* networks: the published networks, every reference value and ours; anchored constants over test images.
* boxes: one network over the boxes of its properties: global, local and sampled.

From the root of the repository, because the attacks are those of the tests.  Attained values are lower bounds of the
truth: a ratio of 1 is optimal, and a large one may be the attack's fault.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import curvverify
from benchmarks import baselines
from curvverify.graph import LoadedModel, load
from curvverify.graph.layers import Graph
from curvverify.spec import load_instances, load_query
from curvverify.types import Ball, Interval
from tests.soundness.curvature_attack import Box, Effort, Space, eigenvalues, norms
from tests.soundness.curvature_exact import refuted
from tests.soundness.curvature_graphs import FAMILIES, Sample, sample
from tests.soundness.curvature_series import with_rows
from tests.soundness.test_curvature_holds import KINDS, ORDERS, names, region_of, too_steep

EFFORTS = {
    "quick": Effort(64, 8, 2, 9),
    "medium": Effort(128, 12, 4, 24),
    "hard": Effort(400, 24, 8, 80),
}

QUANTITIES = ("L", "C", "T", "M")
"""Lipschitz constant, curvature, third order, and the spread of the Hessian's eigenvalues over the rows."""

Numbers = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """One graph over one region: the output's constants."""

    name: str
    family: str
    region: str
    ours: Numbers
    attained: Numbers
    plain: Numbers
    """Op by op, with global constants of the activations."""
    paper: Numbers
    """The papers' best formula, for plain networks over R^n."""
    formula: str
    seconds: float
    violations: tuple[str, ...]


def measured(case: Sample, kind: str, effort: Effort) -> Measured:
    graph = case.graph
    where, attacked = region_of(case, kind)
    started = time.perf_counter()
    report = curvverify.curvature(graph, where)
    seconds = time.perf_counter() - started
    output = report.output
    ours = {
        "L": output.lipschitz_upper,
        "C": output.curvature_upper,
        "T": output.third_order_upper,
        "M": output.eigenvalue_upper - output.eigenvalue_lower,
    }
    attained, wrong = {}, []
    for letter, (field, order) in zip("LCT", ORDERS, strict=True):
        found = norms(graph, attacked, order, effort, case.seed)
        attained[letter] = float(found.value[-1])
        wrong += names(graph, refuted(graph, [getattr(node, field) for node in report.nodes], found, order), field)
    weights = torch.eye(graph.nodes[-1].size, dtype=torch.float64)
    top, bottom = eigenvalues(graph, attacked, weights, effort, case.seed)
    attained["M"] = max(float(top.value.max()), 0.0) - min(float(bottom.value.min()), 0.0)
    wrong += too_steep(graph, top, bottom, weights, output)
    return Measured(
        case.name,
        case.family,
        kind,
        ours,
        attained,
        plain(graph, kind, where),
        papers(graph, kind),
        output.formula,
        seconds,
        tuple(wrong),
    )


def plain(graph: Graph, kind: str, where: object) -> Numbers:
    """The recursion op by op; products take their magnitudes from the region's box."""
    box = None
    if kind != "everywhere":
        if isinstance(where, Ball):
            low, high = where.centre - where.radius, where.centre + where.radius
        else:
            assert isinstance(where, tuple)
            low, high = where
        box = Interval(low.reshape(1, *graph.input_shape), high.reshape(1, *graph.input_shape))
    last = baselines.plain_graph(graph, box)[-1]
    return {"L": last.lipschitz, "C": last.curvature, "T": last.third, "M": 2.0 * last.curvature}


def papers(graph: Graph, kind: str) -> Numbers:
    """LipLT, CCB's recursion (as blocks, and with the last two matrices as one), HiTaB's, CRC's Theorem 4."""
    net = baselines.as_mlp(graph)
    if net is None or kind != "everywhere":
        return {}
    rows = torch.eye(len(net.weights[-1]), dtype=torch.float64)
    last = baselines.curvature_last_block(net) if len(net.weights) > 1 else 0.0
    return {
        "L": min(baselines.naive_lipschitz(net), baselines.liplt(net)[-1]),
        "C": min(baselines.curvature(net), last),
        "T": baselines.third_order(net),
        "M": 2.0 * float(baselines.crc_theorem4(net, rows).max()),
    }


def ratios(rows: list[Measured], of: Callable[[Measured], Numbers], letter: str) -> str:
    """median / worst of bound over attained, and how many are as good as infinite; where something was attained."""
    found = [of(r)[letter] / r.attained[letter] for r in rows if letter in of(r) and r.attained[letter] > 1e-12]
    finite = [x for x in found if x < 1e100]
    if not finite:
        return "-"
    infinite = f" ({len(found) - len(finite)} inf)" if len(found) > len(finite) else ""
    return f"{statistics.median(finite):.3g} / {max(finite):.3g}{infinite}"


def graphs(count: int, first: int, effort: Effort, console: Console) -> tuple[object, bool]:
    found: list[Measured] = []
    for seed in range(first, first + count):
        case = sample(seed)
        found += [measured(case, kind, effort) for kind in KINDS]
    for kind in KINDS:
        table = Table(title=f"bound / attained, median / worst; {kind}")
        table.add_column("family")
        table.add_column("graphs", justify="right")
        for letter in QUANTITIES:
            table.add_column(f"{letter} ours", justify="right")
            table.add_column(f"{letter} plain", justify="right")
            if kind == "everywhere":
                table.add_column(f"{letter} papers", justify="right")
        for family in [*FAMILIES, "all"]:
            rows = [r for r in found if r.region == kind and family in (r.family, "all")]
            cells = []
            for letter in QUANTITIES:
                cells += [ratios(rows, lambda r: r.ours, letter), ratios(rows, lambda r: r.plain, letter)]
                if kind == "everywhere":
                    cells.append(ratios(rows, lambda r: r.paper, letter))
            table.add_row(family, str(len(rows)), *cells)
        console.print(table)
    looser = [
        f"{r.name} {r.region} {letter}: ours {r.ours[letter]:.6g}, {name} {bound[letter]:.6g}"
        for r in found
        for name, bound in (("plain", r.plain), ("paper", r.paper))
        for letter in QUANTITIES
        if letter in bound and r.ours[letter] > bound[letter] * (1.0 + 1e-9)
    ]
    formulas = defaultdict(int)
    for r in found:
        formulas[r.formula] += 1
    seconds = [r.seconds for r in found]
    console.print(f"seconds per report: median {statistics.median(seconds):.3f}, largest {max(seconds):.3f}")
    console.print(f"looser than a plain or published formula: {len(looser)} of {len(found) * len(QUANTITIES)}")
    for line in looser[:20]:
        console.print(f"  {line}")
    console.print("formulas of the output: " + ", ".join(f"{n} {f}" for f, n in formulas.items()))
    wrong = [f"{r.name} {r.region}: {v}" for r in found for v in r.violations]
    console.print(f"violations: {len(wrong)} over {len(found)} graphs and regions")
    for line in wrong:
        console.print(f"  VIOLATION {line}")
    return [asdict(r) for r in found], not wrong


# ---------------------------------------------------------------------------------------- published networks


def networks(folder: Path, images: int, effort: Effort, console: Console) -> tuple[object, bool]:
    found = [network(path, folder, images, effort) for path in sorted(folder.glob("*.onnx"))]
    table = Table(title="published networks, all of R^n: listed formulas and ours (pairs: mean / max)")
    keys = list(found[0])
    for key in keys:
        table.add_column(key, justify="left" if key == "network" else "right")
    for row in found:
        table.add_row(*(str(row.get(key, "")) for key in keys))
    console.print(table)
    return found, True


def network(path: Path, folder: Path, images: int, effort: Effort) -> dict[str, object]:
    loaded = load(path, check=False)
    net = baselines.as_mlp(loaded.graph)
    assert net is not None
    half = [(y, t) for y, t in baselines.pairs(len(net.weights[-1])) if y < t]
    rows = torch.zeros(len(half), len(net.weights[-1]), dtype=torch.float64)
    for i, (y, t) in enumerate(half):
        rows[i, y], rows[i, t] = 1.0, -1.0
    theorem4 = baselines.crc_theorem4(net, rows)
    report = curvverify.curvature(loaded)
    pairs = curvverify.curvature(with_rows(loaded.graph, rows)).rows
    assert pairs is not None
    started = time.perf_counter()
    curvverify.curvature(loaded, pair=half[0])
    seconds = time.perf_counter() - started
    bends = pairs.curvature_upper
    tops = [*pairs.eigenvalue_upper, *(-v for v in pairs.eigenvalue_lower)]
    n = loaded.graph.nodes[0].size
    attained = [float(norms(loaded.graph, Space(n), order, effort).value[-1]) for order in (1, 2, 3)]
    anchored = _anchored(loaded, folder, images, half[0], baselines.curvature_of_pairs(net))
    return {
        "network": path.stem.removeprefix("ccb_mnist_").removeprefix("crc_mnist_"),
        "L product": f"{baselines.naive_lipschitz(net):.5g}",
        "LipLT": f"{baselines.liplt(net)[-1]:.5g}",
        "L ours": f"{report.output.lipschitz_upper:.5g}",
        "L attained": f"{attained[0]:.4g}",
        "K": f"{baselines.curvature_of_pairs(net):.5g}",
        "K4": f"{float(theorem4.mean()):.5g} / {float(theorem4.max()):.5g}",
        "pairs ours": f"{statistics.mean(bends):.5g} / {max(bends):.5g}",
        "M ours": f"{statistics.mean(tops):.6g} / {max(tops):.6g}",
        "C ours": f"{report.output.curvature_upper:.4g}",
        "C attained": f"{attained[1]:.4g}",
        "T HiTaB": f"{baselines.third_order(net):.4g}",
        "T ours": f"{report.output.third_order_upper:.4g}",
        "T attained": f"{attained[2]:.4g}",
        "anchored / K": anchored,
        "s per pair": f"{seconds:.2f}",
    }


def _anchored(loaded: LoadedModel, folder: Path, images: int, pair: tuple[int, int], whole: float) -> str:
    """Mean over test images of the anchored curvature of a pair, over all of R^n, relative to the published K."""
    data = folder.parent / "data" / "mnist.npz"
    if not data.is_file() or not images:
        return "-"
    pixels = np.load(data)["x_test"][:images].reshape(images, -1) / 255.0
    found = [
        curvverify.curvature(loaded, Ball(torch.from_numpy(x), math.inf), pair=pair, anchored=True).output
        for x in pixels
    ]
    return f"{statistics.mean(o.curvature_upper for o in found) / whole:.3g}"


# ---------------------------------------------------------------------------------------- boxes of properties


def boxes(family: Path, count: int, effort: Effort, console: Console) -> tuple[object, bool]:
    found, ok = [], True
    table = Table(title=f"{family.name}: constants over the boxes of properties")
    for column in ("instance", *(f"{q} {w}" for q in "LCT" for w in ("global", "local", "sampled")), "s"):
        table.add_column(column, justify="left" if column == "instance" else "right")
    everywhere: dict[Path, object] = {}
    for instance in load_instances(family / "instances.csv")[:count]:
        loaded = load(instance.onnx, check=False)
        if instance.onnx not in everywhere:
            everywhere[instance.onnx] = curvverify.curvature(loaded).output
        started = time.perf_counter()
        local = curvverify.curvature(loaded, instance.vnnlib)
        seconds = time.perf_counter() - started
        low, high = next(g.box.cover for g in load_query(instance.vnnlib).groups if not g.box.empty)
        region = Box(torch.from_numpy(low).double().flatten(), torch.from_numpy(high).double().flatten())
        row: dict[str, object] = {"instance": instance.vnnlib.stem}
        for letter, (field, order) in zip("LCT", ORDERS, strict=True):
            attack = norms(loaded.graph, region, order, effort)
            wrong = [
                node.name
                for node, value in zip(local.nodes, attack.value.tolist(), strict=True)
                if not value <= getattr(node, field) * (1.0 + 1e-9)
            ]
            ok = ok and not wrong
            row |= {
                f"{letter} global": getattr(everywhere[instance.onnx], field),
                f"{letter} local": getattr(local.output, field),
                f"{letter} sampled": float(attack.value[-1]),
            }
            if wrong:
                console.print(f"  VIOLATION {instance.vnnlib.stem} {field}: {', '.join(wrong)}")
        row["s"] = seconds
        found.append(row)
        table.add_row(*(v if isinstance(v, str) else f"{v:.4g}" for v in row.values()))
    console.print(table)
    return found, ok


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("graphs", "networks", "boxes"))
    parser.add_argument("folder", nargs="?", type=Path, help="of the networks, or of a family of properties")
    parser.add_argument("--count", type=int, help="graphs (210), or instances (3)")
    parser.add_argument("--first", type=int, default=0, help="first seed of the graphs")
    parser.add_argument("--images", type=int, default=4, help="test images for the anchored constants")
    parser.add_argument("--effort", choices=list(EFFORTS), default="medium")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, effort = Console(width=240 if not sys.stdout.isatty() else None), EFFORTS[chosen.effort]
    if chosen.what == "graphs":
        found, ok = graphs(chosen.count or 210, chosen.first, effort, console)
    elif chosen.folder is None:
        parser.error(f"{chosen.what} needs a folder")
    elif chosen.what == "networks":
        found, ok = networks(chosen.folder, chosen.images, effort, console)
    else:
        found, ok = boxes(chosen.folder, chosen.count or 3, effort, console)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
