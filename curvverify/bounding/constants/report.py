"""`curvverify.curvature`: the constants of every node and of the output, as frozen records."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from curvverify.bounding.constants.analysis import Analysis, analyse
from curvverify.bounding.constants.anchored import Anchored, anchored_constants
from curvverify.bounding.constants.ball import ball_ranges
from curvverify.bounding.constants.ranges import ranges_over
from curvverify.bounding.constants.setting import Setting, Structure, slopes_over
from curvverify.bounding.constants.values import Constants
from curvverify.bounding.linear import Effort
from curvverify.bounding.region import Region, RegionLike, region_of, region_size
from curvverify.errors import UsageError
from curvverify.graph import LoadedModel, load
from curvverify.graph.layers import Graph, Node
from curvverify.ops.base import Elementwise
from curvverify.ops.linear import Dense, Reshape
from curvverify.ops.product import Product

if TYPE_CHECKING:
    import os

    import onnx

Norm = Literal["l2", "linf"]


@dataclass(frozen=True)
class NodeConstants:
    """Upper bounds for the map from the input to one node's value, over the region.

    lipschitz_upper: on sup ||Df||; curvature_upper: on the Lipschitz constant of Df; third_order_upper: on that of
    D^2 f.  Values are measured in l_2, inputs in the report's norm.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    lipschitz_upper: float
    curvature_upper: float
    third_order_upper: float
    formula: str
    """The formulas that gave the Lipschitz constant and the curvature."""
    source: str
    """The ONNX node or torch module that the node came from."""
    reason: str
    """Why a constant is infinite where the inputs' are not; empty otherwise."""


@dataclass(frozen=True)
class OutputConstants:
    """The same for the output: the whole map, or the scalar z_y - z_t where a pair was asked for.

    eigenvalue_lower <= d^T Hessian d <= eigenvalue_upper for every row of the output and ||d|| <= 1 (the eigenvalues of
    the Hessian for the l_2 norm), everywhere on the region.
    """

    lipschitz_upper: float
    curvature_upper: float
    third_order_upper: float
    eigenvalue_upper: float
    eigenvalue_lower: float
    formula: str


@dataclass(frozen=True)
class RowsConstants:
    """Bounds on every entry of the output on its own: one number per entry."""

    lipschitz_upper: tuple[float, ...]
    curvature_upper: tuple[float, ...]
    eigenvalue_upper: tuple[float, ...]
    eigenvalue_lower: tuple[float, ...]


