"""Curvature of every difference z_y - z_t of scores, differentiable by the network's parameters: estimates, no bounds.

For a plain network W_{L+1} sigma(W_L ... sigma(W_1 x)) and w = the difference of two last rows,

    -Hessian of z_y - z_t <= sum_I Dz_I^T diag(e_I) Dz_I,    e_I >= -(F_I o sigma''),

with F_I in [lo_I, hi_I] the derivative by the activations of layer I, taken backward through slope ranges by interval
arithmetic (the sign-split paths of Singla and Feizi's code).  Layer 1 is affine and gives the exact
lambda_max(W_1^T diag(e_1) W_1), with two layers their theorem 3; layer I > 1 gives ||diag(sqrt e_I) W_I||^2 Lambda_I^2
with Lambda_I the Lipschitz constant before it.  These are the formulas of `curvverify.bounding.constants.forms`.
Other networks: the curvature before the last matrix times the length of w.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvverify.errors import UsageError
from curvverify.graph.layers import Graph
from curvverify.ops.base import Elementwise
from curvverify.ops.linear import Dense, Diagonal, Reshape
from curvverify.train.constants import (
    FIRST,
    Activation,
    Compositional,
    Warm,
    activation,
    final_rows,
    refuse_kinks,
)


@dataclass(frozen=True, eq=False)
class PairEstimates:
    """(K, K) estimates with gradients: z_y - z_t has Hessian >= -bend[y, t] I and, so, <= bend[t, y] I; 0 for y = t."""

    bend_estimate: Tensor
    lipschitz_estimate: Tensor

    @property
    def curvature_estimate(self) -> Tensor:
        """K(W, y, t) = max(bend[y, t], bend[t, y])."""
        return torch.maximum(self.bend_estimate, self.bend_estimate.mT)


@dataclass(frozen=True, eq=False)
class Chain:
    """Matrices W_1 ... W_{L+1} and the activations between them."""

    matrices: list[Tensor]
    activations: list[Activation]


def chain_of(graph: Graph) -> Chain | None:
    """The graph as a plain network of matrices and activations; None where it is something else."""
    matrices: list[Tensor] = []
    activations: list[Activation] = []
    scale: Tensor | None = None
    for v, node in enumerate(graph.nodes[1:], 1):
        if node.inputs != (v - 1,):
            return None
        op = node.op
        if isinstance(op, Dense) and len(node.shape) == 1 and len(matrices) == len(activations):
            matrices.append(op.weight if scale is None else op.weight * scale)
            scale = None
        elif isinstance(op, Elementwise) and len(activations) == len(matrices) - 1:
            activations.append(activation(op))
        elif isinstance(op, Diagonal) and len(activations) == len(matrices):
            factor = torch.ones(()) if op.factor is None else op.factor
            scale = factor.reshape(-1) if scale is None else scale * factor.reshape(-1)
        elif not isinstance(op, Reshape):
            return None
    return Chain(matrices, activations) if activations and len(matrices) == len(activations) + 1 else None


@dataclass(eq=False)
class PairCurvature:
    """The formulas above; vectors go on from call to call."""

    iterations: int = 1
    compositional: Compositional = field(default_factory=Compositional)
    warm: Warm = field(default_factory=Warm)

    def __call__(self, graph: Graph) -> PairEstimates:
        """Raises UnsupportedModelError for activations of infinite curvature, UsageError without a last matrix."""
        refuse_kinks(graph)
        chain = chain_of(graph)
        return self._general(graph) if chain is None else self._layered(chain)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"pairs": self.warm.state_dict(), "nodes": self.compositional.warm.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.warm.load_state_dict(state["pairs"])
        self.compositional.warm.load_state_dict(state["nodes"])

    def _general(self, graph: Graph) -> PairEstimates:
        found = final_rows(graph)
        if found is None:
            raise UsageError("the curvature of pairs of classes needs a network that ends in a linear layer")
        last, op = found
        known = self.compositional(graph)
        (before,) = last.inputs
        size = _lengths(op.weight)
        return PairEstimates(size * known.curvature_estimate[before], size * known.lipschitz_estimate[before])

    def _layered(self, chain: Chain) -> PairEstimates:
        *inner, last = chain.matrices
        K = len(last)
        y, t = (i.to(last.device) for i in _all_pairs(K))
        low = high = last[y] - last[t]
        reach = self._reaches(chain)
        total = last.new_zeros(len(y))
        for i in range(len(inner) - 1, -1, -1):
            a = chain.activations[i]
            edge = _edge(low, high, a)
            form = self._form(f"form {i}", inner[i], edge)
            total = total + (form if i == 0 else form * reach[i].square())
            if i:
                low, high = _through(*_sloped(low, high, a), inner[i])
        bend = last.new_zeros(K, K).index_put((y, t), total)
        return PairEstimates(bend, _lengths(last) * reach[-1])

    def _form(self, name: str, W: Tensor, edge: Tensor) -> Tensor:
        """lambda_max(W^T diag(e) W) for e >= 0 (P, rows), as a Rayleigh quotient at vectors held constant."""
        v, fresh = self.warm.start(name, (len(edge), W.shape[1]), W)
        with torch.no_grad():
            for _ in range(FIRST if fresh else self.iterations):
                w = ((v @ W.mT) * edge) @ W
                size = w.norm(dim=1, keepdim=True)
                v = torch.where(size > 0.0, w / size.clamp(min=torch.finfo(w.dtype).tiny), v)
        self.warm.put(name, v)
        return (edge * (v @ W.mT).square()).sum(1)

    def _reaches(self, chain: Chain) -> list[Tensor]:
        """Lipschitz constants of what comes before every matrix: the smaller of the product and LipLT's recursion."""
        found: list[Tensor] = [chain.matrices[0].new_ones(())]
        arguments: list[Tensor] = []  # of the activations' inputs
        for i, a in enumerate(chain.activations):
            product = self._product(chain, i, i) * found[i]
            joined = self._product(chain, 0, i) if i else product
            for j in range(i):
                joined = joined + chain.activations[j].half * arguments[j] * self._product(chain, j + 1, i)
            arguments.append(torch.minimum(product, joined))
            found.append(a.steepest * arguments[-1])
        return found

    def _product(self, chain: Chain, first: int, last: int) -> Tensor:
        """||W_last c ... c W_first||, c the centres of the slopes between."""
        parts = chain.matrices[first : last + 1]
        centres = [a.centre for a in chain.activations[first:last]]
        name = f"product {first} {last}"
        v, fresh = self.warm.start(name, (1, parts[0].shape[1]), parts[0])

        def forward(x: Tensor) -> Tensor:
            for W, c in zip(parts, [1.0, *centres], strict=True):
                x = c * x @ W.mT
            return x

        with torch.no_grad():
            for _ in range(FIRST if fresh else self.iterations):
                w = forward(v)
                for W, c in zip(reversed(parts), reversed([1.0, *centres]), strict=True):
                    w = c * w @ W
                v = w / w.norm().clamp(min=torch.finfo(w.dtype).tiny)
        self.warm.put(name, v)
        return forward(v).norm()


