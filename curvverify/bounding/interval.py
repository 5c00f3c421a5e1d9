"""Interval bounds: every node's range, one pass forward."""

from __future__ import annotations

from curvverify.graph.layers import Graph, Node
from curvverify.numerics.rounding import nan_is_unbounded
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.joint import Joint
from curvverify.ops.product import Product
from curvverify.types import Interval


def node_image(node: Node, inputs: list[Interval]) -> Interval:
    """Bounds on one node's value from bounds on its inputs, by the operator's own rule."""
    if isinstance(node.op, Linear | Elementwise | Product | Joint):
        return nan_is_unbounded(node.op.interval(*inputs))
    raise TypeError(f"node {node.name!r}: no interval rule for {node.op.name}")


def interval_bounds(graph: Graph, box: Interval) -> list[Interval]:
    """Bounds on every node's value over each of B input boxes, (B, *S) per node, rounded outward in float64."""
    found = [box]
    for node in graph.nodes[1:]:
        found.append(node_image(node, [found[i] for i in node.inputs]))
    return found
