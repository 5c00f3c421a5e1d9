"""Linear bounds: backward substitution in which every bound row owns its supporting lines, found by Frank-Wolfe.

A row a.v of some node's value v is bounded from below by replacing, from the node back to the input, every nonlinear
operator by one supporting line of its envelope, lower or upper by the sign of the row's coefficient.  Each row keeps
its own points Z at which the lines support the envelopes.  One Frank-Wolfe step on the convexified problem is a
backward pass (gradient A at the input, a valid bound), the box corner x* minimising A.x, and a forward pass of x*
through the same lines, towards which Z moves by a step of 2 / (t + 3).  No automatic differentiation is involved, and
every iterate is a valid bound.

Source: DESIGN.md section 4(b); the backward pass is that of CROWN (Zhang et al., NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvverify.bounding.interval import node_image
from curvverify.graph.layers import Graph
from curvverify.numerics.rounding import TINY, gamma
from curvverify.ops.base import Elementwise, Envelope, Linear, Lines
from curvverify.ops.linear import Convolution, Dense, Diagonal, Permute, Reshape
from curvverify.ops.product import Planes, Product
from curvverify.types import Deadline, Interval

SMOOTHING = (0.0, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
"""Spread of slopes at kinks by iteration: without it Frank-Wolfe stalls at them."""

PIECE = 0.25
"""GiB of rows that go through at once: more is no faster, and the deadline is polled between pieces."""

SATURATION = 1e-4
"""Entries whose image is narrower than this are bounded by constants, which makes later products sparse."""


PRODUCT_GAP = 1e-6
"""Products whose planes are this close to each other (relative) need no better bounds on their factors."""


@dataclass(frozen=True, eq=False)
class Rows:
    """R linear functions of a node's value for each of B boxes: coefficients (B, R, *S), B = 1 where shared.

    `input` (B or 1, R, *S_in) adds a linear function of the network's input.
    """

    coefficients: Tensor
    input: Tensor | None = None

    @property
    def count(self) -> int:
        return self.coefficients.shape[1]

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        return Rows(self.coefficients[:, rows], None if self.input is None else self.input[:, rows])


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


@dataclass(eq=False)
class Relaxation:
    """A network over B input boxes: bounds of every node, and the envelopes of the nonlinear ones.

    Nodes are added in topological order.  All bounds are float64; a float32 copy of an envelope is made when a search
    asks for it.
    """

    graph: Graph
    """In float64."""
    box: Interval
    """B input boxes, (B, *S_in) in float64."""
    intervals: list[Interval] = field(default_factory=list)
    magnitudes: list[Tensor] = field(default_factory=list)
    """Upper bounds on the sums of absolute terms that every node's value is made of: what rounding errs relative to."""
    saturation: float = SATURATION
    _envelopes: dict[tuple[int, torch.dtype], Envelope] = field(default_factory=dict)
    _finite: dict[int, bool] = field(default_factory=dict)

    def append(self, known: Interval | None) -> None:
        """Bound the next node from its inputs' bounds; `known` bounds are intersected."""
        position = len(self.intervals)
        if position == 0:
            image, magnitude = self.box, self.box.magnitude
        else:
            node = self.graph.nodes[position]
            inputs = [self.intervals[i] for i in node.inputs]
            image = node_image(node, inputs)
            magnitude = node.op.magnitude(*inputs) if isinstance(node.op, Linear) else image.magnitude
        if known is not None:
            image = consistent(image.intersect(known), image)
        self.intervals.append(image)
        self.magnitudes.append(magnitude)

    def tighten(self, position: int, bounds: Interval) -> None:
        """Intersect a node's bounds, before any envelope has been built on them."""
        old = self.intervals[position]
        self.intervals[position] = consistent(old.intersect(bounds), old)

    def envelope(self, position: int, dtype: torch.dtype) -> Envelope:
        """Supporting lines of an elementwise node over its input's bounds."""
        if (position, dtype) not in self._envelopes:
            if dtype == torch.float64:
                node = self.graph.nodes[position]
                assert isinstance(node.op, Elementwise)
                built = node.op.envelope(self.intervals[node.inputs[0]], saturation=self.saturation)
            else:
                built = self.envelope(position, torch.float64).to(dtype)
            self._envelopes[position, dtype] = built
        return self._envelopes[position, dtype]

    def finite(self, position: int) -> bool:
        """Whether a node's bounds are all finite."""
        if position not in self._finite:
            x = self.intervals[position]
            self._finite[position] = bool(x.lower.isfinite().all() and x.upper.isfinite().all())
        return self._finite[position]

    def select(self, boxes: Tensor) -> Relaxation:
        """The same for some of the boxes."""
        return Relaxation(
            self.graph,
            self.box[boxes],
            [x[boxes] for x in self.intervals],
            [m[boxes] for m in self.magnitudes],
            self.saturation,
        )


