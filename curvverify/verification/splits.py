"""Where to split a subproblem: an input coordinate, the argument of an elementwise function, or a direction.

Either way two halves cover the whole: {x_i <= c} and {x_i >= c}; {z_j <= c} and {z_j >= c} for an entry z_j of the node
in front of an elementwise function, whose lines become tighter on both sides (exact, for a ReLU cut at 0); or
{v.x <= c} and {v.x >= c} for a direction v of the subproblem's slabs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.bounding.directions import dominant_directions
from curvverify.bounding.relaxation import Part
from curvverify.bounding.slabs import Slabs
from curvverify.ops.base import Elementwise
from curvverify.types import Interval
from curvverify.verification.checker import Checked, Checker
from curvverify.verification.state import Subproblems

DIRECTIONS = 3
"""Directions along which a box is cut."""

FEW = 16
"""Most free inputs for which it is looked up what each of them moves."""

CORE = 0.15
"""Directions are cut at the middle in T(t) = asinh(t / CORE), for -1 <= t <= 1 on the box: with many inputs most of
the box lies around t = 0, where the network moves most, and what is left of it far out is nearly rigid."""


@dataclass(frozen=True)
class Cut:
    """value of the node at the flat entry <= at, or >= at; node 0 is the input."""

    node: int
    entry: int
    at: float


@dataclass(frozen=True)
class SlabCut:
    """v.x <= at, or >= at, for a direction of the subproblem's slabs."""

    direction: int
    at: float


@dataclass(frozen=True, eq=False)
class Open:
    """One open subproblem and what is known of it, (1, ...) each; `root` is the position of the box it is a part of."""

    problem: Subproblems
    part: Part
    root: int
    margin: float
    """The problem's `margin_lower`."""
    steepest: Cut | None = None
    """The input's best cut, where that was looked for."""
    share: float = 1.0
    """1 / 2 to the number of cuts between the root box and this one."""
    searched: float = -math.inf
    """The margin at which its phases, or those of a box around it, were last searched."""

    @property
    def widest(self) -> Cut:
        """The middle of the input's widest coordinate."""
        box = self.problem.box
        i = int(box.width[0].argmax())
        return Cut(0, i, float(box.centre[0, i]))

    @property
    def bytes(self) -> int:
        known = 16 * (sum(x.lower.numel() for x in self.part.known.values()) + self.problem.box.lower.numel())
        return known + sum(state.bytes for state in self.part.states.values())

    def forgetful(self) -> Open:
        """Without the states of the searches."""
        return replace(self, part=replace(self.part, states={}))

    def halves(self, cut: Cut | SlabCut) -> list[tuple[Subproblems, Part]]:
        """The two parts, which together cover the whole."""
        one, part = self.problem, self.part
        if isinstance(cut, SlabCut):
            assert part.slabs is not None
            return [(one, replace(part, slabs=s)) for s in part.slabs.halves(cut.direction, cut.at)]
        whole = one.box if cut.node == 0 else part.known[cut.node]
        upper, lower = whole.upper.clone(), whole.lower.clone()
        upper.flatten()[cut.entry] = lower.flatten()[cut.entry] = cut.at
        parts = []
        for half in (Interval(whole.lower, upper), Interval(lower, whole.upper)):
            box = half if cut.node == 0 else one.box
            known = part.known if cut.node == 0 else {**part.known, cut.node: half}
            parts.append((Subproblems(box, one.group, one.open, one.margins), replace(part, known=known)))
        return parts


@dataclass(frozen=True, eq=False)
class Directions:
    """What slab cuts of one root box need: its slabs before any cut, (1, K), and the directions' strengths (K,)."""

    slabs: Slabs
    strengths: Tensor

    def cut(self, slabs: Slabs) -> SlabCut:
        """The direction with the largest strength times what is left of its range in T, at the middle in T."""
        centre = 0.5 * (self.slabs.low + self.slabs.high)[0]
        low, high = (torch.asinh((x[0] - centre) / CORE) for x in (slabs.low, slabs.high))
        q = int((self.strengths * (high - low)).argmax())
        return SlabCut(q, float(centre[q]) + CORE * math.sinh(0.5 * float(low[q] + high[q])))


def directions(checker: Checker, checked: Checked, box: int) -> Directions | None:
    """The directions for one of the boxes, by its most promising row; None where the network has none."""
    one = checked[torch.tensor([box])]
    prop = checker.property
    row = prop.select_rows(_row(checker, one.problems), checker.graph.output_shape, checker.graph.input_shape)
    found, strengths = dominant_directions(one.relaxation, checker.graph.output, row, DIRECTIONS)
    if not len(found):
        return None
    x = one.problems.box
    centre = found @ x.centre[0]
    reach = 1.000001 * (found.abs() @ torch.maximum(x.upper - x.centre, x.centre - x.lower)[0])
    slack = 1e-9 * (1.0 + found.abs() @ x.magnitude[0])
    slabs = Slabs(found.unsqueeze(0), (centre - reach - slack).unsqueeze(0), (centre + reach + slack).unsqueeze(0))
    return Directions(slabs, strengths)


