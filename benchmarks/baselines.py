"""The papers' own formulas for Lipschitz, curvature and third-order constants, in plain float64: for comparison only.

Not rigorous: norms are what LAPACK returns, activation constants are rounded to nearest.  What they give on the
published networks is checked against the published numbers by `tests/golden/test_reference_networks.py`.

Sources: CCB = Entesari, Sharifi, Fazlyab, ICML 2024; LipLT = Fazlyab et al., NeurIPS 2023; CRC = Singla and Feizi,
ICML 2020; the third-order recursion is that of HiTaB, arXiv 2605.10621.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from curvverify.bounding.interval import interval_bounds
from curvverify.graph.layers import Graph
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.linear import Dense, Reshape, Sum
from curvverify.ops.product import Product
from curvverify.types import Interval

Block = Literal["naive", "closed", "vectorised"]
"""Forms of the Lipschitz constant of the Jacobian of sigma(W x): see `jacobian_lipschitz`."""


@dataclass(frozen=True)
class Constants:
    """Ranges of the derivatives of an activation over the reals."""

    slope: tuple[float, float]
    second: tuple[float, float]
    third: float

    @property
    def steepest(self) -> float:
        return max(map(abs, self.slope))

    @property
    def bend(self) -> float:
        return max(map(abs, self.second))


_S, _T = 1.0 / (6.0 * math.sqrt(3.0)), 4.0 / math.sqrt(27.0)

CONSTANTS = {
    "Sigmoid": Constants((0.0, 0.25), (-_S, _S), 0.125),
    "Tanh": Constants((0.0, 1.0), (-_T, _T), 2.0),
    "Softplus": Constants((0.0, 1.0), (0.0, 0.25), _S),
    "Gelu": Constants((-0.1289041452, 1.1289041452), (-0.1079819330, math.sqrt(2.0 / math.pi)), 0.7787696351),
    "Silu": Constants((-0.0998393201, 1.0998393201), (-0.0369143732, 0.5), 0.3081815158),
    "Sin": Constants((-1.0, 1.0), (-1.0, 1.0), 1.0),
}
"""DESIGN.md section 2 and PAPERS.md 1D."""


def constants(op: Elementwise) -> Constants:
    """The constants of an activation of this name; Softplus with its beta."""
    base = CONSTANTS[op.name]
    beta = getattr(op, "beta", 1.0)
    low, high = base.second
    return Constants(base.slope, (beta * low, beta * high), beta**2 * base.third)


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def row_norms(matrix: Tensor) -> Tensor:
    return matrix.norm(dim=1)


# ---------------------------------------------------------------------------------------- blocks


def jacobian_lipschitz(W: Tensor, activation: Constants, form: Block = "closed") -> float:
    """Lipschitz constant of the Jacobian of sigma(W x).

    naive: s2 ||W||_{2->inf} ||W||; closed (LipSDP, CCB Theorem 3.9): s2 ||diag(||w_i||) W||; vectorised (CCB Theorem
    3.8 with G = I): s2 ||A|| ||W|| with ||A||^2 = lambda_max(I o W W^T), the naive form again.
    """
    if form == "closed":
        return activation.bend * norm(row_norms(W)[:, None] * W)
    return residual_jacobian_lipschitz(torch.eye(len(W), dtype=W.dtype), W, activation, form)


def residual_jacobian_lipschitz(
    G: Tensor, W: Tensor, activation: Constants, form: Literal["naive", "vectorised", "closed"] = "vectorised"
) -> float:
    """Lipschitz constant of the Jacobian of H x + G sigma(W x).

    naive: s2 ||G|| ||W|| ||W||_{2->inf}; vectorised (CCB Theorem 3.8): s2 ||A|| ||W||, ||A||^2 = lambda_max of the
    entrywise product of G^T G and W W^T.
    """
    if form == "naive":
        return activation.bend * norm(G) * norm(W) * float(row_norms(W).max())
    gram = (G.T @ G) * (W @ W.T)
    return activation.bend * math.sqrt(float(torch.linalg.eigvalsh(gram)[-1])) * norm(W)


def residual_lipschitz(H: Tensor, G: Tensor, W: Tensor, activation: Constants, loop: bool = True) -> float:
    """Lipschitz constant of H x + G sigma(W x): LipLT's loop transformation, or the sum of the branches' norms."""
    low, high = activation.slope
    if loop:
        return norm(H + 0.5 * (low + high) * G @ W) + 0.5 * (high - low) * norm(G) * norm(W)
    return norm(H) + activation.steepest * norm(G) * norm(W)


# ---------------------------------------------------------------------------------------- plain networks


@dataclass(frozen=True)
class Mlp:
    """x -> W_L sigma(... sigma(W_1 x)): its matrices, and one activation between every two."""

    weights: tuple[Tensor, ...]
    activations: tuple[Constants, ...]


def as_mlp(graph: Graph) -> Mlp | None:
    """The graph as a plain network, with an identity appended where it ends in an activation; None where it is not."""
    weights: list[Tensor] = []
    activations: list[Constants] = []
    for position, node in enumerate(graph.nodes[1:], start=1):
        if node.inputs != (position - 1,):
            return None
        if isinstance(node.op, Dense):
            if len(weights) > len(activations):
                weights[-1] = node.op.weight @ weights[-1]
            else:
                weights.append(node.op.weight)
        elif isinstance(node.op, Elementwise) and node.op.name in CONSTANTS and len(weights) > len(activations):
            activations.append(constants(node.op))
        elif not isinstance(node.op, Reshape):
            return None
    if len(weights) == len(activations):
        weights.append(torch.eye(len(weights[-1]), dtype=torch.float64))
    return Mlp(tuple(weights), tuple(activations))


def naive_lipschitz(net: Mlp) -> float:
    """The product of the norms."""
    return math.prod(map(norm, net.weights)) * math.prod(a.steepest for a in net.activations)


def liplt(net: Mlp) -> list[float]:
    """LipLT: Lipschitz constants m_i of the preactivations, the output last.

    With sigma(z) = c z + r psi(z), psi 1-Lipschitz, c and r the centre and radius of the slopes, unrolling gives
    m_i = (prod c) ||W_i ... W_0|| + sum_j r_{i-1-j} (prod of the c between) ||W_i ... W_{i-j}|| m_{i-1-j};
    slopes in [0, 1] give the published weights 2^-i and 2^-(j+1).
    """
    found: list[float] = []
    for i in range(len(net.weights)):
        total, product, factor = 0.0, net.weights[i], 1.0
        for k in range(i - 1, -1, -1):
            low, high = net.activations[k].slope
            total += factor * 0.5 * (high - low) * norm(product) * found[k]
            factor *= 0.5 * (low + high)
            product = product @ net.weights[k]
        found.append(total + abs(factor) * norm(product))
    return found


def hidden_lipschitz(net: Mlp, loop: bool) -> list[float]:
    """Lambda_k: Lipschitz constants of sigma(W_k ...), by LipLT or as products; 1 for the input first."""
    if loop:
        return [1.0, *(a.steepest * m for a, m in zip(net.activations, liplt(net), strict=False))]
    found = [1.0]
    for W, a in zip(net.weights, net.activations, strict=False):
        found.append(found[-1] * norm(W) * a.steepest)
    return found


def curvature(net: Mlp, form: Block = "closed", loop: bool = True) -> float:
    """CCB's recursion C_k = L_Dh Lambda_{k-1}^2 + L_h C_{k-1} over blocks sigma(W x), then the last matrix."""
    total = 0.0
    for W, a, reach in zip(net.weights[:-1], net.activations, hidden_lipschitz(net, loop), strict=False):
        total = jacobian_lipschitz(W, a, form) * reach**2 + a.steepest * norm(W) * total
    return norm(net.weights[-1]) * total