def consistent(tightened: Interval, fallback: Interval) -> Interval:
    """The tightened bounds, except where rounding has crossed them: there the wider ones."""
    crossed = ~(tightened.lower <= tightened.upper)
    if not bool(crossed.any()):
        return tightened
    return Interval(
        torch.where(crossed, fallback.lower, tightened.lower), torch.where(crossed, fallback.upper, tightened.upper)
    )


@dataclass(eq=False)
class _Trace:
    """What one backward pass leaves behind for the forward pass: the lines of every nonlinear node."""

    slope: Tensor
    """(B, R, *S_in): the row's linear form at the input."""
    lower: Tensor
    """(B, R): the bound; rigorous where the pass was."""
    lines: dict[int, Lines | Planes]


class Substitution:
    """Backward and forward passes for R rows of one node over the relaxation's B boxes, in one dtype."""

    def __init__(self, relaxation: Relaxation, node: int, rows: Rows, dtype: torch.dtype):
        self.relaxation, self.node, self.dtype = relaxation, node, dtype
        self.graph = relaxation.graph.to(dtype)
        self.boxes = relaxation.box.lower.shape[0]
        self.rows = Rows(rows.coefficients.to(dtype), None if rows.input is None else rows.input.to(dtype))
        self.order = relaxation.graph.ancestors[node]
        self.points: dict[int, tuple[Tensor, ...]] = {}

    def _interval(self, position: int) -> Interval:
        x = self.relaxation.intervals[position]
        return x if self.dtype == torch.float64 else x.to(self.dtype)

    def _point(self, position: int, slot: int, shape: torch.Size) -> Tensor:
        """The supporting point at an input of a nonlinear node; the interval's midpoint at first."""
        if position in self.points:
            return self.points[position][slot]
        x = self._interval(self.graph.nodes[position].inputs[slot])
        return (0.5 * (x.lower + x.upper)).nan_to_num_(0.0, 0.0, 0.0).unsqueeze(1).expand(shape)

    def _lines(self, position: int, row: Tensor, smoothing: float) -> Lines | Planes:
        node = self.graph.nodes[position]
        if isinstance(node.op, Product):
            u, v = (self._interval(i) for i in node.inputs)
            points = self._point(position, 0, row.shape), self._point(position, 1, row.shape)
            return node.op.planes(u, v, *points, row > 0)
        envelope = self.relaxation.envelope(position, self.dtype)
        return envelope.lines(self._point(position, 0, row.shape), row > 0, smoothing)

    def backward(self, smoothing: float, rigorous: bool) -> _Trace:
        """Substitute from the node back to the input with lines at the current points.

        Where `rigorous`, the bound is lowered by what float64 evaluation may have lost.  Sound because: an error E in
        a coefficient of node k's value moves the row by at most E |v_k|; one step of substitution through L errs by
        at most gamma_n |A| |L| in the coefficients and gamma_n |A| |c| in the constant, hence in total by gamma_n
        |A| (|L| |v| + |c|) = gamma_n |A| magnitude_k, with n counting every sum the step takes part in.
        """
        graph, order = self.graph, self.order
        first = self.rows.coefficients
        coefficients: dict[int, Tensor] = {self.node: first.expand(self.boxes, *first.shape[1:])}
        constant = torch.zeros(self.boxes, self.rows.count, dtype=self.dtype)
        slack = torch.zeros_like(constant)
        lines: dict[int, Lines | Planes] = {}
        for position in reversed(order[1:]):
            row = coefficients.pop(position, None)
            if row is None:
                continue
            node = graph.nodes[position]
            if isinstance(node.op, Linear):
                found = self._through_linear(position, row)
                if node.op.offset is not None:
                    constant = constant + (row * node.op.offset).flatten(2).sum(-1)
                if rigorous:
                    steps = node.op.terms + node.size + 2 * len(order) + 16
                    slack = slack + gamma(steps) * _weighted(row, self.relaxation.magnitudes[position])
            else:
                line = lines[position] = self._lines(position, row, smoothing)
                found = self._through_lines(line, row)
                term = row * line.intercept
                if not all(self.relaxation.finite(i) for i in node.inputs):
                    term = torch.where(row == 0, 0.0, term)
                constant = constant + term.flatten(2).sum(-1)
                if rigorous:
                    slack = slack + gamma(node.size + 2 * len(order) + 16) * self._line_terms(node.inputs, line, row)
            for i, a in zip(node.inputs, found, strict=True):
                coefficients[i] = coefficients[i] + a if i in coefficients else a
        slope = coefficients.pop(0, None)
        shape = (self.boxes, self.rows.count, *graph.input_shape)
        slope = torch.zeros(shape, dtype=self.dtype) if slope is None else slope
        if self.rows.input is not None:
            slope = slope + self.rows.input
        return _Trace(slope, self._concretise(slope, constant, slack, rigorous), lines)

    def _through_linear(self, position: int, row: Tensor) -> tuple[Tensor, ...]:
        op = self.graph.nodes[position].op
        assert isinstance(op, Linear)
        flat = op.adjoint(row.reshape(-1, *row.shape[2:]))
        return tuple(a.reshape(*row.shape[:2], *a.shape[1:]) for a in flat)

    @staticmethod
    def _through_lines(line: Lines | Planes, row: Tensor) -> tuple[Tensor, ...]:
        if isinstance(line, Planes):
            return row * line.slope_u, row * line.slope_v
        return (row * line.slope,)

    def _line_terms(self, inputs: tuple[int, ...], line: Lines | Planes, row: Tensor) -> Tensor:
        """Upper bound (B, R) on the absolute terms that substituting the lines adds up."""
        found = self._through_lines(line, row)
        total = (row * line.intercept).abs().flatten(2).sum(-1)
        for i, a in zip(inputs, found, strict=True):
            total = total + _weighted(a, self.relaxation.intervals[i].magnitude)
        return total.nan_to_num(nan=torch.inf)

    def _concretise(self, slope: Tensor, constant: Tensor, slack: Tensor, rigorous: bool) -> Tensor:
        """min over the box of slope.x + constant, less the slack."""
        box = self._interval(0)
        centre, radius = (0.5 * (box.lower + box.upper)).unsqueeze(1), (0.5 * (box.upper - box.lower)).unsqueeze(1)
        value = (slope * centre - slope.abs() * radius).flatten(2).sum(-1) + constant
        if rigorous:
            n = self.graph.nodes[0].size + 2 * len(self.order) + 16
            slack = slack + gamma(n) * (_weighted(slope, self.relaxation.box.magnitude) + constant.abs())
            value = value - (1.01 * slack + TINY)
        return value.nan_to_num(nan=-torch.inf)

    def forward(self, trace: _Trace, step: float) -> None:
        """Move the points towards where the relaxed network takes its minimum over the box."""
        box = self._interval(0)
        lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
        values: dict[int, Tensor] = {0: torch.where(trace.slope > 0, lower, upper)}
        for position in self.order[1:]:
            node = self.graph.nodes[position]
            if not all(i in values for i in node.inputs):
                continue
            inputs = [values[i] for i in node.inputs]
            if isinstance(node.op, Linear):
                flat = node.op.forward(*(x.reshape(-1, *x.shape[2:]) for x in inputs))
                values[position] = flat.reshape(*inputs[0].shape[:2], *flat.shape[1:])
            elif position in trace.lines:
                values[position] = self._move(position, inputs, trace.lines[position], step)

    def _move(self, position: int, inputs: list[Tensor], line: Lines | Planes, step: float) -> Tensor:
        node = self.graph.nodes[position]
        moved = []
        for slot, (i, x) in enumerate(zip(node.inputs, inputs, strict=True)):
            bounds = self._interval(i)
            z = torch.minimum(torch.maximum(x, bounds.lower.unsqueeze(1)), bounds.upper.unsqueeze(1))
            if not self.relaxation.finite(i):
                z = z.nan_to_num(0.0, 0.0, 0.0)
            if position in self.points:
                z = torch.lerp(self.points[position][slot], z, step)
            moved.append(z)
        self.points[position] = tuple(moved)
        if isinstance(line, Planes):
            value = line.slope_u * moved[0] + line.slope_v * moved[1] + line.intercept
        else:
            value = torch.addcmul(line.intercept, line.slope, moved[0])
        return value if all(self.relaxation.finite(i) for i in node.inputs) else value.nan_to_num(0.0, 0.0, 0.0)


