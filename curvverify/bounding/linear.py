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

from curvverify.bounding.bundle import Bundle
from curvverify.bounding.coupling.build import coupled_blocks
from curvverify.bounding.coupling.weights import CoupledRows
from curvverify.bounding.folded import coordinates, free_coordinates, spread
from curvverify.bounding.loose import interval_is_exact, loose_entries
from curvverify.bounding.relaxation import Part, Relaxation
from curvverify.bounding.resume import NodeState, RowState, joined
from curvverify.bounding.substitution import Rows, Substitution
from curvverify.bounding.tangents import joint_tangent, tighten_by_forms
from curvverify.bounding.taylor import Form, Forms
from curvverify.graph.layers import Graph
from curvverify.ops.joint import Joint
from curvverify.types import Deadline, Interval

SMOOTHING = (0.0, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
"""Spread of slopes at kinks by iteration: without it Frank-Wolfe stalls at them."""

PIECE = 0.25
"""GiB of rows that go through at once: more is no faster, and the deadline is polled between pieces."""

KEPT = 0.03
"""Share of the memory above which the state of a node's search is not kept."""

FORMS = 16
"""Most free inputs for which nodes get affine forms in the inputs before they get rows."""

SWEEPS = 2
"""Over the forms of a row after every iterate, to combine them."""

BENT = 0.5
"""An entry whose form has an error below this share of what the inputs move it by gets no rows of one iteration: they
would gain little.  Of more iterations, below so much smaller a share."""

LATE = 2
"""Steps that count as taken where a search goes on from an earlier one."""


@dataclass(frozen=True, eq=False)
class RowBounds:
    """Proved lower bounds (B, R), with the linear form at the input that gave them: slope (B, R, *S_in).

    `state` is where the search stood at the end, where that was asked for; `steepness`, of optimised rows, the mean of
    |slope| over the iterates: the best one's slopes are small, and tell little about which inputs move the row.
    """

    lower: Tensor
    slope: Tensor
    state: RowState | None = None
    steepness: Tensor | None = None

    def __getitem__(self, boxes: Tensor) -> RowBounds:
        """The same for some of the boxes, without the state."""
        steepness = None if self.steepness is None else self.steepness[boxes]
        return RowBounds(self.lower[boxes], self.slope[boxes], steepness=steepness)

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
    keep: bool = False
    """Whether the relaxation keeps where the searches stood, for its parts."""


@dataclass(frozen=True, eq=False)
class _Search:
    """The search for the rows of one node: substitutions in turn that share the weights of coupled entries."""

    relaxation: Relaxation
    node: int
    rows: Rows
    coupled: list[CoupledRows]
    start: RowState | None

    @classmethod
    def begin(cls, relaxation: Relaxation, node: int, rows: Rows, effort: Effort, start: RowState | None) -> _Search:
        coupled = [CoupledRows(block) for block in coupled_blocks(relaxation, node, effort.coupling)]
        weights = {} if start is None else start.weights
        for state in coupled:
            if state.sites in weights:
                state.resume(weights[state.sites])
        return cls(relaxation, node, rows, coupled, start)

    def substitution(self, dtype: torch.dtype, start: RowState | None) -> Substitution:
        made = Substitution(self.relaxation, self.node, self.rows, dtype, self.coupled, fold=True)
        if start is not None:
            made.resume(start)
        return made

    def state(self, substitution: Substitution) -> RowState:
        """Where the search stands."""
        found = {c.sites: c.weights for c in self.coupled}
        return replace(substitution.state, weights={i: w for i, w in found.items() if w is not None})

    def smoothing(self, t: int) -> float:
        """The spread of slopes at kinks in pass t: the schedule's last value goes on."""
        return SMOOTHING[min(self._late(t), len(SMOOTHING) - 1)]

    def step(self, t: int) -> float:
        """Frank-Wolfe step; the first pass of a new search sets the points outright."""
        return 2.0 / (self._late(t) + 3)

    def _late(self, t: int) -> int:
        return t if self.start is None else t + LATE


def row_bounds(
    relaxation: Relaxation, node: int, rows: Rows, effort: Effort, start: RowState | None = None
) -> RowBounds:
    """Lower bounds on R rows of a node over every box, rigorous; -inf for rows the deadline left no time for.

    Frank-Wolfe searches in float32, from `start` if there is such a state, and the last of the `effort.iterations`
    backward passes decides in float64.
    """
    found = []
    for piece in _pieces(relaxation, node, rows.count, effort):
        where = None if start is None else start.rows(piece)
        found.append(_piece(relaxation, node, rows[piece], effort, where))
    return _side_by_side(found)


def _side_by_side(found: list[RowBounds]) -> RowBounds:
    states = [f.state for f in found if f.state is not None]
    state = joined(states, 1) if len(states) == len(found) else None
    return RowBounds(torch.cat([f.lower for f in found], 1), torch.cat([f.slope for f in found], 1), state)


def _piece(relaxation: Relaxation, node: int, rows: Rows, effort: Effort, start: RowState | None) -> RowBounds:
    if effort.deadline.passed:
        return _nothing(relaxation, rows)
    search = _Search.begin(relaxation, node, rows, effort, start)
    quick = search.substitution(torch.float32, start)
    for t in range(effort.iterations - 1):
        quick.forward(quick.backward(search.smoothing(t), rigorous=False), search.step(t))
        if effort.deadline.passed:
            return _nothing(relaxation, rows)
    decide = search.substitution(torch.float64, quick.state)
    trace = decide.backward(search.smoothing(effort.iterations - 1), rigorous=True)
    return RowBounds(trace.lower, decide.whole(trace.slope), search.state(decide) if effort.keep else None)


def _nothing(relaxation: Relaxation, rows: Rows) -> RowBounds:
    """The bounds that hold without any work: -inf."""
    shape = (relaxation.box.lower.shape[0], rows.count)
    slope = torch.zeros(*shape, *relaxation.graph.input_shape, dtype=torch.float64)
    return RowBounds(torch.full(shape, -torch.inf, dtype=torch.float64), slope)


def optimised_row_bounds(
    relaxation: Relaxation,
    node: int,
    rows: Rows,
    effort: Effort,
    enough: Callable[[Tensor], bool],
    start: RowState | None = None,
) -> RowBounds:
    """Lower bounds on a few rows: the best over all Frank-Wolfe iterates, every one evaluated rigorously in float64.

    Where few inputs are free, the iterates' forms are also combined, see `bundle`: there slopes nearly cancel.  Stops
    as soon as `enough` says so of the bounds (B, R) reached, or past the deadline; -inf where that came first.
    """
    if effort.deadline.passed:
        return _nothing(relaxation, rows)
    searches = []
    for piece in _pieces(relaxation, node, rows.count, effort):
        where = None if start is None else start.rows(piece)
        search = _Search.begin(relaxation, node, rows[piece], effort, where)
        searches.append((search, search.substitution(torch.float64, where)))
    best: RowBounds | None = None
    steepness, t = torch.zeros(1), 0
    free = free_coordinates(relaxation.box)
    bundle = Bundle(coordinates(relaxation.box, free)) if relaxation.uncut and 0 < len(free) <= FORMS else None
    for t in range(effort.iterations):
        traces = [p.backward(search.smoothing(t), rigorous=True) for search, p in searches]
        slopes = [p.whole(r.slope) for (_, p), r in zip(searches, traces, strict=True)]
        now = RowBounds(torch.cat([r.lower for r in traces], 1), torch.cat(slopes, 1))
        steepness = steepness + now.slope.abs()
        best = now if best is None else best.better(now)
        if bundle is not None:
            best = best.better(_combined(bundle, now, free))
        if t + 1 == effort.iterations or effort.deadline.passed or enough(best.lower):
            break
        for (search, substitution), trace in zip(searches, traces, strict=True):
            substitution.forward(trace, search.step(t))
    assert best is not None
    state = joined([search.state(p) for search, p in searches], 1) if effort.keep else None
    return replace(best, state=state, steepness=steepness / (t + 1))


def _combined(bundle: Bundle, now: RowBounds, free: Tensor) -> RowBounds:
    """The bounds of the bundle with one more form of every row; coordinates that do not move have slope 0."""
    bundle.add(now.lower, now.slope.flatten(2)[:, :, free])
    bundle.improve(SWEEPS)
    lower, slope = bundle.lower()
    return RowBounds(lower, spread(slope, free, now.slope.shape[2:]))


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
    graph: Graph, box: Interval, effort: Effort, known: Mapping[int, Interval] | None = None, part: Part | None = None
) -> Relaxation:
    """Bounds on every node over B input boxes: interval bounds, and linear ones where a nonlinear node needs them.

    Rows are computed only for entries on which some consumer is neither affine nor saturated.  Past the deadline the
    remaining nodes keep their interval bounds, which are sound.  `known` bounds are intersected; the boxes are cut by
    the slabs and balls of `part`, and searches start where it says.  Tangents of joint operators are found, deadline or
    not, unless `part` has them; where there are any, the forms that tangents are made of bound the other nodes first.
    """
    part = part or Part(known or {})
    relaxation = Relaxation(graph, box, slabs=part.slabs, balls=part.balls, around=part.frames)
    wanted = set(graph.bounded)
    forms = Forms(relaxation, 1) if _carried(relaxation) else None
    for position in range(len(graph)):
        if isinstance(graph.nodes[position].op, Joint):
            found = part.tangents.get(position)
            relaxation.tangents[position] = joint_tangent(relaxation, position) if found is None else found
        relaxation.append(part.known.get(position))
        form = None if forms is None else forms.advance(position)
        if position not in wanted or effort.deadline.passed:
            continue
        if relaxation.uncut and interval_is_exact(graph, position):
            continue
        if form is not None:
            relaxation.tighten(position, form.range())
        loose = loose_entries(relaxation, position)
        if form is not None:
            loose &= _bent(form, BENT / effort.iterations)
        if relaxation.tangents and position not in part.known and bool(loose.any()):
            tighten_by_forms(relaxation, (position,))
            loose = loose_entries(relaxation, position)
        if bool(loose.any()):
            state = part.states.get(position)
            relaxation.tighten(position, entry_bounds(relaxation, position, loose, effort, state))
    return relaxation


