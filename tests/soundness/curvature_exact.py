"""What the curvature attacks claim, computed again with fifty digits where it contradicts a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mpmath as mp
import numpy as np
import torch
from torch import Tensor

from curvverify.graph.layers import Graph
from curvverify.ops.base import Linear, Op
from curvverify.ops.elementwise.power import Power
from curvverify.ops.product import Product
from tests.ops.cases import CASES, Case, Exact, real_power
from tests.soundness.curvature_attack import Attained, Norm

DIGITS = 50

Array = np.ndarray
"""Of mpmath numbers."""

to_exact = np.vectorize(mp.mpf, otypes=[object])


def exact_function(op: Op) -> Exact:
    """The elementwise function over mpmath numbers."""
    if isinstance(op, Power):
        return real_power(op.exponent)
    name = Case(op, mp.tanh).name  # type: ignore[arg-type]
    return next(case.exact for case in CASES if case.name == name)


def exact_matrices(op: Linear, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """A linear operator's matrix for each input: the images of unit vectors, one product each, are exact."""
    zeros = [torch.zeros(1, *s, dtype=torch.float64) for s in shapes]
    found = []
    for i, shape in enumerate(shapes):
        columns = []
        for e in torch.eye(math.prod(shape), dtype=torch.float64):
            inputs = [e.reshape(1, *shape) if j == i else z for j, z in enumerate(zeros)]
            columns.append(op.forward(*inputs, bias=False).flatten().numpy())
        found.append(to_exact(np.stack(columns, 1)))
    return found


def exact_series(graph: Graph, node: int, x: Tensor, p: Tensor, order: int) -> list[Array]:
    """d^k/dt^k of one node at x + t p for k = 0..order; x, p (n,), in the working precision."""
    zero = to_exact(np.zeros(x.numel()))
    found = {0: [to_exact(x.detach().numpy()), to_exact(p.detach().numpy()), zero, zero][: order + 1]}
    for position in graph.ancestors[node]:
        if position:
            part = graph.nodes[position]
            inputs = [found[i] for i in part.inputs]
            found[position] = _rule(part.op, inputs, [graph.nodes[i].shape for i in part.inputs])
    return found[node]


def _rule(op: Op, inputs: list[list[Array]], shapes: list[tuple[int, ...]]) -> list[Array]:
    orders = range(len(inputs[0]))
    if isinstance(op, Product):
        u, v = inputs
        return [np.sum([math.comb(k, i) * u[i] * v[k - i] for i in range(k + 1)], 0) for k in orders]
    if isinstance(op, Linear):
        matrices = exact_matrices(op, shapes)
        value = [np.sum([m @ z[k] for m, z in zip(matrices, inputs, strict=True)], 0) for k in orders]
        shift = op.forward(*(torch.zeros(1, *s, dtype=torch.float64) for s in shapes)).flatten().numpy()
        return [value[0] + to_exact(shift), *value[1:]]
    f, z = exact_function(op), inputs[0]
    taylor = np.array([mp.taylor(f, point, len(z) - 1) for point in z[0]], dtype=object)
    s = [taylor[:, k] * math.factorial(k) for k in orders]
    chain = [
        lambda: s[0],
        lambda: s[1] * z[1],
        lambda: s[2] * z[1] ** 2 + s[1] * z[2],
        lambda: s[3] * z[1] ** 3 + 3 * s[2] * z[1] * z[2] + s[1] * z[3],
    ]
    return [chain[k]() for k in orders]


def _length(v: Array) -> Any:
    return mp.sqrt(sum((e * e for e in v), mp.mpf(0)))


def exact_norm(graph: Graph, node: int, x: Tensor, p: Tensor, order: int, norm: Norm = "l2") -> float:
    """||D^order f(x)[p, ..., p]|| / |p|^order of one node at one point, (n,) each; |p| in l2 or l_inf."""
    with mp.workdps(DIGITS):
        value = _length(exact_series(graph, node, x, p, order)[order])
        scale = _length(to_exact(p.detach().numpy())) if norm == "l2" else mp.mpf(float(p.abs().max()))
        return float(value / scale**order) if value else 0.0


def exact_quotient(graph: Graph, node: int, x: Tensor, y: Tensor, p: Tensor, order: int) -> float:
    """||(D^order f(x) - D^order f(y))[p, ..., p]|| / (||x - y|| |p|^order) of one node."""
    with mp.workdps(DIGITS):
        ends = [exact_series(graph, node, end, p, order)[order] for end in (x, y)]
        apart = _length(to_exact(x.detach().numpy()) - to_exact(y.detach().numpy()))
        return float(_length(ends[0] - ends[1]) / (apart * _length(to_exact(p.detach().numpy())) ** order))


def refuted(
    graph: Graph, bounds: Sequence[float], found: Attained, order: int, norm: Norm = "l2"
) -> list[tuple[int, float, float]]:
    """(node, bound, attained) wherever a node's bound is too small, decided exactly; NaN counts as too small."""
    wrong = []
    for node, (bound, value) in enumerate(zip(bounds, found.value.tolist(), strict=True)):
        if not value <= bound:
            x, p = found.x[node], found.p[node]
            if found.y is None:
                exact = exact_norm(graph, node, x, p, order, norm)
            else:
                exact = exact_quotient(graph, node, x, found.y[node], p, order)
            if not exact <= bound:
                wrong.append((node, bound, exact))
    return wrong