def _weighted(row: Tensor, magnitude: Tensor) -> Tensor:
    """sum |row| magnitude over the entries: (B, R, *S) and (B, *S) -> (B, R); 0 * inf counts as 0."""
    terms = row.abs() * magnitude.unsqueeze(1)
    if bool(magnitude.isinf().any()):
        terms = torch.where(row == 0, 0.0, terms)
    return terms.flatten(2).sum(-1)


def row_bounds(relaxation: Relaxation, node: int, rows: Rows, effort: Effort) -> RowBounds:
    """Lower bounds on R rows of a node over every box, rigorous; -inf for rows the deadline left no time for.

    Frank-Wolfe searches in float32, and the last of the `effort.iterations` backward passes decides in float64.
    """
    found = [
        _piece(relaxation, node, rows[piece], effort) for piece in _pieces(relaxation, node, rows.count, effort.memory)
    ]
    return RowBounds(torch.cat([f.lower for f in found], 1), torch.cat([f.slope for f in found], 1))


def _piece(relaxation: Relaxation, node: int, rows: Rows, effort: Effort) -> RowBounds:
    if effort.deadline.passed:
        shape = (relaxation.box.lower.shape[0], rows.count)
        slope = torch.zeros(*shape, *relaxation.graph.input_shape, dtype=torch.float64)
        return RowBounds(torch.full(shape, -torch.inf, dtype=torch.float64), slope)
    search = Substitution(relaxation, node, rows, torch.float32)
    smoothing = SMOOTHING[0]
    for t in range(effort.iterations - 1):
        search.forward(search.backward(SMOOTHING[min(t, len(SMOOTHING) - 1)], rigorous=False), _step(t))
        smoothing = SMOOTHING[min(t + 1, len(SMOOTHING) - 1)]
    decide = Substitution(relaxation, node, rows, torch.float64)
    decide.points = {i: tuple(z.double() for z in zs) for i, zs in search.points.items()}
    trace = decide.backward(smoothing, rigorous=True)
    return RowBounds(trace.lower, trace.slope)


