"""Attention put back together: products of matrices and softmax as one operator each.

The layer graph spells both out in scalar functions and single products.  That is best where few inputs are split, and
what the constants read; for bounds over many inputs `with_attention` gives the graph with the joint operators.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from curvverify.graph.layers import Graph, Node
from curvverify.graph.simplify import chain, rewritten
from curvverify.ops.base import Op
from curvverify.ops.elementwise.power import Reciprocal
from curvverify.ops.elementwise.softplus import Exp
from curvverify.ops.joint import MatMul, Softmax
from curvverify.ops.linear import Diagonal, Gather, Reduce, Reshape, Sum
from curvverify.ops.product import Product


def with_attention(graph: Graph) -> Graph:
    """The same function, with every product of two matrices and every softmax along the last axis as one node.

    The graph itself where it has no product of matrices.
    """
    found = rewritten(graph, lambda nodes, node: _matmul(nodes, node) or _softmax(nodes, node))
    return found if any(isinstance(node.op, MatMul) for node in found) else graph


def _is(nodes: list[Node], place: int, kind: type[Op]) -> bool:
    return isinstance(nodes[place].op, kind)


def _matmul(nodes: list[Node], node: Node) -> list[Node] | None:
    """y[..., i, j] = sum_k u[..., i, k] v[..., j, k], where the node is the sum over k of products of copies."""
    op = node.op
    if not isinstance(op, Reduce) or op.scale != 1.0 or op.axes != (len(op.shape_in) - 1,) or len(op.shape_in) < 3:
        return None
    product = nodes[node.inputs[0]]
    if not isinstance(product.op, Product) or not all(_is(nodes, i, Gather) for i in product.inputs):
        return None
    places = []
    for i, axis in zip(product.inputs, (-2, -3), strict=True):
        gather = nodes[i].op
        assert isinstance(gather, Gather)
        index = gather.index
        first = index.narrow(axis, 0, 1)
        if bool((index != first).any()):
            return None
        places.append(replace(gather, index=first.squeeze(axis).contiguous()))
    start = len(nodes)
    shape = (*op.shape_in[:-1],)
    factors = [
        Node("", gather, nodes[i].inputs, tuple(gather.index.shape), node.source)
        for gather, i in zip(places, product.inputs, strict=True)
    ]
    matmul = Node("", MatMul(), (start, start + 1), shape, node.source)
    return [*factors, matmul, Node("", Reshape(shape, node.shape), (start + 2,), node.shape, node.source)]


def _softmax(nodes: list[Node], node: Node) -> list[Node] | None:
    """1 / (1 + sum over j != i of exp(x_j - x_i)) with i and j along the last axis."""
    if type(node.op) is not Reciprocal:
        return None
    behind = chain(nodes, node.inputs[0], Diagonal, Reshape, Reduce, Exp, Sum)
    if behind is None:
        return None
    one, _, total, _, difference = behind
    assert isinstance(one.op, Diagonal)
    assert isinstance(total.op, Reduce)
    assert isinstance(difference.op, Sum)
    if one.op.factor is not None or one.op.shift is None or bool((one.op.shift != 1.0).any()):
        return None
    if total.op.scale != 1.0 or total.op.axes != (len(total.op.shape_in) - 1,):
        return None
    if difference.op.coefficients != (1.0, -1.0) or not all(_is(nodes, i, Gather) for i in difference.inputs):
        return None
    rival, own = (nodes[i] for i in difference.inputs)
    if rival.inputs != own.inputs or nodes[rival.inputs[0]].shape != node.shape:
        return None
    assert isinstance(rival.op, Gather)
    assert isinstance(own.op, Gather)
    if not _all_rivals(rival.op.index, own.op.index, node.shape):
        return None
    return [replace(node, op=Softmax(), inputs=rival.inputs)]


def _all_rivals(rival: Tensor, own: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the entry at (..., i) is compared with just those at (..., j), j != i."""
    places = torch.arange(own[..., 0].numel())
    count = shape[-1]
    if own.shape != rival.shape or tuple(own.shape) != (*shape, count - 1):
        return False
    same = torch.equal(own, places.reshape(shape).unsqueeze(-1).expand(own.shape))
    groups = (places.reshape(shape).unsqueeze(-2)).expand(*shape, count)
    return same and torch.equal(torch.cat([rival, own[..., :1]], -1).sort(-1).values, groups)
