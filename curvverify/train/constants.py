"""Lipschitz and curvature values of a live graph, differentiable by the network's parameters: estimates, no bounds.

The formulas are those of `curvverify.bounding.constants` over all of R^n.  Norms come from a few power iterations that
go on from the last step's vectors, so that a value is at or a little below what the same formula gives rigorously.
After training, `curvverify.curvature` gives the rigorous value.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvverify.errors import UnsupportedModelError, UnsupportedNode
from curvverify.graph.layers import Graph, Node
from curvverify.numerics.norms.estimates import row_weighted_norm_differentiable, spectral_norm_differentiable
from curvverify.ops.base import Elementwise, Input, Linear, Op
from curvverify.ops.linear import Concatenate, Convolution, Dense, Diagonal, Gather, Permute, Reduce, Reshape, Sum
from curvverify.types import Interval

FIRST = 30
"""Power iterations where there is no vector to go on from."""


class Warm:
    """The vectors that norms go on from, by name; part of the state of a training run."""

    def __init__(self) -> None:
        self._vectors: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The last step's vector, unless its shape has changed."""
        found = self._vectors.get(name)
        return found if found is not None and found.shape == shape else None

    def put(self, name: str, vector: Tensor) -> None:
        self._vectors[name] = vector.detach()

    def start(self, name: str, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, bool]:
        """(unit vectors along the last axis, whether they are fresh)."""
        known = self.get(name, shape)
        if known is not None:
            return known, False
        size = math.prod(shape)
        fresh = torch.cos(torch.arange(size, dtype=torch.float64) * 1.7 + 0.3).reshape(shape)
        return torch.nn.functional.normalize(fresh, dim=-1).to(like.dtype).to(like.device), True

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._vectors)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._vectors = dict(state)