def input_cuts(checker: Checker, checked: Checked, boxes: Tensor, smallest: Tensor) -> list[Cut]:
    """For each of the boxes, the middle of the coordinate that is expected to gain most.

    That is the one with the largest |linear form| times width, over the rows that open disjuncts ask for; where few are
    free, plus the share of what the nonlinear functions lose that it moves.  Coordinates (n,) narrower than `smallest`
    are left alone.
    """
    problems = checked.problems[boxes]
    width = torch.where(problems.box.width > smallest, problems.box.width, 0.0)
    slope = torch.stack([_steepness(checker, checked, b) for b in boxes.tolist()])
    scores = (slope + 1e-3 * slope.mean(1, keepdim=True) + 1e-30) * width
    free = (width > 0).any(0).nonzero().squeeze(1)
    if 0 < len(free) <= FEW:
        known = {i: checked.relaxation.intervals[i][boxes] for i in checker.graph.bounded}
        lost = _lost(checker, problems, known, free) * (width[:, free] > 0)
        scores[:, free] = _shares(scores[:, free]) + _shares(lost)
    centre = problems.box.centre
    return [Cut(0, i, float(centre[b, i])) for b, i in enumerate(scores.argmax(1).tolist())]


def _steepness(checker: Checker, checked: Checked, box: int) -> Tensor:
    """(n,): sum of |linear form| over the rows that the box's open disjuncts ask for."""
    problems = checked.problems
    wanted = checker.property.rows[problems.group[box]][problems.open[box]].flatten()
    bounds = checked.bounds
    slope = bounds.slope.abs() if bounds.steepness is None else bounds.steepness
    return slope[box, torch.isin(checked.rows, wanted)].flatten(1).sum(0)


def _shares(scores: Tensor) -> Tensor:
    """Scores (B, n) relative to the sums over the coordinates."""
    return scores / scores.sum(1, keepdim=True).clamp(min=1e-300)


def _lost(checker: Checker, problems: Subproblems, known: dict[int, Interval], free: Tensor) -> Tensor:
    """(B, n): what the nonlinear functions lose, each loss shared out over the free coordinates (n,) that move it.

    A function moves with a coordinate by as much as its argument differs between the ends, the others at the middle.
    """
    graph, box = checker.graph, problems.box
    ends = box.centre.repeat(2 * len(free), 1, 1)
    each = torch.arange(len(free))
    ends[each, :, free], ends[len(free) + each, :, free] = box.lower[:, free].T, box.upper[:, free].T
    values = graph.values(ends.reshape(-1, *graph.input_shape))
    total = torch.zeros(len(problems), len(free), dtype=torch.float64)
    for position, loss in _losses(checker, problems, known).items():
        (argument,) = graph.nodes[position].inputs
        low, high = values[argument].reshape(2, len(free), len(problems), -1)
        moved = (high - low).abs()
        total += (moved / moved.sum(0).clamp(min=1e-300) * loss.flatten(1)).sum(2).T
    return total


def _losses(checker: Checker, problems: Subproblems, known: dict[int, Interval]) -> dict[int, Tensor]:
    """By elementwise node, |gradient of the box's most promising row| times gap of every entry's envelope, (B, *S).

    The gradient is taken at the box's centre; the gap is between the function and its chord at the point where it would
    be cut.
    """
    graph, losses = checker.graph, {}
    for position, gradient in _gradients(checker, problems).items():
        node = graph.nodes[position]
        assert isinstance(node.op, Elementwise)
        x = known[node.inputs[0]]
        at = node.op.cut(x)
        low, middle, high = (node.op.forward(z) for z in (x.lower, at, x.upper))
        chord = torch.lerp(low, high, ((at - x.lower) / x.width).nan_to_num(0.5))
        loss = (gradient.abs() * (middle - chord).abs()).nan_to_num(0.0, 0.0, 0.0)
        losses[position] = torch.where(node.op.curved(x), loss, 0.0)
    return losses


def neuron_cuts(checker: Checker, problems: Subproblems, known: dict[int, Interval]) -> list[Cut | None]:
    """For each of the boxes, the entry that loses most, see `_losses`.  None where every function is affine already."""
    best: list[tuple[float, Cut | None]] = [(0.0, None)] * len(problems)
    for position, loss in _losses(checker, problems, known).items():
        node = checker.graph.nodes[position]
        assert isinstance(node.op, Elementwise)
        at = node.op.cut(known[node.inputs[0]])
        for b, (value, entry) in enumerate(zip(*loss.flatten(1).max(1), strict=True)):
            if float(value) > best[b][0]:
                best[b] = float(value), Cut(node.inputs[0], int(entry), float(at[b].flatten()[entry]))
    return [cut for _, cut in best]


def _row(checker: Checker, problems: Subproblems) -> Tensor:
    """(B,): every box's most promising row, of the most open disjunct the one with the largest margin."""
    margins = torch.where(problems.open.unsqueeze(2), problems.margins, torch.inf)
    disjunct = margins.amax(2).argmin(1)
    each = torch.arange(len(problems))
    return checker.property.rows[problems.group][each, disjunct, margins[each, disjunct].argmax(1)].clamp(min=0)


def _gradients(checker: Checker, problems: Subproblems) -> dict[int, Tensor]:
    """The gradient (B, *S) of every box's most promising row by the value of every elementwise node."""
    row = _row(checker, problems)
    with torch.enable_grad():
        centre = problems.box.centre
        values = checker.graph.values(centre.reshape(-1, *checker.graph.input_shape).requires_grad_(True))
        total = (values[-1].flatten(1) * checker.property.output[row]).sum()
        wanted = [i for i in checker.graph.nonlinear if isinstance(checker.graph.nodes[i].op, Elementwise)]
        found = torch.autograd.grad(total, [values[i] for i in wanted], allow_unused=True)
    return {i: g for i, g in zip(wanted, found, strict=True) if g is not None}