def optimised_row_bounds(
    relaxation: Relaxation, node: int, rows: Rows, effort: Effort, enough: Callable[[Tensor], bool]
) -> RowBounds:
    """Lower bounds on a few rows: the best over all Frank-Wolfe iterates, every one evaluated rigorously in float64.

    Stops as soon as `enough` says so of the bounds (B, R) reached.
    """
    passes = [
        Substitution(relaxation, node, rows[piece], torch.float64)
        for piece in _pieces(relaxation, node, rows.count, effort.memory)
    ]
    best: RowBounds | None = None
    for t in range(effort.iterations):
        traces = [p.backward(SMOOTHING[min(t, len(SMOOTHING) - 1)], rigorous=True) for p in passes]
        now = RowBounds(torch.cat([r.lower for r in traces], 1), torch.cat([r.slope for r in traces], 1))
        best = now if best is None else best.better(now)
        if t + 1 == effort.iterations or effort.deadline.passed or enough(best.lower):
            break
        for substitution, trace in zip(passes, traces, strict=True):
            substitution.forward(trace, _step(t))
    assert best is not None
    return best


def _step(t: int) -> float:
    """Frank-Wolfe step; the first pass sets the points outright."""
    return 2.0 / (t + 3)


def _pieces(relaxation: Relaxation, node: int, rows: int, memory: float) -> list[slice]:
    """Consecutive ranges of rows whose passes fit into the memory, in GiB."""
    graph = relaxation.graph
    sizes = [graph.nodes[i].size for i in graph.ancestors[node]]
    stored = sum(graph.nodes[i].size for i in graph.ancestors[node] if graph.nodes[i].nonlinear)
    per_row = 8 * relaxation.box.lower.shape[0] * (4 * stored + 6 * max(sizes) + 2 * sizes[0])
    count = max(1, int(min(memory, PIECE) * 2**30 / per_row))
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
    for piece in _pieces(relaxation, node, 2 * chosen.shape[1], effort.memory):
        index = chosen[:, (piece.start + 1) // 2 : (piece.stop + 1) // 2]
        here = present[:, (piece.start + 1) // 2 : (piece.stop + 1) // 2]
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
