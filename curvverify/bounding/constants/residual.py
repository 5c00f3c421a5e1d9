"""Residual blocks v = h u + G sigma(W u + b), bounded as one map with sigma's global slopes.

Sources: loop transformation, Fazlyab et al., NeurIPS 2023 (LipLT); ||A|| of the elementwise-product formula, Entesari,
Sharifi and Fazlyab, ICML 2024, theorem 3.8; 1-Lipschitz blocks, Araujo et al., ICLR 2023 (SLL), of which the proof used
here is a simpler case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.values import Bound, largest, plus, scaled, times
from curvverify.graph.layers import Graph
from curvverify.numerics.norms import (
    hadamard_gram_norm_upper,
    matrix_norm_upper,
    matrix_row_norms_upper,
    matrix_weighted_norm_upper,
)
from curvverify.numerics.norms.operators import materialise
from curvverify.numerics.rounding import gamma, round_up
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.linear import Sum
from curvverify.types import Interval


@dataclass(frozen=True)
class SkipBlock:
    """The map from the value of node `input` to that of node `output`, over all of R^n, l_2 to l_2."""

    input: int
    output: int
    kind: str
    lipschitz: float
    curvature: float
    third_order: float

    @property
    def row_lipschitz(self) -> float:
        return self.lipschitz

    @property
    def row_curvature(self) -> float:
        return self.curvature

    @property
    def row_third_order(self) -> float:
        return self.third_order


def find_skip_blocks(graph: Graph) -> tuple[SkipBlock, ...]:
    """All sums of a node and of G sigma(W that node + b) whose matrices are small enough to be formed."""
    found = []
    for position, node in enumerate(graph.nodes):
        if isinstance(node.op, Sum) and len(node.inputs) == 2:
            for own, other in ((0, 1), (1, 0)):
                block = _block(graph, position, node.inputs[own], node.inputs[other], node.op.coefficients, own)
                if block is not None:
                    found.append(block)
    return tuple(found)


def _chain(graph: Graph, position: int, stop: int) -> tuple[list[Linear], int]:
    """The single-input linear operators above a node, in order of application, and where they start."""
    ops: list[Linear] = []
    while position != stop and len(graph.nodes[position].inputs) == 1:
        op = graph.nodes[position].op
        if not isinstance(op, Linear):
            break
        ops.insert(0, op)
        position = graph.nodes[position].inputs[0]
    return ops, position


def _block(
    graph: Graph, output: int, skip: int, branch: int, coefficients: tuple[float, ...], own: int
) -> SkipBlock | None:
    outer, middle = _chain(graph, branch, skip)
    activation = graph.nodes[middle].op
    if not isinstance(activation, Elementwise):
        return None
    inner, start = _chain(graph, graph.nodes[middle].inputs[0], skip)
    if start != skip or not outer or not inner:
        return None
    W = materialise(inner, graph.nodes[skip].shape)
    G = materialise(outer, graph.nodes[middle].shape)
    if W is None or G is None:
        return None
    shape = graph.nodes[middle].shape
    everywhere = Interval(torch.full(shape, -torch.inf), torch.full(shape, torch.inf))
    slope, second, third = (activation.derivative(k, everywhere) for k in (1, 2, 3))
    factor = coefficients[1 - own]
    G = (factor * G[0], plus(times(abs(factor), G[1]), times(largest((factor * G[0]).abs()), G[0].numel() * 2.0**-52)))
    map_ = _Map(coefficients[own], G[0], G[1], W[0], W[1])
    lipschitz = map_.lipschitz(slope)
    return SkipBlock(skip, output, lipschitz.formula, lipschitz.value, map_.curvature(second), map_.third_order(third))


@dataclass(frozen=True, eq=False)
class _Map:
    """h u + G sigma(W u): matrices with bounds on their errors (spectral norm)."""

    h: float
    G: Tensor
    G_error: float
    W: Tensor
    W_error: float

    @property
    def norms(self) -> tuple[float, float]:
        return float(matrix_norm_upper(self.G, self.G_error)), float(matrix_norm_upper(self.W, self.W_error))

    def lipschitz(self, slope: Interval) -> Bound:
        """The least of |h| + |slope| ||G|| ||W||, of the loop transformation, and of the symmetric form."""
        g, w = self.norms
        steep = largest(slope.magnitude)
        bound = Bound(plus(abs(self.h), times(steep, g, w)), "sum")
        if not math.isfinite(steep):
            return bound
        return bound.least(self._loop(slope, g, w), self._symmetric(slope, w))

    def _loop(self, slope: Interval, g: float, w: float) -> Bound:
        """||h I + G diag(c) W|| + ||G diag(r)|| ||W|| for slopes c +- r, the second product balanced by a scaling."""
        c = slope.centre.flatten()
        r = round_up(torch.maximum(slope.upper.flatten() - c, c - slope.lower.flatten()))
        inside = self.G * c @ self.W
        inside.diagonal().add_(self.h)
        n = self.G.shape[1]
        frobenius = times(float(self.G.norm()), float(self.W.norm()), largest(c.abs()))
        error = plus(
            times(largest(c.abs()), plus(times(self.G_error, w), times(self.W_error, g))),
            times(gamma(n + 8), plus(frobenius, abs(self.h) * math.sqrt(len(inside)))),
        )
        columns, rows = self.G.norm(dim=0), self.W.norm(dim=1)
        balance = (rows / columns.clamp(min=1e-100)).sqrt().clamp(1e-6, 1e6)
        rest = times(
            plus(
                float(matrix_weighted_norm_upper(self.G, right=r * balance)), times(self.G_error, largest(r * balance))
            ),
            plus(
                float(matrix_weighted_norm_upper(self.W, left=1 / balance)), times(self.W_error, largest(1 / balance))
            ),
            1 + gamma(8),
        )
        rest = min(rest, times(largest(r), g, w))
        return Bound(plus(float(matrix_norm_upper(inside, error)), rest), "loop transformation")

    def _symmetric(self, slope: Interval, w: float) -> Bound:
        """For G = E - W^T Lambda with Lambda >= 0 diagonal: the Jacobian is h I - W^T Lambda D W, up to E D W.

        Sound because: with D in [a, b], a <= 0 <= b, and s = ||Lambda^1/2 W||^2, its eigenvalues are in
        [h - b s, h - a s].
        """
        size = self.W.square().sum(1)
        weight = (-(self.G * self.W.T).sum(0) / size.clamp(min=1e-300)).clamp(min=0.0)
        rest = self.G + self.W.T * weight
        root = round_up(weight.sqrt())
        s = plus(float(matrix_weighted_norm_upper(self.W, left=root)), times(self.W_error, largest(root)))
        s = times(s, s)
        a, b = min(float(slope.lower.min()), 0.0), max(float(slope.upper.max()), 0.0)
        rounding = times(gamma(8), plus(float(self.G.norm()), float((self.W.T * weight).norm())))
        errors = plus(self.G_error, times(self.W_error, largest(weight)), rounding)
        beyond = times(plus(float(matrix_norm_upper(rest, errors))), max(b, -a), w)
        widest = max(plus(self.h, times(-a, s)), plus(times(b, s), -self.h), 0.0)
        return Bound(plus(widest, beyond), "1-Lipschitz block")

    def curvature(self, second: Interval) -> float:
        """sup ||G (s o W p o W q)||: the least of ||G diag(s) o W|| ||W|| and ||G|| ||diag(s |w_i|) W||."""
        s = second.magnitude.flatten()
        if not bool(s.isfinite().all()):
            return math.inf
        g, w = self.norms
        rows = round_up(matrix_row_norms_upper(self.W) + self.W_error)
        top = largest(s)
        mixed = plus(times(self.G_error, largest(rows)), times(self.W_error, g))
        vectorised = times(top, plus(float(hadamard_gram_norm_upper(self.G, self.W)), mixed), w)
        weighted = scaled(s, rows)
        closed = plus(float(matrix_weighted_norm_upper(self.W, left=weighted)), times(largest(weighted), self.W_error))
        return min(vectorised, times(g, closed))

    def third_order(self, third: Interval) -> float:
        g, w = self.norms
        rows = round_up(matrix_row_norms_upper(self.W) + self.W_error)
        return times(g, largest(scaled(third.magnitude.flatten(), rows, rows)), w)