@dataclass(frozen=True)
class Activation:
    """Over all real arguments: slopes in [low, high], second derivatives in [bend_low, bend_high]."""

    low: float
    high: float
    bend_low: float
    bend_high: float

    @property
    def steepest(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def bend(self) -> float:
        return max(abs(self.bend_low), abs(self.bend_high))

    @property
    def centre(self) -> float:
        return 0.5 * (self.low + self.high)

    @property
    def half(self) -> float:
        return 0.5 * (self.high - self.low)


@functools.cache
def _facts(kind: type[Elementwise], attributes: tuple[tuple[str, object], ...]) -> Activation:
    op = kind(**dict(attributes))  # type: ignore[arg-type]
    everything = Interval(*(torch.full((1,), s * math.inf, dtype=torch.float64) for s in (-1.0, 1.0)))
    first, second = op.derivative(1, everything), op.derivative(2, everything)
    return Activation(*(float(t) for t in (first.lower, first.upper, second.lower, second.upper)))


def activation(op: Elementwise) -> Activation:
    """The facts of an elementwise operator."""
    return _facts(type(op), tuple(sorted(vars(op).items())))


def refuse_kinks(graph: Graph) -> None:
    """UnsupportedModelError where an activation's curvature is infinite."""
    problems = [
        UnsupportedNode(
            n.name, n.op.name, None, n.shape, "its curvature is infinite: convert_to_low_curvature(model) replaces it"
        )
        for n in graph
        if isinstance(n.op, Elementwise) and not math.isfinite(activation(n.op).bend)
    ]
    if problems:
        raise UnsupportedModelError("curvature penalty", problems)


@dataclass(frozen=True, eq=False)
class LiveEstimates:
    """Of every node of a live graph: estimates of Lipschitz constant and curvature, scalars with gradients."""

    graph: Graph
    lipschitz_estimate: list[Tensor]
    curvature_estimate: list[Tensor]


@dataclass(eq=False)
class Compositional:
    """The compositional bound's value on a live graph, residual joins included.

    Composition: L = L_h L_g and C = L_h C_g + C_h L_g^2; a sum adds both; sigma(W u) has
    C = sup|sigma''| ||diag(||w_i||) W|| L_u^2 (dense), sup|sigma''| max ||w_i|| ||W|| L_u^2 (convolution).
    With `joined`, the Lipschitz constants of activations' inputs are also computed by LipLT's recursion
    L(v) = ||M_v|| + sum_j half_j ||M_vj|| L(z_j) over the whole graph, M the graph with slopes at their centres, so
    that a residual join is one linear map; the smaller one counts.
    Sources: Entesari, Sharifi, Fazlyab, ICML 2024 and NeurIPS 2023 (LipLT).
    """

    joined: bool = True
    iterations: int = 1
    warm: Warm = field(default_factory=Warm)

    def __call__(self, graph: Graph, curvature: bool = True) -> LiveEstimates:
        if curvature:
            refuse_kinks(graph)
        like = _constant(graph)
        zero, one = like.new_zeros(()), like.new_ones(())
        L: list[Tensor] = [one]
        C: list[Tensor] = [zero]
        for v in range(1, len(graph)):
            node = graph.nodes[v]
            if isinstance(node.op, Elementwise):
                (z,) = node.inputs
                a = activation(node.op)
                L.append(a.steepest * L[z])
                C.append(a.steepest * C[z] + a.bend * self._bend(graph, z, L) if curvature else zero)
                continue
            parts = self._norms(graph, v)
            if isinstance(node.op, Concatenate):
                L.append(torch.stack([L[i] for i in node.inputs]).square().sum().sqrt())
                C.append(torch.stack([C[i] for i in node.inputs]).square().sum().sqrt())
                continue
            L.append(_total(parts, [L[i] for i in node.inputs]))
            C.append(_total(parts, [C[i] for i in node.inputs]) if curvature else zero)
            wanted = v == graph.output or v in graph.bounded
            if self.joined and wanted and graph.levels[v]:
                L[v] = torch.minimum(L[v], self._liplt(graph, v, L))
        return LiveEstimates(graph, L, C)

    def norm(self, graph: Graph, v: int) -> Tensor:
        """||L_v|| of a linear node with one input."""
        return self._norms(graph, v)[0]

    def _norms(self, graph: Graph, v: int) -> list[Tensor]:
        node = graph.nodes[v]
        op = node.op
        fixed = _fixed_norms(op, len(node.inputs))
        if fixed is not None:
            return fixed
        assert isinstance(op, Linear)
        shape = graph.nodes[node.inputs[0]].shape
        name = f"norm {node.name}"
        state = self.warm.get(name, (1, *shape))
        found = spectral_norm_differentiable(op, shape, state, FIRST if state is None else self.iterations)
        self.warm.put(name, found.state)
        return [found.value]

    def _bend(self, graph: Graph, z: int, L: list[Tensor]) -> Tensor:
        """sup ||Dz p o Dz q|| over unit p, q: for sigma o z, to be multiplied by sup|sigma''|."""
        node, plain = graph.nodes[z], L[z].square()
        if isinstance(node.op, Dense) and len(node.shape) == 1:
            W = node.op.weight
            name, side = f"rows {node.name}", min(W.shape)
            state = self.warm.get(name, (side,))
            found = row_weighted_norm_differentiable(W, state, FIRST if state is None else self.iterations)
            self.warm.put(name, found.state)
            return torch.minimum(plain, found.value * L[node.inputs[0]].square())
        if isinstance(node.op, Convolution) and not node.op.transposed:
            rows = node.op.weight.flatten(1).norm(dim=1).max()
            return torch.minimum(plain, rows * self.norm(graph, z) * L[node.inputs[0]].square())
        return plain

    def _liplt(self, graph: Graph, v: int, L: list[Tensor]) -> Tensor:
        sources = [j for j in graph.ancestors[v] if isinstance(graph.nodes[j].op, Elementwise)]
        amount = self._map_norm(graph, 0, v)
        for j in sources:
            half = activation(graph.nodes[j].op).half  # type: ignore[arg-type]
            if half > 0.0:
                amount = amount + half * self._map_norm(graph, j, v) * L[graph.nodes[j].inputs[0]]
        return amount

    def _map_norm(self, graph: Graph, start: int, end: int) -> Tensor:
        """The norm of the linear map from one node's output to another node, slopes at their centres."""
        name = f"map {graph.nodes[start].name} -> {graph.nodes[end].name}"
        shape = (1, *graph.nodes[start].shape)
        like = _constant(graph)
        v, fresh = self.warm.start(name, (1, math.prod(shape)), like)
        v = v.reshape(shape)
        with torch.no_grad():
            for _ in range(FIRST if fresh else self.iterations):
                with torch.enable_grad():
                    at = v.clone().requires_grad_(True)
                    y = centred_map(graph, start, end, at)
                    (back,) = torch.autograd.grad(y, at, y.detach())
                size = back.norm()
                if not float(size) > 0.0:
                    break
                v = back / size
            u = centred_map(graph, start, end, v)
            u = u / u.norm().clamp(min=torch.finfo(u.dtype).tiny)
        self.warm.put(name, v.reshape(1, -1))
        return (u * centred_map(graph, start, end, v)).sum()


def _constant(graph: Graph) -> Tensor:
    """Some constant of the graph, for its dtype and device."""
    return next(t for n in graph for t in vars(n.op).values() if isinstance(t, Tensor) and t.is_floating_point())


def centred_map(graph: Graph, start: int, end: int, x: Tensor) -> Tensor:
    """What the value x (B, *S) of node `start` adds to node `end`: no biases, slopes at their centres."""
    values: dict[int, Tensor] = {start: x}
    for v in graph.ancestors[end]:
        node = graph.nodes[v]
        if v <= start or not any(i in values for i in node.inputs):
            continue
        if isinstance(node.op, Elementwise):
            values[v] = activation(node.op).centre * values[node.inputs[0]]
        else:
            assert isinstance(node.op, Linear)
            parts = [values[i] if i in values else x.new_zeros(len(x), *graph.nodes[i].shape) for i in node.inputs]
            values[v] = node.op.forward(*parts, bias=False)
    return values[end] if end in values else x.new_zeros(len(x), *graph.nodes[end].shape)


def _fixed_norms(op: Op, inputs: int) -> list[Tensor] | None:
    """Norms that need no iteration; None for the others."""
    if isinstance(op, Diagonal):
        return [torch.ones(()) if op.factor is None else op.factor.abs().max()]
    if isinstance(op, Sum):
        return [torch.tensor(abs(c)) for c in op.coefficients]
    if isinstance(op, Reduce):
        count = math.prod(op.shape_in[a] for a in op.axes)
        return [torch.tensor(op.scale * math.sqrt(count))]
    if isinstance(op, Reshape | Permute | Concatenate | Input):
        return [torch.ones(()) for _ in range(inputs)]
    if isinstance(op, Gather):
        index = op.index.flatten()
        most = int(torch.bincount(index[index >= 0]).max()) if bool((index >= 0).any()) else 0
        return [torch.tensor(math.sqrt(most))]
    return None


def _total(norms: list[Tensor], constants: list[Tensor]) -> Tensor:
    return sum((n * c for n, c in zip(norms[1:], constants[1:], strict=True)), norms[0] * constants[0])


def final_rows(graph: Graph) -> tuple[Node, Dense] | None:
    """The last node where it is a matrix, so that differences of outputs are differences of its rows."""
    last = graph.nodes[graph.output]
    return (last, last.op) if isinstance(last.op, Dense) and len(last.shape) == 1 else None
