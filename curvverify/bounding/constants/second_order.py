"""Curvature of every node as a sum over the nonlinear nodes that it is made of.

    D^2 v [p, q] = sum_j F_vj (sigma_j'' o Dz_j p o Dz_j q),     F_vj the derivative of v by the output of node j,

for all nonlinear nodes j of any graph, so that the curvature is at most sum_j ||F_vj|| B_j with B_j a bound on the
bracket.  Products contribute Du p o Dv q + Du q o Dv p, blocks their own curvature.

Sources: Singla and Feizi, ICML 2020, lemma 1 (plain networks); ||diag(||w_i||) W|| is the closed form of Entesari,
Sharifi and Fazlyab, ICML 2024, theorem 3.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.maps import CentredMaps
from curvverify.bounding.constants.rules import mixed_bend, product_bend, product_third_order
from curvverify.bounding.constants.setting import Setting
from curvverify.bounding.constants.values import Bound, Constants, largest, plus, scaled, times
from curvverify.graph.layers import Node
from curvverify.numerics.norms import hadamard_gram_norm_upper, matrix_weighted_norm_upper, weighted_norm_upper
from curvverify.ops.base import Linear
from curvverify.ops.linear import Dense
from curvverify.ops.product import Product

FEW = 2
"""For so many weights the loop transformation is asked too, at the cost of a norm for each pair of nonlinear nodes."""


SMALL = 2**22
"""Largest number of entries, as a matrix, of a convolution whose weighted norms are asked for."""


@dataclass(eq=False)
class Bends:
    """B_j: upper bounds on sup ||sigma'' o Dz p o Dz q|| over unit p, q for every nonlinear node, as they are asked."""

    setting: Setting
    known: dict[int, Constants]
    maps: CentredMaps | None

    def __post_init__(self) -> None:
        self._found: dict[int, float] = {}
        self._third: dict[int, float] = {}

    def __getitem__(self, j: int) -> float:
        if j not in self._found:
            self._found[j] = self._bend(j)
        return self._found[j]

    def _bend(self, j: int) -> float:
        setting = self.setting
        node = setting.graph.nodes[j]
        block = setting.structure.blocks.get(j)
        if block is not None:
            L = self.known[block.input].lipschitz.value
            return times(block.curvature, L, L)
        if isinstance(node.op, Product):
            return product_bend(*(self.known[i] for i in node.inputs))
        (z,) = node.inputs
        weight = scaled(setting.second[j].magnitude, self.known[z].entries.lipschitz)
        return min(times(largest(weight), self.known[z].lipschitz.value), self._spread(z, weight))

    def third(self, j: int) -> float:
        """Upper bound on the third-order terms of one nonlinear node, over unit p, q and r.

        They are sigma^(3) o Dz p o Dz q o Dz r + 3 sigma^(2) o Dz p o D^2 z[q, r], symmetrised; and their like.
        """
        if j not in self._third:
            self._third[j] = self._third_order(j)
        return self._third[j]

    def _third_order(self, j: int) -> float:
        setting, known = self.setting, self.known
        node = setting.graph.nodes[j]
        block = setting.structure.blocks.get(j)
        if block is not None:
            L, C = known[block.input].lipschitz.value, known[block.input].curvature.value
            return plus(times(block.third_order, L, L, L), times(3.0, block.curvature, L, C))
        if isinstance(node.op, Product):
            return product_third_order(*(known[i] for i in node.inputs))
        (z,) = node.inputs
        x = known[z]
        weight = scaled(setting.third[j].magnitude, x.entries.lipschitz, x.entries.lipschitz)
        twist = min(times(largest(weight), x.lipschitz.value), self._spread(z, weight))
        return plus(twist, times(3.0, mixed_bend(setting.second[j].magnitude, x)))

    def _spread(self, z: int, weight: Tensor) -> float:
        """Upper bound on ||diag(weight) Dz||, beyond max(weight) ||Dz||."""
        top = largest(weight)
        if not 0.0 < top < float("inf"):
            return top
        return float(weighted_upper(self.setting, self.known, self.maps, z, weight.reshape(1, -1))[0])


def weighted_upper(
    setting: Setting, known: dict[int, Constants], maps: CentredMaps | None, z: int, weights: Tensor
) -> Tensor:
    """Upper bounds (R) on sup ||diag(w) Dz|| for weights (R, size of z), by the linear operator above z and by maps."""
    node = setting.graph.nodes[z]
    bound = scaled(weights.amax(1), known[z].lipschitz.value)
    if _has_cheap_norm(setting, z) and not (maps is not None and z in maps.targets and maps.affine(z)):
        (before,) = node.inputs
        norms = _weighted_norms(node, setting.graph.nodes[before].shape, weights)
        bound = bound.minimum(scaled(norms, known[before].lipschitz.value))
    if maps is not None and z in maps.targets and (len(weights) <= FEW or maps.affine(z)):
        bound = bound.minimum(maps.weighted(z, weights, known))
    return bound


def _has_cheap_norm(setting: Setting, z: int) -> bool:
    """Whether weighted norms of a node's own operator are worth their time: not for large convolutions."""
    node = setting.graph.nodes[z]
    if not isinstance(node.op, Linear) or len(node.inputs) != 1:
        return False
    return isinstance(node.op, Dense) or node.size * setting.graph.nodes[node.inputs[0]].size <= SMALL


