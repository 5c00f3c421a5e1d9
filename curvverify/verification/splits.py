"""Where to split a subproblem: an input coordinate, or the argument of an elementwise function.

Either way two halves cover the whole: {x_i <= c} and {x_i >= c}, or {z_j <= c} and {z_j >= c} for an entry z_j of the
node in front of an elementwise function, whose lines become tighter on both sides (exact, for a ReLU cut at 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.ops.base import Elementwise
from curvverify.types import Interval
from curvverify.verification.checker import Checked, Checker
from curvverify.verification.state import Subproblems


@dataclass(frozen=True)
class Cut:
    """value of the node at the flat entry <= at, or >= at; node 0 is the input."""

    node: int
    entry: int
    at: float


@dataclass(frozen=True, eq=False)
class Open:
    """One open subproblem, what is known of its nodes (1, *S), and where to split it."""

    problem: Subproblems
    known: dict[int, Interval]
    cut: Cut

    @property
    def bytes(self) -> int:
        return 16 * (sum(x.lower.numel() for x in self.known.values()) + self.problem.box.lower.numel())

    def halves(self) -> list[tuple[Subproblems, dict[int, Interval]]]:
        """The two parts, which together cover the whole."""
        one, node, entry = self.problem, self.cut.node, self.cut.entry
        whole = one.box if node == 0 else self.known[node]
        upper, lower = whole.upper.clone(), whole.lower.clone()
        upper.flatten()[entry] = lower.flatten()[entry] = self.cut.at
        parts = []
        for half in (Interval(whole.lower, upper), Interval(lower, whole.upper)):
            box = half if node == 0 else one.box
            known = self.known if node == 0 else {**self.known, node: half}
            parts.append((Subproblems(box, one.group, one.open, one.margins), known))
        return parts


def input_cuts(checker: Checker, checked: Checked, boxes: Tensor, smallest: Tensor) -> list[Cut]:
    """For each of the boxes, the middle of the coordinate with the largest |linear form| times width.

    The linear forms are those of the rows that open disjuncts ask for.  Coordinates (n,) narrower than `smallest` are
    left alone.
    """
    cuts, problems = [], checked.problems
    for b in boxes.tolist():
        box = problems.box[b]
        wanted = checker.property.rows[problems.group[b]][problems.open[b]].flatten()
        slope = checked.bounds.slope[b, torch.isin(checked.rows, wanted)].flatten(1).abs()
        width = torch.where(box.width > smallest, box.width, 0.0)
        i = int(((slope.sum(0) + 1e-3 * slope.mean() + 1e-30) * width).argmax())
        cuts.append(Cut(0, i, float(box.centre[i])))
    return cuts


def neuron_cuts(checker: Checker, checked: Checked, boxes: Tensor) -> list[Cut | None]:
    """For each of the boxes, the entry with the largest |gradient of the row| times gap of its envelope.

    The row is the best one of the most open disjunct, its gradient taken at the box's centre; the gap is between the
    function and its chord at the point where it would be cut.  None where every function is affine already.
    """
    relaxation, graph = checked.relaxation, checker.graph
    gradients = _gradients(checker, checked.problems[boxes])
    best: list[tuple[float, Cut | None]] = [(0.0, None)] * len(boxes)
    for position, gradient in gradients.items():
        node = graph.nodes[position]
        assert isinstance(node.op, Elementwise)
        x = relaxation.intervals[node.inputs[0]][boxes]
        at = node.op.cut(x)
        low, middle, high = (node.op.forward(z) for z in (x.lower, at, x.upper))
        chord = torch.lerp(low, high, ((at - x.lower) / x.width).nan_to_num(0.5))
        score = (gradient.abs() * (middle - chord).abs()).nan_to_num(0.0, 0.0, 0.0)
        score = torch.where(node.op.curved(x), score, 0.0).flatten(1)
        for b, (value, entry) in enumerate(zip(*score.max(1), strict=True)):
            if float(value) > best[b][0]:
                best[b] = float(value), Cut(node.inputs[0], int(entry), float(at[b].flatten()[entry]))
    return [cut for _, cut in best]


def _gradients(checker: Checker, problems: Subproblems) -> dict[int, Tensor]:
    """The gradient (B, *S) of every box's most promising row by the value of every elementwise node."""
    prop = checker.property
    margins = torch.where(problems.open.unsqueeze(2), problems.margins, torch.inf)
    disjunct = margins.amax(2).argmin(1)
    each = torch.arange(len(problems))
    row = prop.rows[problems.group][each, disjunct, margins[each, disjunct].argmax(1)].clamp(min=0)
    with torch.enable_grad():
        centre = problems.box.centre
        values = checker.graph.values(centre.reshape(-1, *checker.graph.input_shape).requires_grad_(True))
        total = (values[-1].flatten(1) * prop.output[row]).sum()
        wanted = [i for i in checker.graph.nonlinear if isinstance(checker.graph.nodes[i].op, Elementwise)]
        found = torch.autograd.grad(total, [values[i] for i in wanted], allow_unused=True)
    return {i: g for i, g in zip(wanted, found, strict=True) if g is not None}