def _carried(relaxation: Relaxation) -> bool:
    """Whether forms in the free inputs cost next to nothing beside rows: few inputs are free, on plain boxes."""
    if not relaxation.uncut or any(isinstance(node.op, Joint) for node in relaxation.graph):
        return False
    return 0 < len(free_coordinates(relaxation.box)) <= FORMS


def _bent(form: Form, share: float) -> Tensor:
    """Mask (B, *S) of the entries whose forms' errors exceed this share of what the inputs move them by."""
    return ~(form.error <= share * form.linear.abs().sum(1))


def entry_bounds(
    relaxation: Relaxation, node: int, entries: Tensor, effort: Effort, start: NodeState | None = None
) -> Interval:
    """Linear bounds (B, *S) on chosen entries (mask (B, *S)) of a node; the others keep the bounds they have.

    Where `effort.keep`, the relaxation keeps the state of the search: function k of the node is its entry k from below
    and, counted on, from above.
    """
    old = relaxation.intervals[node]
    shape = relaxation.graph.nodes[node].shape
    if not any(relaxation.graph.nodes[i].nonlinear for i in relaxation.graph.ancestors[node]):
        effort = replace(effort, iterations=1, keep=False)  # affine in the input: the first pass is exact
    chosen, present = _packed(entries.flatten(1))
    effort = replace(effort, keep=effort.keep and _kept(relaxation, node, 2 * chosen.shape[1]) < KEPT * effort.memory)
    lower, upper = old.lower.flatten(1).clone(), old.upper.flatten(1).clone()
    size = lower.shape[1]
    states: list[tuple[Tensor, RowState | None]] = []
    for piece in _pieces(relaxation, node, 2 * chosen.shape[1], effort, together=2):
        index, here = chosen[:, piece.start // 2 : piece.stop // 2], present[:, piece.start // 2 : piece.stop // 2]
        rows = torch.zeros(*index.shape, size, dtype=torch.float64)
        rows.scatter_(2, index.unsqueeze(2), here.double().unsqueeze(2))
        both = Rows(torch.cat([rows, -rows], 1).reshape(len(index), -1, *shape))
        functions = torch.cat([index, size + index], 1)
        found = row_bounds(relaxation, node, both, effort, None if start is None else start.of(functions))
        states.append((functions, found.state))
        below, above = found.lower.chunk(2, 1)
        lower.scatter_reduce_(1, index, torch.where(here, below, -torch.inf), "amax")
        upper.scatter_reduce_(1, index, torch.where(here, -above, torch.inf), "amin")
    relaxation.keep(node, 2 * size, states)
    return Interval(lower.reshape(old.shape), upper.reshape(old.shape))


def _kept(relaxation: Relaxation, node: int, rows: int) -> float:
    """GiB that the points of so many rows at every nonlinear node take in float32."""
    graph = relaxation.graph
    stored = sum(graph.nodes[i].size for i in graph.ancestors[node] if graph.nodes[i].nonlinear)
    return 4.0 * relaxation.box.lower.shape[0] * rows * stored / 2**30


def _packed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, K) of the set entries of every row of a mask (B, n), padded; and which of them are real."""
    count = mask.sum(1)
    most = int(count.max())
    order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return order, torch.arange(most) < count.unsqueeze(1)
