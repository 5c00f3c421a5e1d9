"""Taylor series of a network along x + t p, by autograd alone.

D^k f(x)[p, ..., p] is propagated through the graph: linear nodes act on every coefficient, products by Leibniz, and
elementwise functions by Faa di Bruno with derivatives that autograd takes of `forward`.  Nothing here asks a rule of
the package for a slope or a bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvverify.graph.layers import Graph, Node
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.linear import Dense, Reshape
from curvverify.ops.product import Product

HUGE = 1e140
"""Squares do not overflow below it."""


def unit(p: Tensor) -> Tensor:
    """Along the last axis; 0 stays 0."""
    return p / p.norm(dim=-1, keepdim=True).clamp(min=1e-300)


def elementwise_derivatives(op: Elementwise, z: Tensor, order: int) -> list[Tensor]:
    """sigma(z), sigma'(z), ... up to `order`, by autograd of `forward`; differentiable where z is."""
    onward = torch.is_grad_enabled() and z.requires_grad
    with torch.enable_grad():
        leaf = z if onward else z.detach().requires_grad_(True)
        found = [op.forward(leaf)]
        for k in range(1, order + 1):
            last = found[-1]
            slope = None
            if last.requires_grad:
                again = onward or k < order
                (slope,) = torch.autograd.grad(last.sum(), leaf, create_graph=again, allow_unused=True)
            found.append(torch.zeros_like(z) if slope is None else slope)
    return found if onward else [value.detach() for value in found]


def _elementwise_series(op: Elementwise, z: list[Tensor]) -> list[Tensor]:
    s = elementwise_derivatives(op, z[0], len(z) - 1)
    v = [s[0]]
    if len(z) > 1:
        v.append(s[1] * z[1])
    if len(z) > 2:
        v.append(s[2] * z[1] ** 2 + s[1] * z[2])
    if len(z) > 3:
        v.append(s[3] * z[1] ** 3 + 3.0 * s[2] * z[1] * z[2] + s[1] * z[3])
    return v


def _product_series(u: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    def coefficient(k: int) -> Tensor:
        value = u[0] * v[k]
        for i in range(1, k + 1):
            value = value + math.comb(k, i) * u[i] * v[k - i]
        return value

    return [coefficient(k) for k in range(len(u))]


def _linear_series(op: Linear, inputs: list[list[Tensor]]) -> list[Tensor]:
    value = op.forward(*(z[0] for z in inputs))
    rest = op.forward(*(torch.cat(z[1:]) for z in inputs), bias=False) if len(inputs[0]) > 1 else value[:0]
    return [value, *rest.chunk(max(len(inputs[0]) - 1, 1))][: len(inputs[0])]


def series(graph: Graph, x: Tensor, p: Tensor, order: int) -> list[list[Tensor]]:
    """d^k/dt^k of every node at x + t p for k = 0..order: x, p (R, n) -> per node order + 1 tensors (R, *S)."""
    start = [t.reshape(-1, *graph.input_shape) for t in (x, p)]
    found = [[*start, *(torch.zeros_like(start[0]) for _ in range(order - 1))][: order + 1]]
    for node in graph.nodes[1:]:
        inputs = [found[i] for i in node.inputs]
        if isinstance(node.op, Elementwise):
            found.append(_elementwise_series(node.op, inputs[0]))
        elif isinstance(node.op, Product):
            found.append(_product_series(inputs[0], inputs[1]))
        elif isinstance(node.op, Linear):
            found.append(_linear_series(node.op, inputs))
        else:
            raise TypeError(f"no series rule for {node.op.name}")
    return found


def directional(graph: Graph, x: Tensor, p: Tensor, order: int) -> Tensor:
    """D^order f(x)[p, ..., p] of all nodes f side by side, (R, M), M the sum of the nodes' sizes.

    An entry that autograd makes NaN or that is HUGE, far out where a function saturates or overflows, counts as 0:
    norms only fall.
    """
    found = torch.cat([node[order].flatten(1) for node in series(graph, x, p, order)], 1)
    return torch.where(found.abs() < HUGE, found, 0.0)


def owners(graph: Graph) -> Tensor:
    """(M,): the node that each of the M entries side by side belongs to."""
    return torch.repeat_interleave(torch.tensor([node.size for node in graph.nodes]))


def node_norms(graph: Graph, v: Tensor) -> Tensor:
    """(R, M) -> (R, K): the l2 norm of every node's part."""
    squares = torch.zeros(v.shape[0], len(graph), dtype=v.dtype)
    return squares.index_add(1, owners(graph), v**2).sqrt()


def jacobians(graph: Graph, x: Tensor) -> Tensor:
    """Df(x) of all nodes side by side, (B, M, n)."""
    b, n = x.shape
    p = torch.eye(n, dtype=x.dtype).repeat(b, 1)
    return directional(graph, x.repeat_interleave(n, 0), p, 1).reshape(b, n, -1).transpose(1, 2)


def hessians(graph: Graph, x: Tensor) -> Tensor:
    """D^2 f(x) of all nodes side by side, (B, M, n, n), by polarisation: H[p, q] = (H[p+q] - H[p] - H[q]) / 2."""
    b, n = x.shape
    eye = torch.eye(n, dtype=x.dtype)
    i, j = torch.triu_indices(n, n, 1)
    p = torch.cat([eye, eye[i] + eye[j]])
    v = directional(graph, x.repeat_interleave(len(p), 0), p.repeat(b, 1), 2).reshape(b, len(p), -1)
    found = torch.zeros(b, v.shape[2], n, n, dtype=x.dtype)
    squares = v[:, :n].transpose(1, 2)
    found.diagonal(dim1=2, dim2=3)[:] = squares
    mixed = 0.5 * (v[:, n:].transpose(1, 2) - squares[:, :, i] - squares[:, :, j])
    found[:, :, i, j] = mixed
    found[:, :, j, i] = mixed
    return found


def with_rows(graph: Graph, rows: Tensor) -> Graph:
    """The graph followed by rows . output, rows (Q, N): a difference of two outputs as a node of its own."""
    last = graph.nodes[-1]
    flat = Node("flat for rows", Reshape(last.shape, (1, last.size)), (graph.output,), (1, last.size))
    end = Node("rows", Dense(rows.to(torch.float64)), (len(graph),), (1, len(rows)))
    return Graph((*graph.nodes, flat, end))
