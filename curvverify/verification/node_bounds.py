"""Bounds on every node of a network over an input box, as a report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvverify.bounding.interval import interval_bounds
from curvverify.bounding.linear import Effort, entry_bounds, linear_bounds
from curvverify.bounding.region import region_of, region_size
from curvverify.bounding.relaxation import SATURATION
from curvverify.errors import UsageError
from curvverify.graph import LoadedModel, load
from curvverify.graph.layers import Node
from curvverify.ops.base import Elementwise
from curvverify.ops.product import Product
from curvverify.spec.query import Query
from curvverify.types import Deadline, Interval
from curvverify.verification.given import Given
from curvverify.verification.options import Options

if TYPE_CHECKING:
    import os

    import onnx

METHODS = ("interval", "linear")


@dataclass(frozen=True, eq=False)
class NodeBounds:
    """lower <= value <= upper for one node, float64 tensors of the node's shape, over the whole input box."""

    name: str
    op: str
    source: str
    shape: tuple[int, ...]
    lower: Tensor
    upper: Tensor
    nonlinear: bool
    loose: int
    """Entries at which a nonlinear node is neither affine nor saturated on its input's bounds; 0 for linear nodes."""
    values: tuple[str, ...] = ()
    """Names of the ONNX values that the node is."""


@dataclass(frozen=True, eq=False)
class BoundsReport:
    """Rigorous bounds on every node, in topological order: the input first, the output last."""

    model: str
    method: str
    nodes: tuple[NodeBounds, ...]
    seconds: float
    given: str = ""
    """Where given bounds came from that these rest on."""

    def __getitem__(self, name: str) -> NodeBounds:
        """The bounds of the node of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)


def bounds(
    model: str | os.PathLike[str] | onnx.ModelProto | torch.nn.Module | LoadedModel,
    region: str | os.PathLike[str] | Query | tuple[Tensor, Tensor],
    options: Options | None = None,
    *,
    method: str = "linear",
    shapes: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    given: Given | None = None,
) -> BoundsReport:
    """Lower and upper bounds on every node's value over the region.

    `region` is a VNN-LIB path or Query (the smallest box around its input boxes) or a pair (lower, upper) of tensors
    of the input's size.  `shapes` as for `verify`.  `method` is "interval" or "linear" (intersected with interval
    bounds).  Sound over the real numbers, rounding included.  `given` bounds are intersected, and the
    report rests on them.

    Raises UsageError for an unknown method or an empty or mis-shaped region.
    """
    options = options or Options()
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if given is not None and method == "interval":
        raise UsageError("given bounds tighten linear bounds: choose the method linear")
    started = time.monotonic()
    deadline = Deadline.after(options.timeout)
    if isinstance(model, torch.nn.Module) and shapes is None:
        shapes = (1, region_size(region) or 1)
    loaded = model if isinstance(model, LoadedModel) else load(model, shapes=shapes)
    graph = loaded.graph
    found = region_of(region, graph.input_shape).box
    box = Interval(found.lower.unsqueeze(0), found.upper.unsqueeze(0))
    with torch.no_grad():
        if method == "interval":
            intervals = interval_bounds(graph, box)
        else:
            effort = Effort(options.refine_iterations, options.memory, deadline)
            relaxation = linear_bounds(graph, box, effort, None if given is None else given.known)
            every = torch.ones_like(relaxation.intervals[-1].lower, dtype=torch.bool)
            relaxation.tighten(graph.output, entry_bounds(relaxation, graph.output, every, effort))
            intervals = relaxation.intervals
    nodes = tuple(
        NodeBounds(
            name=node.name,
            op=node.op.name,
            source=node.source,
            shape=node.shape,
            lower=intervals[i].lower[0],
            upper=intervals[i].upper[0],
            nonlinear=node.nonlinear,
            loose=_loose(node, intervals),
            values=node.values,
        )
        for i, node in enumerate(graph.nodes)
    )
    source = "" if given is None else given.source
    return BoundsReport(loaded.name, method, nodes, time.monotonic() - started, source)


def _loose(node: Node, intervals: list[Interval]) -> int:
    """Entries of a nonlinear node that are not exactly affine or saturated over its input's bounds."""
    if isinstance(node.op, Elementwise):
        return int(node.op.curved(intervals[node.inputs[0]], SATURATION).sum())
    if isinstance(node.op, Product):
        u, v = (intervals[i].width for i in node.inputs)
        return int(((u > 0) & (v > 0)).sum())
    return 0
