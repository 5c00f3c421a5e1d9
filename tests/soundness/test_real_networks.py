"""Bounds of every node of every competition network are finite at the output and hold under a sampling attack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from curvverify.bounding.interval import interval_bounds
from curvverify.bounding.linear import Effort, linear_bounds
from curvverify.graph import load
from curvverify.spec import load_instances, load_query
from curvverify.types import Deadline, Interval
from tests.soundness.attack import points

SECONDS = 4.0
"""Time for linear bounds: what it does not reach keeps its interval bounds, which are attacked all the same."""

ROUNDING = 1e-9
"""Relative to a node's largest value: what evaluating a deep network in float64 may be off by."""

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vnncomp"


def first_instances() -> list[tuple[str, Path, Path]]:
    """One instance per network."""
    found: dict[Path, tuple[str, Path, Path]] = {}
    for table in sorted(SHARED.glob("*/instances.csv")):
        for instance in load_instances(table):
            name = f"{table.parent.name}-{instance.onnx.stem}"
            found.setdefault(instance.onnx.resolve(), (name, instance.onnx, instance.vnnlib))
    return list(found.values())


CASES = first_instances() if SHARED.is_dir() else []


@pytest.mark.skipif(not CASES, reason=f"no benchmark files at {SHARED}")
@pytest.mark.parametrize(("onnx", "vnnlib"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bounds_of_every_node(onnx: Path, vnnlib: Path) -> None:
    graph = load(onnx).graph
    low, high = next(g.box.cover for g in load_query(vnnlib).groups if not g.box.empty)
    shape = (1, *graph.input_shape)
    box = Interval(torch.from_numpy(low).reshape(shape), torch.from_numpy(high).reshape(shape))
    interval = interval_bounds(graph, box)
    linear = linear_bounds(graph, box, Effort(2, memory=2.0, deadline=Deadline.after(SECONDS))).intervals
    assert bool(interval[-1].lower.isfinite().all())
    assert bool(interval[-1].upper.isfinite().all())
    count = max(8, min(200, 2**22 // sum(node.size for node in graph)))
    with torch.no_grad():
        values = graph.values(points(box, count, 0))
    for node, value, a, b in zip(graph.nodes, values, interval, linear, strict=True):
        slack = ROUNDING * (1.0 + float(value.abs().max()))
        for bounds in (a, b):
            assert bool((value >= bounds.lower - slack).all()), node.name
            assert bool((value <= bounds.upper + slack).all()), node.name