def curvature_last_block(net: Mlp, form: Block = "closed") -> float:
    """The same with the last two matrices as one block G sigma(W x), which is what the published code evaluates.

    L_Dh = s2 ||A|| ||W|| and L_h = c ||G W|| + r ||G|| ||W||.
    """
    reach = hidden_lipschitz(net, loop=True)
    total = 0.0
    blocks = list(zip(net.weights[:-2], net.activations[:-1], reach, strict=False))
    for W, a, before in blocks:
        total = jacobian_lipschitz(W, a, form) * before**2 + a.steepest * norm(W) * total
    G, W, a = net.weights[-1], net.weights[-2], net.activations[-1]
    lipschitz = residual_lipschitz(torch.zeros(len(G), W.shape[1], dtype=G.dtype), G, W, a)
    return residual_jacobian_lipschitz(G, W, a) * reach[len(blocks)] ** 2 + lipschitz * total


def curvature_of_pairs(net: Mlp) -> float:
    """The published K of a difference of two outputs: sqrt 2 times `curvature_last_block`."""
    return math.sqrt(2.0) * curvature_last_block(net)


def third_order(net: Mlp) -> float:
    """HiTaB's T_k = T_h Lambda^3 + 3 L_Dh Lambda C_{k-1} + L_h T_{k-1} with T_h = s3 ||diag(||w_i||^2) W||."""
    bend = third = 0.0
    for W, a, reach in zip(net.weights[:-1], net.activations, hidden_lipschitz(net, loop=True), strict=False):
        slope, second = a.steepest * norm(W), jacobian_lipschitz(W, a)
        cubic = a.third * norm(row_norms(W)[:, None] ** 2 * W)
        third = cubic * reach**3 + 3.0 * second * reach * bend + slope * third
        bend = second * reach**2 + slope * bend
    return norm(net.weights[-1]) * third


# ---------------------------------------------------------------------------------------- CRC


def pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((y, t) for y in range(count) for t in range(count) if y != t)