@dataclass(frozen=True)
class CurvatureReport:
    """Rigorous Lipschitz, curvature and third-order constants of every node, in topological order."""

    model: str
    region: str
    norm: str
    """Of the input: "l2" or "linf"."""
    anchored: bool
    """Whether Lipschitz constants and curvature hold for differences from the ball's centre only."""
    nodes: tuple[NodeConstants, ...]
    output: OutputConstants
    rows: RowsConstants | None
    """None where the output has too many entries."""
    seconds: float

    def __getitem__(self, name: str) -> NodeConstants:
        """The constants of the node of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)


def curvature(
    model: str | os.PathLike[str] | onnx.ModelProto | torch.nn.Module | LoadedModel | Graph,
    region: RegionLike = None,
    *,
    pair: tuple[int, int] | None = None,
    norm: Norm = "l2",
    anchored: bool = False,
    effort: Effort | None = None,
    shapes: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
) -> CurvatureReport:
    """Upper bounds on the Lipschitz constants of every node's value, of its Jacobian and of its Hessian.

    `region`: None for all of R^n; a VNN-LIB path or Query, a box (lower, upper) of tensors, or a `Ball`.  With `pair`
    (y, t) the output is the scalar z_y - z_t.  `norm` is that of the input; coordinates that a box holds fixed do not
    count.  `anchored` (for a ball of any radius, inf included) bounds ||f(y) - f(x)|| and ||Df(y) - Df(x)|| relative
    to ||y - x|| for the centre x only, which is smaller.  Infinite where no finite constant exists or was found.
    Raises UsageError for a pair, norm or region that makes no sense.
    """
    started = time.monotonic()
    if isinstance(model, torch.nn.Module) and shapes is None:
        size = region_size(region)
        if size is None:
            raise UsageError("a torch module over all of R^n: give its input's shape, as in shapes=(1, 784)")
        shapes = (1, size)
    loaded = model if isinstance(model, LoadedModel | Graph) else load(model, shapes=shapes)
    graph, name = (loaded, "graph") if isinstance(loaded, Graph) else (loaded.graph, loaded.name)
    graph = with_pair(graph.to(torch.float64), pair) if pair is not None else graph.to(torch.float64)
    where = region_of(region, graph.input_shape)
    if anchored and where.ball is None:
        raise UsageError("anchored constants belong to a point: give a ball as the region")
    with torch.no_grad():
        analysis = analysis_over(Structure(graph), where, norm, effort)
        assert where.ball is not None or not anchored
        at = anchored_constants(analysis, where.ball.centre) if anchored and where.ball is not None else None
    return _report(name, where.name, norm, analysis, at, started)


def analysis_over(structure: Structure, region: Region, norm: Norm = "l2", effort: Effort | None = None) -> Analysis:
    """The constants of every node over a region, measured in x itself."""
    return analyse(setting_over(structure, region, norm, effort))


def setting_over(structure: Structure, region: Region, norm: Norm = "l2", effort: Effort | None = None) -> Setting:
    """The region as ranges and slopes of all nodes; distances are those of x, fixed coordinates aside."""
    if norm not in ("l2", "linf"):
        raise UsageError(f"unknown norm {norm!r}: choose l2 or linf")
    p = 2.0 if norm == "l2" else math.inf
    graph = structure.graph
    ranges = ranges_over(graph, region, effort or Effort(), structure.known_ranges)
    if region.ball is not None and region.bounded:
        ranges = ball_ranges(structure, region.ball, ranges, region.free)
    return Setting(structure, ranges, slopes_over(graph, ranges), region.free, p)


def with_pair(graph: Graph, pair: tuple[int, int]) -> Graph:
    """The graph with the output z_y - z_t, shape (1,) or (1, 1); exact: a last layer is only merged where that is.

    UsageError where y or t is no entry of the output, or both are the same.
    """
    size, (y, t) = graph.nodes[graph.output].size, pair
    if not (0 <= y < size and 0 <= t < size and y != t):
        raise UsageError(f"--pair {y} {t}: choose two different outputs between 0 and {size - 1}")
    last = graph.nodes[-1]
    merged = _difference(last, y, t)
    if merged is not None:
        return Graph((*graph.nodes[:-1], merged))
    weight = torch.zeros(1, size, dtype=torch.float64)
    weight[0, y], weight[0, t] = 1.0, -1.0
    return with_rows(graph, weight, f"z_{y} - z_{t}")


def with_rows(graph: Graph, weight: Tensor, name: str) -> Graph:
    """The graph with R linear functions of its K outputs for outputs, weight (R, K): shape (R,) or (1, R)."""
    size, nodes = graph.nodes[graph.output].size, list(graph.nodes)
    if nodes[-1].shape not in ((size,), (1, size)):
        nodes.append(Node("outputs in a row", Reshape(nodes[-1].shape, (1, size)), (len(nodes) - 1,), (1, size)))
    nodes.append(Node(name, Dense(weight), (len(nodes) - 1,), (*nodes[-1].shape[:-1], len(weight))))
    return Graph(tuple(nodes))


def _difference(last: Node, y: int, t: int) -> Node | None:
    """The last layer reduced to the difference of two of its rows, where floating point gives that exactly."""
    op = last.op
    if not isinstance(op, Dense) or last.size != last.shape[-1]:
        return None
    a, b = op.weight[y], op.weight[t]
    weight = a - b
    if not bool((weight + b == a).all() and (a - weight == b).all()):
        return None
    bias = None if op.bias is None else (op.bias[y] - op.bias[t]).reshape(1)
    size = None if op.constant_size is None else (op.constant_size[y] + op.constant_size[t]).reshape(1)
    return replace(last, op=Dense(weight.unsqueeze(0), bias, size), shape=(*last.shape[:-1], 1))


def _report(
    name: str, region: str, norm: Norm, analysis: Analysis, anchored: Anchored | None, started: float
) -> CurvatureReport:
    constants = analysis.nodes if anchored is None else anchored.nodes
    graph = analysis.setting.graph
    nodes = tuple(
        NodeConstants(
            name=node.name,
            op=node.op.name,
            shape=node.shape,
            lipschitz_upper=c.lipschitz.value,
            curvature_upper=c.curvature.value,
            third_order_upper=c.third_order.value,
            formula=_formula(c),
            source=node.source,
            reason=_reason(analysis.setting, i, constants),
        )
        for i, (node, c) in enumerate(zip(graph.nodes, constants, strict=True))
    )
    rows = _rows(analysis, anchored)
    last = constants[-1]
    bend = last.curvature.value
    output = OutputConstants(
        last.lipschitz.value,
        bend,
        last.third_order.value,
        bend if rows is None else min(bend, max(rows.eigenvalue_upper)),
        -bend if rows is None else max(-bend, min(rows.eigenvalue_lower)),
        _formula(last),
    )
    return CurvatureReport(name, region, norm, anchored is not None, nodes, output, rows, time.monotonic() - started)


def _rows(analysis: Analysis, anchored: Anchored | None) -> RowsConstants | None:
    rows, entries = analysis.rows, (analysis.nodes if anchored is None else anchored.nodes)[-1].entries
    if rows is None:
        return None
    curved = entries.curvature.flatten()
    upper, lower = torch.minimum(rows.upper, curved), torch.maximum(rows.lower, -curved)
    return RowsConstants(*(_numbers(t) for t in (entries.lipschitz, curved, upper, lower)))


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.flatten().tolist())


def _formula(c: Constants) -> str:
    names = (c.lipschitz.formula, c.curvature.formula)
    return names[0] if names[0] == names[1] else f"{names[0]} / {names[1]}"


def _reason(setting: Setting, i: int, constants: tuple[Constants, ...]) -> str:
    """Why a node is the first with an infinite constant."""
    node = setting.graph.nodes[i]
    before = [constants[j] for j in node.inputs]
    if not node.nonlinear:
        return ""
    if math.isinf(constants[i].lipschitz.value) and all(math.isfinite(c.lipschitz.value) for c in before):
        if isinstance(node.op, Product):
            return "a factor is unbounded on the region"
        return f"the slope of {node.op.name} is unbounded on its input's range, or it jumps there"
    if math.isinf(constants[i].curvature.value) and all(math.isfinite(c.curvature.value) for c in before):
        if isinstance(node.op, Elementwise):
            return f"the slope of {node.op.name} jumps on its input's range, or changes without bound"
        return "a factor is unbounded on the region"
    return ""