def _all_pairs(K: int) -> tuple[Tensor, Tensor]:
    off = ~torch.eye(K, dtype=torch.bool)
    y, t = off.nonzero().unbind(1)
    return y, t


def _lengths(W: Tensor) -> Tensor:
    """||w_y - w_t|| (K, K), zero on the diagonal with gradient zero there."""
    square = (W.unsqueeze(1) - W.unsqueeze(0)).square().sum(2)
    same = torch.eye(len(W), dtype=torch.bool, device=W.device)
    return torch.where(same, 0.0, torch.where(same, 1.0, square).sqrt())


def _edge(low: Tensor, high: Tensor, a: Activation) -> Tensor:
    """max(0, sup of -(F sigma'')) over F in [low, high] and sigma'' in its range."""
    corners = (low * a.bend_low, low * a.bend_high, high * a.bend_low, high * a.bend_high)
    return -torch.stack(corners).amin(0).clamp(max=0.0)


def _sloped(low: Tensor, high: Tensor, a: Activation) -> tuple[Tensor, Tensor]:
    corners = torch.stack([low * a.low, low * a.high, high * a.low, high * a.high])
    return corners.amin(0), corners.amax(0)


def _through(low: Tensor, high: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    centre, radius = 0.5 * (low + high) @ W, 0.5 * (high - low) @ W.abs()
    return centre - radius, centre + radius
