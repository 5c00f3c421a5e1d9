"""Sums of ReLUs of shifted copies of one value, put together as one function of it.

Exports of piecewise linear functions copy every entry, shift the copies, and sum them with weights behind a ReLU.
Bounded one by one the ReLUs of an entry know nothing of each other; their sum has an exact envelope.
"""

from __future__ import annotations

from dataclasses import replace

from curvverify.graph.layers import Graph, Node
from curvverify.graph.simplify import chain, rewritten
from curvverify.ops.elementwise.hinge import Relu
from curvverify.ops.elementwise.ramps import Ramps
from curvverify.ops.linear import Dense, Diagonal, Gather, Reshape

MOST = 256
"""Knots of one function."""


def with_ramps(graph: Graph) -> Graph:
    """The same function, with every weighted sum of ReLUs of shifted copies as one node.  The graph itself without."""
    return rewritten(graph, _ramps)


def _ramps(nodes: list[Node], node: Node) -> list[Node] | None:
    """sum_k weight_k max(x + shift_k, 0) along the last axis, the same function for every entry x."""
    op = node.op
    if not isinstance(op, Dense) or len(op.weight) != 1 or not 2 <= op.weight.shape[1] <= MOST:
        return None
    behind = chain(nodes, node.inputs[0], Relu, Diagonal, Gather)
    if behind is None:
        return None
    _, shifted, copied = behind
    shift, copies = shifted.op, copied.op
    assert isinstance(shift, Diagonal)
    assert isinstance(copies, Gather)
    count, index = op.weight.shape[1], copies.index
    if shift.factor is not None or shift.shift is None or shift.size is not None or shift.shift.shape != (count,):
        return None
    if index.shape[-1] != count or bool((index != index[..., :1]).any()) or bool((index < 0).any()):
        return None
    knots, order = (-shift.shift).sort()
    shape, start = tuple(index.shape[:-1]), len(nodes)
    made = [
        Node("", replace(copies, index=index[..., 0].contiguous()), copied.inputs, shape, node.source),
        Node("", Ramps(op.weight[0, order], knots), (start,), shape, node.source),
        Node("", Reshape(shape, node.shape), (start + 1,), node.shape, node.source),
    ]
    if op.bias is not None:
        offset = Diagonal(None, op.bias, op.size)
        made.append(Node("", offset, (start + 2,), node.shape, node.source))
    return made