def _weighted_norms(node: Node, shape_in: tuple[int, ...], weights: Tensor) -> Tensor:
    """Upper bounds (R) on ||diag(w) L|| for a linear node with one input: all at once for a matrix."""
    assert isinstance(node.op, Linear)
    if isinstance(node.op, Dense) and node.size == len(node.op.weight):
        return matrix_weighted_norm_upper(node.op.weight.unsqueeze(0), left=weights)
    norms = [weighted_norm_upper(node.op, shape_in, left=w.reshape(node.shape)) for w in weights]
    return torch.tensor(norms, dtype=torch.float64)


def layered_curvature(maps: CentredMaps, bends: Bends, v: int) -> Bound:
    """Upper bound on the curvature of a target: sum over sources j of the gain from j to v times B_j."""
    setting, known = maps.setting, bends.known
    total = 0.0
    for j in maps.sources_of(v):
        term = times(maps.gain(v, j), bends[j])
        if j in setting.second and j not in setting.structure.blocks:
            (z,) = setting.graph.nodes[j].inputs
            column = scaled(setting.second[j].magnitude.flatten(), maps.column_gains(v, j))
            L = known[z].lipschitz.value
            term = min(term, times(largest(column), L, L), _vectorised(maps, known, v, j))
        total = plus(total, term)
    return Bound(total, "layered")


def layered_third_order(maps: CentredMaps, bends: Bends, v: int) -> Bound:
    """Upper bound on the third-order constant of a target: sum over sources j of the gain from j to v times theirs.

    Sound because: D^3 a_j is the slope of node j times D^3 z_j plus the terms of `Bends.third`, and every z is linear
    in the a.
    """
    amount = 0.0
    for j in maps.sources_of(v):
        amount = plus(amount, times(maps.gain(v, j), bends.third(j)))
    return Bound(amount, "layered")


def _vectorised(maps: CentredMaps, known: dict[int, Constants], v: int, j: int) -> float:
    """||A|| ||W|| L^2 where v = G sigma(W u + b) + ..., with no other nonlinear node between j and v; else inf.

    Source: Entesari, Sharifi and Fazlyab, ICML 2024, theorem 3.8.
    """
    graph = maps.setting.graph
    (z,) = graph.nodes[j].inputs
    node = graph.nodes[z]
    if any(k > j for k in maps.sources_of(v)) or not isinstance(node.op, Dense) or node.size != len(node.op.weight):
        return float("inf")
    found = maps.maps.get((v, j))
    if found is None:
        return float("inf")
    second = maps.setting.second[j].magnitude.flatten()
    if not bool(second.isfinite().all()):
        return float("inf")
    L = known[node.inputs[0]].lipschitz.value
    rows = maps.setting.structure.row_norms(z)[0]
    norm = plus(
        times(float(hadamard_gram_norm_upper(found.matrix, node.op.weight)), largest(second)),
        times(found.error, largest(rows), largest(second)),
    )
    return times(norm, maps.setting.structure.norms(z)[0], L, L)
