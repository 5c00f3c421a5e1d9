"""Linear bounds: backward substitution in which every bound row owns its supporting lines, found by Frank-Wolfe.

A row a.v of some node's value v is bounded from below by replacing, from the node back to the input, every nonlinear
operator by one supporting line of its envelope, lower or upper by the sign of the row's coefficient.  Each row keeps
its own points Z at which the lines support the envelopes.  One Frank-Wolfe step on the convexified problem is a
backward pass (gradient A at the input, a valid bound), the box corner x* minimising A.x, and a forward pass of x*
through the same lines, towards which Z moves by a step of 2 / (t + 3).  No automatic differentiation is involved, and
every iterate is a valid bound.

Source: the backward pass is that of CROWN (Zhang et al., NeurIPS 2018), the step Frank and Wolfe (1956).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvverify.bounding.coupling.build import coupled_blocks
from curvverify.bounding.coupling.weights import CoupledRows
from curvverify.bounding.relaxation import Relaxation
from curvverify.bounding.substitution import Rows, Substitution
from curvverify.graph.layers import Graph
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.linear import Convolution, Dense, Diagonal, Permute, Reshape
from curvverify.types import Deadline, Interval

SMOOTHING = (0.0, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
"""Spread of slopes at kinks by iteration: without it Frank-Wolfe stalls at them."""

PIECE = 0.25
"""GiB of rows that go through at once: more is no faster, and the deadline is polled between pieces."""

PRODUCT_GAP = 1e-6
"""Products whose planes are this close to each other (relative) need no better bounds on their factors."""


@dataclass(frozen=True, eq=False)
class RowBounds:
    """Proved lower bounds (B, R), with the linear form at the input that gave them: slope (B, R, *S_in)."""

    lower: Tensor
    slope: Tensor

    def better(self, other: RowBounds) -> RowBounds:
        """The larger bound of every row, with its own linear form."""
        take = other.lower > self.lower
        wide = take.reshape(*take.shape, *(1 for _ in range(self.slope.dim() - 2)))
        return RowBounds(torch.where(take, other.lower, self.lower), torch.where(wide, other.slope, self.slope))


@dataclass(frozen=True)
class Effort:
    """How hard to work for a bound, and within what."""

    iterations: int = 2
    memory: float = 8.0
    """GiB that the tensors of one pass may take; rows are cut into pieces that fit."""
    deadline: Deadline = field(default_factory=Deadline.never)
    coupling: int = 0
    """Levels of nonlinear nodes, from the input on, whose entries are bounded together."""


def row_bounds(relaxation: Relaxation, node: int, rows: Rows, effort: Effort) -> RowBounds:
    """Lower bounds on R rows of a node over every box, rigorous; -inf for rows the deadline left no time for.

    Frank-Wolfe searches in float32, and the last of the `effort.iterations` backward passes decides in float64.
    """
    found = [_piece(relaxation, node, rows[piece], effort) for piece in _pieces(relaxation, node, rows.count, effort)]
    return RowBounds(torch.cat([f.lower for f in found], 1), torch.cat([f.slope for f in found], 1))


def _piece(relaxation: Relaxation, node: int, rows: Rows, effort: Effort) -> RowBounds:
    if effort.deadline.passed:
        return _nothing(relaxation, rows)
    blocks = coupled_blocks(relaxation, node, effort.coupling)
    coupled = [CoupledRows(block) for block in blocks]
    search = Substitution(relaxation, node, rows, torch.float32, coupled)
    for t in range(effort.iterations - 1):
        search.forward(search.backward(_smoothing(t), rigorous=False), _step(t))
        if effort.deadline.passed:
            return _nothing(relaxation, rows)
    decide = Substitution(relaxation, node, rows, torch.float64, coupled)
    decide.points = {i: tuple(z.double() for z in zs) for i, zs in search.points.items()}
    trace = decide.backward(_smoothing(effort.iterations - 1), rigorous=True)
    return RowBounds(trace.lower, trace.slope)


def _nothing(relaxation: Relaxation, rows: Rows) -> RowBounds:
    """The bounds that hold without any work: -inf."""
    shape = (relaxation.box.lower.shape[0], rows.count)
    slope = torch.zeros(*shape, *relaxation.graph.input_shape, dtype=torch.float64)
    return RowBounds(torch.full(shape, -torch.inf, dtype=torch.float64), slope)


def optimised_row_bounds(
    relaxation: Relaxation, node: int, rows: Rows, effort: Effort, enough: Callable[[Tensor], bool]
) -> RowBounds:
    """Lower bounds on a few rows: the best over all Frank-Wolfe iterates, every one evaluated rigorously in float64.

    Stops as soon as `enough` says so of the bounds (B, R) reached, or past the deadline; -inf where that came first.
    """
    if effort.deadline.passed:
        return _nothing(relaxation, rows)
    blocks = coupled_blocks(relaxation, node, effort.coupling)
    passes = [
        Substitution(relaxation, node, rows[piece], torch.float64, [CoupledRows(block) for block in blocks])
        for piece in _pieces(relaxation, node, rows.count, effort)
    ]
    best: RowBounds | None = None
    for t in range(effort.iterations):
        traces = [p.backward(_smoothing(t), rigorous=True) for p in passes]
        now = RowBounds(torch.cat([r.lower for r in traces], 1), torch.cat([r.slope for r in traces], 1))
        best = now if best is None else best.better(now)
        if t + 1 == effort.iterations or effort.deadline.passed or enough(best.lower):
            break
        for substitution, trace in zip(passes, traces, strict=True):
            substitution.forward(trace, _step(t))
    assert best is not None
    return best


def _smoothing(t: int) -> float:
    """The spread of slopes at kinks in pass t: the schedule's last value goes on."""
    return SMOOTHING[min(t, len(SMOOTHING) - 1)]