def crc_theorem4(net: Mlp, rows: Tensor) -> Tensor:
    """CRC Theorem 4 for every row of `rows` W_L, (Q, N) -> (Q,): sum_I h_I (r_I)^2 max_j S_Ij.

    r_1 = ||W_1||, r_I = g ||W_I|| r_{I-1}; S of the last hidden layer = |row|, then S <- g S |W_I|.
    """
    reach = [norm(net.weights[0])]
    for W, a in zip(net.weights[1:-1], net.activations, strict=False):
        reach.append(a.steepest * norm(W) * reach[-1])
    S = (rows @ net.weights[-1]).abs()
    total = torch.zeros(len(rows), dtype=torch.float64)
    for i in range(len(net.weights) - 2, -1, -1):
        total = total + net.activations[i].bend * reach[i] ** 2 * S.amax(1)
        if i:
            S = net.activations[i - 1].steepest * (S @ net.weights[i].abs())
    return total


def two_layer_eigenvalues(net: Mlp, row: Tensor) -> tuple[float, float]:
    """(M, m) of CRC Theorem 3: extreme eigenvalues of W^T diag(the largest, the smallest of w sigma'') W, w = row G."""
    W, G = net.weights
    low, high = net.activations[0].second
    w = row @ G
    most = torch.maximum(w * low, w * high).clamp(min=0.0)
    least = torch.minimum(w * low, w * high).clamp(max=0.0)
    return _largest(W, most), -_largest(W, -least)


def _largest(W: Tensor, weights: Tensor) -> float:
    """lambda_max(W^T diag(weights) W), weights >= 0: dense where small, else by Lanczos to machine precision."""
    root = weights.sqrt()[:, None] * W
    if min(W.shape) <= 64:
        return norm(root) ** 2
    start = np.random.default_rng(0).standard_normal(W.shape[1])
    return float(eigsh((root.T @ root).numpy(), k=1, which="LA", v0=start, return_eigenvectors=False)[0])


# ---------------------------------------------------------------------------------------- any graph, op by op


@dataclass(frozen=True)
class Plain:
    """Lipschitz constants of a node's value, of its Jacobian and of its Hessian."""

    lipschitz: float
    curvature: float
    third: float


def matrices(op: Linear, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The dense matrix of a linear operator for every input."""
    zeros = [torch.zeros(1, *s, dtype=torch.float64) for s in shapes]
    found = []
    for i, shape in enumerate(shapes):
        eye = torch.eye(math.prod(shape), dtype=torch.float64)
        inputs = [z.expand(len(eye), *z.shape[1:]) for z in zeros]
        inputs[i] = eye.reshape(-1, *shape)
        found.append(op.forward(*inputs, bias=False).flatten(1).T)
    return found


def plain_graph(graph: Graph, box: Interval | None = None) -> list[Plain]:
    """Op by op: h after g has L_h L_g, L_h C_g + C_h L_g^2 and T_h L_g^3 + 3 C_h L_g C_g + L_h T_g; branches add up.

    Products take magnitudes from interval bounds over the box (None: all of R^n), activations their global constants.
    """
    if box is None:
        end = torch.full((1, *graph.input_shape), math.inf, dtype=torch.float64)
        box = Interval(-end, end)
    intervals = interval_bounds(graph, box)
    found = [Plain(1.0, 0.0, 0.0)]
    for node in graph.nodes[1:]:
        inputs = [found[i] for i in node.inputs]
        if isinstance(node.op, Elementwise):
            found.append(_after_activation(constants(node.op), inputs[0]))
        elif isinstance(node.op, Product):
            sizes = [float(intervals[i].magnitude.max()) for i in node.inputs]
            found.append(_after_product(inputs[0], inputs[1], sizes[0], sizes[1]))
        else:
            assert isinstance(node.op, Linear)
            if isinstance(node.op, Sum):
                factors = [abs(c) for c in node.op.coefficients]
            else:
                factors = [norm(m) for m in matrices(node.op, [graph.nodes[i].shape for i in node.inputs])]
            found.append(_added(factors, inputs))
    return found


def _added(factors: Sequence[float], inputs: Sequence[Plain]) -> Plain:
    def total(values: Sequence[float]) -> float:
        return sum(_times(f, v) for f, v in zip(factors, values, strict=True))

    return Plain(*map(total, ([g.lipschitz for g in inputs], [g.curvature for g in inputs], [g.third for g in inputs])))


def _after_activation(h: Constants, g: Plain) -> Plain:
    L, C, T = g.lipschitz, g.curvature, g.third
    third = h.third * L**3 + 3.0 * h.bend * _times(L, C) + h.steepest * T
    return Plain(h.steepest * L, h.steepest * C + h.bend * L**2, third)


def _after_product(u: Plain, v: Plain, size_u: float, size_v: float) -> Plain:
    L = _times(size_u, v.lipschitz) + _times(size_v, u.lipschitz)
    C = _times(size_u, v.curvature) + _times(size_v, u.curvature) + 2.0 * _times(u.lipschitz, v.lipschitz)
    mixed = 3.0 * (_times(u.lipschitz, v.curvature) + _times(v.lipschitz, u.curvature))
    return Plain(L, C, _times(size_u, v.third) + _times(size_v, u.third) + mixed)


def _times(a: float, b: float) -> float:
    """a b with 0 times infinity = 0: the derivative of something constant stays 0."""
    return 0.0 if a == 0.0 or b == 0.0 else a * b
