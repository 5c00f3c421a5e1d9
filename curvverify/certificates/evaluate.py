"""Margins z_y - z_t and their gradients at points: fast for searching, enclosed for deciding.

Errors are carried as one l_2 norm per node and point: a linear operator multiplies them by its norm and adds
gamma_n || |L| || ||x||, an elementwise one is evaluated on the interval that the error leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvverify.bounding.constants.setting import Structure
from curvverify.graph.layers import Graph, Node
from curvverify.numerics.norms import absolute_sums_upper
from curvverify.numerics.rounding import gamma
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.elementwise.smooth import Smooth
from curvverify.types import Interval

ROUND = 1.0 + 1e-9
"""Covers the rounding of norms and of arithmetic on errors themselves."""

TINY = 1e-150

ROWS = 1024
"""Gradients taken at a time."""


@dataclass(frozen=True, eq=False)
class Enclosed:
    """N values lower <= h <= upper, and approximate gradients (N, n) whose l_2 error is at most `error` (N)."""

    lower: Tensor
    upper: Tensor
    gradient: Tensor
    error: Tensor

    @property
    def slope_upper(self) -> Tensor:
        """Upper bounds on ||grad h||_2."""
        return ROUND * (length(self.gradient) + self.error)

    @property
    def slope_lower(self) -> Tensor:
        """Lower bounds on ||grad h||_2, at least 0."""
        return (length(self.gradient) / ROUND**2 - ROUND * self.error).clamp(min=0.0)


@dataclass(frozen=True, eq=False)
class Slopes:
    """sigma' at a point that is only known to within an l_2 distance e: centre + an error of at most half per entry,
    plus bend times the distance of the entry."""

    centre: Tensor
    half: Tensor
    bend: Tensor
    reach: Tensor
    """e (B)."""


@dataclass(frozen=True, eq=False)
class Forward:
    """All nodes' values at B points with l_2 errors (B), and the slopes of the elementwise nodes."""

    values: list[Tensor]
    errors: list[Tensor]
    slopes: dict[int, Slopes]