def _step(t: int) -> float:
    """Frank-Wolfe step; the first pass sets the points outright."""
    return 2.0 / (t + 3)


def _pieces(relaxation: Relaxation, node: int, rows: int, effort: Effort, together: int = 1) -> list[slice]:
    """Consecutive ranges of rows, multiples of `together` long, whose passes fit into the memory."""
    graph = relaxation.graph
    sizes = [graph.nodes[i].size for i in graph.ancestors[node]]
    stored = sum(graph.nodes[i].size for i in graph.ancestors[node] if graph.nodes[i].nonlinear)
    squares = 0
    if effort.coupling and not effort.deadline.passed:
        squares = sum(block.size**2 for block in coupled_blocks(relaxation, node, effort.coupling))
    per_row = 8 * relaxation.box.lower.shape[0] * (4 * stored + 6 * max(sizes) + 2 * sizes[0] + 4 * squares)
    count = together * max(1, int(min(effort.memory, PIECE) * 2**30 / (per_row * together)))
    return [slice(i, min(i + count, rows)) for i in range(0, rows, count)]


def linear_bounds(
    graph: Graph, box: Interval, effort: Effort, known: Mapping[int, Interval] | None = None
) -> Relaxation:
    """Bounds on every node over B input boxes: interval bounds, and linear ones where a nonlinear node needs them.

    Rows are computed only for entries on which some consumer is neither affine nor saturated.  Past the deadline the
    remaining nodes keep their interval bounds, which are sound.  `known` bounds are intersected.
    """
    relaxation = Relaxation(graph, box)
    wanted = set(graph.bounded)
    for position in range(len(graph)):
        relaxation.append(None if known is None else known.get(position))
        if position in wanted and not _interval_is_exact(graph, position) and not effort.deadline.passed:
            loose = _loose_entries(relaxation, position)
            if bool(loose.any()):
                relaxation.tighten(position, entry_bounds(relaxation, position, loose, effort))
    return relaxation


def entry_bounds(relaxation: Relaxation, node: int, entries: Tensor, effort: Effort) -> Interval:
    """Linear bounds (B, *S) on chosen entries (mask (B, *S)) of a node; the others keep the bounds they have."""
    old = relaxation.intervals[node]
    shape = relaxation.graph.nodes[node].shape
    if not any(relaxation.graph.nodes[i].nonlinear for i in relaxation.graph.ancestors[node]):
        effort = replace(effort, iterations=1)  # affine in the input: the first pass is exact
    chosen, present = _packed(entries.flatten(1))
    lower, upper = old.lower.flatten(1).clone(), old.upper.flatten(1).clone()
    for piece in _pieces(relaxation, node, 2 * chosen.shape[1], effort, together=2):
        index, here = chosen[:, piece.start // 2 : piece.stop // 2], present[:, piece.start // 2 : piece.stop // 2]
        rows = torch.zeros(*index.shape, lower.shape[1], dtype=torch.float64)
        rows.scatter_(2, index.unsqueeze(2), here.double().unsqueeze(2))
        both = Rows(torch.cat([rows, -rows], 1).reshape(len(index), -1, *shape))
        below, above = row_bounds(relaxation, node, both, effort).lower.chunk(2, 1)
        lower.scatter_reduce_(1, index, torch.where(here, below, -torch.inf), "amax")
        upper.scatter_reduce_(1, index, torch.where(here, -above, torch.inf), "amin")
    return Interval(lower.reshape(old.shape), upper.reshape(old.shape))


def _packed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, K) of the set entries of every row of a mask (B, n), padded; and which of them are real."""
    count = mask.sum(1)
    most = int(count.max())
    order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return order, torch.arange(most) < count.unsqueeze(1)


def _loose_entries(relaxation: Relaxation, position: int) -> Tensor:
    """Mask (B, *S) of the entries whose bounds some nonlinear consumer depends on."""
    x = relaxation.intervals[position]
    mask = torch.zeros_like(x.lower, dtype=torch.bool)
    for consumer in relaxation.graph.nodes:
        if position in consumer.inputs and consumer.nonlinear:
            if isinstance(consumer.op, Elementwise):
                mask |= consumer.op.curved(x, relaxation.saturation)
            else:
                mask |= _worth_bounding(relaxation, position, consumer.inputs)
    return mask


def _worth_bounding(relaxation: Relaxation, position: int, factors: tuple[int, ...]) -> Tensor:
    """Mask (B, *S) of the entries whose product with the other factor, if that has bounds yet, is far from bilinear."""
    x = relaxation.intervals[position]
    others = [relaxation.intervals[i] for i in factors if i != position and i < len(relaxation.intervals)]
    gap, size = (x.width, x.magnitude) if not others else (x.width * others[0].width, x.magnitude * others[0].magnitude)
    return ~(gap <= PRODUCT_GAP * (1.0 + size))


def _interval_is_exact(graph: Graph, position: int) -> bool:
    """Whether the node is one product with the input's own entries, so that its interval bounds are attained."""
    seen_product = False
    while position:
        node = graph.nodes[position]
        if len(node.inputs) != 1 or not isinstance(node.op, Linear):
            return False
        if not isinstance(node.op, Reshape | Permute | Diagonal):
            if seen_product or not isinstance(node.op, Dense | Convolution):
                return False
            seen_product = True
        position = node.inputs[0]
    return True