@dataclass(eq=False)
class Evaluator:
    """A network whose outputs, in a row, are the scores of its classes."""

    structure: Structure
    magnitude: float = 1.0
    """The size of scores, to which tolerances of searches are relative."""
    _absolute: dict[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        return self.structure.graph

    @property
    def classes(self) -> int:
        return self.graph.nodes[self.graph.output].size

    def scores(self, x: Tensor) -> Tensor:
        """Approximate scores (B, K) at x (B, n), in x's dtype."""
        return self.graph.to(x.dtype)(x.reshape(-1, *self.graph.input_shape)).flatten(1)

    def search(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Approximate h = rows . scores (N) and gradient (N, n) at x (N, n), in x's dtype."""
        graph = self.graph.to(x.dtype)
        values, slopes = _fast_forward(graph, x.reshape(-1, *graph.input_shape))
        scores = values[-1].flatten(1)
        rows = rows.to(x.dtype)
        state: dict[int, Tensor] = {graph.output: rows.reshape(-1, *graph.output_shape)}
        for v in range(graph.output, 0, -1):
            if v not in state:
                continue
            node, F = graph.nodes[v], state.pop(v)
            for i, G in zip(node.inputs, _fast_backward(node, F, values, slopes.get(v)), strict=True):
                state[i] = state[i] + G if i in state else G
        gradient = state[0].flatten(1) if 0 in state else torch.zeros_like(x)
        return (rows * scores).sum(1), gradient

    def enclose(self, x: Tensor, rows: Tensor, owner: Tensor | None = None) -> Enclosed:
        """Rows (N, K) of the scores at the points x (B, n), row k at point owner[k] (None: one row per point)."""
        if owner is None:
            owner = torch.arange(len(x))
            parts = [self._enclose(x[s], rows[s], owner[s] - s.start) for s in _slices(len(x))]
        else:
            forward = self.forward(x)
            parts = [self._rows(forward, rows[s], owner[s]) for s in _slices(len(rows))]
        return Enclosed(*(torch.cat([getattr(p, f) for p in parts]) for f in ("lower", "upper", "gradient", "error")))

    def _enclose(self, x: Tensor, rows: Tensor, owner: Tensor) -> Enclosed:
        return self._rows(self.forward(x), rows, owner)

    def absolute_norms(self, v: int) -> tuple[float, ...]:
        """Upper bounds on || |L_i| || of a linear node (Schur's test)."""
        if v not in self._absolute:
            node = self.graph.nodes[v]
            assert isinstance(node.op, Linear)
            shapes = [self.graph.nodes[i].shape for i in node.inputs]
            sums = absolute_sums_upper(node.op, *shapes)
            norms = [float((r.max() * c.max()).sqrt()) * ROUND if r.numel() and c.numel() else 0.0 for r, c in sums]
            self._absolute[v] = tuple(norms)
        return self._absolute[v]

    def forward(self, x: Tensor) -> Forward:
        """All nodes at the points x (B, n), with error bounds."""
        graph = self.graph
        values = [x.reshape(-1, *graph.input_shape)]
        errors = [torch.zeros(len(x), dtype=torch.float64)]
        slopes: dict[int, Slopes] = {}
        for v, node in enumerate(graph.nodes[1:], 1):
            inputs = [values[i] for i in node.inputs]
            before = [errors[i] for i in node.inputs]
            if isinstance(node.op, Linear):
                value, error = node.op.forward(*inputs), self._linear_error(v, node.op, inputs, before)
            elif isinstance(node.op, Elementwise):
                value, error, slopes[v] = _elementwise(node.op, inputs[0], before[0])
            else:
                (a, b), (d, e) = inputs, before
                value = a * b
                error = ROUND * (_most(a) * e + _most(b) * d + d * e + gamma(2) * length(value)) + TINY
            values.append(value)
            errors.append(error.nan_to_num(nan=torch.inf, posinf=torch.inf))
        return Forward(values, errors, slopes)

    def _linear_error(self, v: int, op: Linear, inputs: list[Tensor], before: list[Tensor]) -> Tensor:
        moved = torch.stack([n * e for n, e in zip(self.structure.norms(v), before, strict=True)]).sum(0)
        lost = length(op.absolute(*(x.abs() for x in inputs)))
        return ROUND * (moved + gamma(op.terms + 8) * lost) + TINY

    def _rows(self, forward: Forward, rows: Tensor, owner: Tensor) -> Enclosed:
        """The backward pass of rows (N, K) with errors."""
        graph = self.graph
        scores, slack = forward.values[-1].flatten(1)[owner], forward.errors[-1][owner]
        products = rows * scores
        h = products.sum(1)
        slack = ROUND * (length(rows) * slack + gamma(rows.shape[1] + 4) * products.abs().sum(1)) + TINY
        state = {graph.output: (rows.reshape(-1, *graph.output_shape), torch.zeros(len(rows), dtype=torch.float64))}
        for v in range(graph.output, 0, -1):
            if v not in state:
                continue
            for i, G, e in self._backward(v, *state.pop(v), forward, owner):
                if i in state:
                    F, d = state[i]
                    G, e = F + G, ROUND * (d + e + gamma(1) * (length(F) + length(G)))
                state[i] = G, e
        if 0 in state:
            gradient, error = state[0][0].flatten(1), state[0][1]
        else:
            gradient, error = torch.zeros(len(rows), graph.nodes[0].size, dtype=torch.float64), torch.zeros_like(h)
        broken = ~(gradient.isfinite().all(1) & error.isfinite())
        return Enclosed(
            (h - slack).nan_to_num(nan=-torch.inf, neginf=-torch.inf),
            (h + slack).nan_to_num(nan=torch.inf, posinf=torch.inf),
            torch.where(broken[:, None], 0.0, gradient),
            torch.where(broken, torch.inf, error),
        )

    def _backward(
        self, v: int, F: Tensor, error: Tensor, forward: Forward, owner: Tensor
    ) -> list[tuple[int, Tensor, Tensor]]:
        node = self.graph.nodes[v]
        if isinstance(node.op, Linear):
            size, lost = length(F), gamma(node.op.terms + 8)
            norms = zip(node.inputs, node.op.adjoint(F), self.structure.norms(v), self.absolute_norms(v), strict=True)
            return [(i, G, ROUND * (n * error + lost * a * size) + TINY) for i, G, n, a in norms]
        if isinstance(node.op, Elementwise):
            s = forward.slopes[v]
            centre, half, bend, reach = s.centre[owner], s.half[owner], s.bend[owner], s.reach[owner]
            G = F * centre
            steepest = _most(centre.abs() + half) + _most(bend) * reach
            changed = torch.where(reach > 0.0, _most(F * bend) * reach, 0.0)
            e = ROUND * (steepest * error + length(F * half) + changed + gamma(2) * length(G)) + TINY
            return [(node.inputs[0], G, e)]
        found = []
        for i, j in ((0, 1), (1, 0)):
            other = forward.values[node.inputs[j]][owner]
            d = forward.errors[node.inputs[j]][owner]
            G = F * other
            e = ROUND * ((_most(other) + d) * error + _most(F) * d + gamma(2) * length(G)) + TINY
            found.append((node.inputs[i], G, e))
        return found


def length(x: Tensor) -> Tensor:
    """l_2 norms (B) over all axes but the first, up to rounding (below 1e-10)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _most(x: Tensor) -> Tensor:
    return x.abs().flatten(1).amax(1)


def _elementwise(op: Elementwise, z: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Slopes]:
    """sigma at points within l_2 distance e (B) of z: the value at z, its error, and the slopes.

    Sound because: |sigma(z + d) - sigma(z)| <= |sigma'| |d| entry by entry, and |d| <= e in every entry too.
    """
    wide = e.reshape(-1, *(1 for _ in z.shape[1:]))
    here, near = Interval(z, z), Interval(z - wide, z + wide)
    value, image = op.forward(z), op.interval(here)
    lost = ROUND * length(torch.maximum(image.upper - value, value - image.lower))
    steep = op.derivative(1, near).magnitude
    moved = torch.where(e > 0.0, _most(steep) * e, 0.0)
    slope = op.derivative(1, here)
    finite = slope.lower.isfinite() & slope.upper.isfinite()
    centre = torch.where(finite, slope.centre, 0.0)
    half = torch.where(finite, torch.maximum(slope.upper - centre, centre - slope.lower) * ROUND, torch.inf)
    slopes = Slopes(centre, half, op.derivative(2, near).magnitude, e)
    return value, ROUND * (lost + moved) + TINY, slopes


def _slices(count: int) -> list[slice]:
    return [slice(i, min(i + ROWS, count)) for i in range(0, max(count, 1), ROWS)]


def _fast_forward(graph: Graph, x: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
    values, slopes = [x], {}
    for v, node in enumerate(graph.nodes[1:], 1):
        inputs = [values[i] for i in node.inputs]
        if isinstance(node.op, Smooth):
            value, slopes[v] = node.op.value_and_slope(inputs[0])
        elif isinstance(node.op, Elementwise):
            with torch.enable_grad():
                z = inputs[0].detach().requires_grad_(True)
                out = node.op.forward(z)
                (slopes[v],) = torch.autograd.grad(out.sum(), z)
            value = out.detach()
        else:
            value = node.op.forward(*inputs)
        values.append(value)
    return values, slopes


def _fast_backward(node: Node, F: Tensor, values: list[Tensor], slope: Tensor | None) -> tuple[Tensor, ...]:
    if isinstance(node.op, Linear):
        return node.op.adjoint(F)
    if slope is not None:
        return (F * slope,)
    u, v = (values[i] for i in node.inputs)
    return F * v, F * u
