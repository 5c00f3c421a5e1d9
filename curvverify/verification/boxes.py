"""Branch and bound over the inputs themselves, where few are free: thousands of boxes at a time, kept as tensors.

Every step takes a batch from the stack, bounds the rows that open disjuncts ask for, clips each box to where all rows
of some open disjunct may still be violated, and halves it along the coordinate that moves the rows most.  The bounds
come in kinds of growing strength and cost (`KINDS`); whichever closes most per second is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvverify.bounding.clipping import Minorants, around
from curvverify.bounding.linear import Effort, linear_bounds, optimised_row_bounds
from curvverify.bounding.relaxation import Part
from curvverify.bounding.taylor import Form, row_forms, taylor_bounds
from curvverify.graph.layers import Graph
from curvverify.types import Deadline, Interval
from curvverify.verification.checker import Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.methods import REMEMBERED, Method, best, shares
from curvverify.verification.result import Witness
from curvverify.verification.splits import Open
from curvverify.verification.state import Subproblems

Attack = tuple[Tensor, Tensor, Tensor]
"""Groups (P,), disjuncts (P,) and points (P, 1, m) to descend from."""

KINDS = {"taylor": 0, "taylor, rows": 2, "taylor, nodes": 3}
"""Bounds of boxes: Taylor forms; then the property's rows by so many passes backward; or those of all nodes as well."""

STEP = 0.25
"""Seconds that one batch should take."""

PIECE = 0.25
"""GiB of terms that are alive at once."""

MANY = 1024
"""The search pays where so many boxes are bounded at once: where nodes are narrow."""

WARM = 12
"""Steps with the cheapest bounds before others are tried: large boxes tell little about small ones."""

AGAIN = 32
"""After so many steps another kind of bounds is tried once more, where it was not far behind."""

NEAR = 3.0
"""What counts as not far, of the logarithm of the expected time."""

ATTACKS = 0.1
"""Share of the time for attacks from the boxes' own minimisers."""

STARTS = 64
"""Boxes attacked at once: the most open ones."""

ERRORS = 0.5
"""Weight of a row's error in the choice of the coordinate, over all coordinates by their widths."""

MIN_WIDTH = 1e-9
"""Relative to the query's box: what is narrower everywhere is not split any further."""

DELTA = 0.01
"""What is clipped away exceeds its threshold by this share of what its box falls short by."""


@dataclass(eq=False)
class BoxSearch:
    """The stack of open boxes and what became of the others."""

    checker: Checker
    falsifier: Falsifier
    memory: float
    """GiB for one computation."""
    progress: Callable[[BoxSearch], None] = lambda search: None
    bounded: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    witness: Witness | None = None
    methods: list[Method] = field(default_factory=lambda: [Method(kind, batch=64) for kind in KINDS])
    _stack: list[Subproblems] = field(default_factory=list)
    _stuck: list[Subproblems] = field(default_factory=list)
    """Open boxes that are too small to split."""

    def run(self, problems: Subproblems, deadline: Deadline) -> None:
        """Split until nothing is open, a witness is found or time is up."""
        self._settled = torch.full(self.checker.property.present.shape, torch.inf, dtype=torch.float64)
        self._stack.append(problems[problems.unsettled])
        self._root = problems.box.width.amax(0)
        graph = self.checker.graph
        self._order = _order(graph)
        self._most = at_once(graph, int((problems.box.lower < problems.box.upper).any(0).sum()), self.memory)
        begun = time.monotonic()
        attacking, steps = 0.0, 0
        while self._stack and not deadline.passed and self.witness is None:
            steps += 1
            method = best(self.methods) if steps > WARM else self.methods[0]
            if steps % AGAIN == 0:
                others = [m for m in self.methods if m is not method and m.expected < method.expected + NEAR]
                method = best(others) if others else method
            worst = self._step(method, deadline)
            now = time.monotonic()
            if worst is not None and attacking <= ATTACKS * (now - begun):
                self.witness = self.falsifier.descend(*worst, deadline)
                attacking += time.monotonic() - now
            self.progress(self)

    @property
    def used(self) -> str:
        """How many boxes each kind of bounds has got."""
        return ", ".join(f"{kind}: {count}" for kind, count in self.counts.items() if count)

    @property
    def open(self) -> int:
        """Number of open boxes."""
        return sum(len(part) for part in self._left)

    @property
    def margin_lower(self) -> float:
        """The smallest margin of the open boxes, inf where there are none."""
        return min((float(part.margin_lower.min()) for part in self._left), default=torch.inf)

    @property
    def share(self) -> float:
        """The volume of the open boxes, each relative to the query's own."""
        return float(sum(self._shares(part).sum() for part in self._left))

    def worst(self, count: int) -> list[Open]:
        """So many of the open boxes, those with the smallest margins first."""
        found = []
        for part in self._left:
            shares = self._shares(part).tolist()
            for b in part.margin_lower.argsort()[:count].tolist():
                one = part[b : b + 1]
                found.append(Open(one, Part(), int(one.group), float(one.margin_lower), share=shares[b]))
        return sorted(found, key=lambda entry: entry.margin)[:count]

    @property
    def _left(self) -> list[Subproblems]:
        return [*self._stack, *self._stuck]

    def _shares(self, part: Subproblems) -> Tensor:
        """The volume (B,) of every box, relative to the query's own."""
        whole = self.checker.property.boxes.width[part.group]
        return torch.where(whole > 0, part.box.width / whole, 1.0).prod(1)

    def outcome(self) -> tuple[Tensor, Tensor]:
        """(G, D) each: the smallest proved margin over all leaves, and the disjuncts that are open on some leaf."""
        margins, still = self._settled.clone(), torch.zeros_like(self.checker.property.present)
        for left in self._left:
            worst = torch.where(left.open, left.margins.amax(2), torch.inf)
            index = left.group.unsqueeze(1).expand_as(worst)
            margins.scatter_reduce_(0, index, worst, "amin")
            still |= torch.zeros_like(margins).scatter_reduce_(0, index, left.open.double(), "amax") > 0
        return margins, still

    def _step(self, method: Method, deadline: Deadline) -> Attack | None:
        """Bound one batch and halve what stays open; groups, disjuncts and points (P, 1, n) worth an attack."""
        begun = time.process_time()
        problems = self._pop(min(method.batch, self._most))
        rows, slack, forms, found = self._bound(method, problems, deadline)
        checked = self._settled_by(problems, rows, found)
        index = checked.unsettled
        left, forms, found = checked[index], forms[index], [m[index] for m in found]
        if len(left) and forms.quadratic.shape[1]:
            found.append(Minorants.convexified(forms, slack[index]))
            left = self._settled_by(left, rows, found[-1:])
            checked = checked.replaced(index, left)
        self.bounded += len(problems)
        self.counts[method.kind] += len(problems)
        index = left.unsettled
        worst = self._split(left[index], rows, [m[index] for m in found], forms[index]) if len(index) else None
        spent = time.process_time() - begun  # not what other processes take
        method.record(_gains(problems, checked), spent, len(problems))
        if spent < STEP:
            method.batch = min(2 * method.batch, self._most)
        elif spent > 3.0 * STEP:
            method.batch = max(1, method.batch // 2)
        return worst

    def _settled_by(self, problems: Subproblems, rows: Tensor, found: list[Minorants]) -> Subproblems:
        """The problems with what the bounds settle of them."""
        after = self.checker.settled(problems, rows, torch.stack([m.lower for m in found]).amax(0))
        self._record(problems.open & ~after.open, after.group, after.margins.amax(2))
        return after

    def _bound(
        self, method: Method, problems: Subproblems, deadline: Deadline
    ) -> tuple[Tensor, Tensor, Form, list[Minorants]]:
        """The rows that open disjuncts ask for, what they may be off, their forms, and bounds on them.

        The bounds are those of the forms, and by substitution where the kind says so.
        """
        checker = self.checker
        graph, prop = checker.graph, checker.property
        box = checker.box(problems)
        relaxation, output = taylor_bounds(graph, box, self._order)
        rows = prop.wanted(problems.group, problems.open)
        wanted = prop.select_rows(rows, graph.output_shape, graph.input_shape)
        forms = row_forms(output, wanted, box)
        slack = checker.slack(problems, rows, relaxation.intervals[-1])
        found = [Minorants.of_forms(forms, forms.range().lower - slack)]
        if method.kind != "taylor":
            effort = Effort(1, self.memory, deadline)
            if method.kind == "taylor, nodes":
                known = {i: relaxation.intervals[i] for i in graph.bounded}
                relaxation = linear_bounds(graph, box, effort, part=Part(known))
            effort = replace(effort, iterations=KINDS[method.kind])
            bounds = optimised_row_bounds(relaxation, graph.output, wanted, effort, lambda b: False)
            found.append(Minorants.of_bounds(bounds, bounds.lower - slack, forms.monomials))
        return rows, slack, forms, found

    def _split(self, left: Subproblems, rows: Tensor, found: list[Minorants], forms: Form) -> Attack:
        """Clip the boxes, which are open, and push their halves; points worth an attack."""
        prop, free = self.checker.property, forms.monomials.free
        place = torch.full((len(prop.output),), -1, dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        wanted = prop.rows[left.group]
        position = torch.where(wanted >= 0, place[wanted.clamp(min=0)], -1)
        disjunct = torch.where(left.open, left.margins.amax(2), torch.inf).argmin(1)
        each = torch.arange(len(left))
        row = position[each, disjunct]
        closest = row[each, left.margins[each, disjunct].argmax(1)]
        worst = self._worst(left, disjunct, closest, found[-1])
        score = self._scores(left, row, forms)
        box, empty = self._clip(left, position, found)
        kept = (box.width / left.box.width).nan_to_num(0.0)[:, free]
        clipped = left.open & (empty | (kept < 1.0).any(1, keepdim=True))
        self._record(clipped, left.group, DELTA * left.margins.amax(2).abs())
        self._halve(Subproblems(box, left.group, left.open & ~empty, left.margins), score * kept, free)
        return worst

    def _halve(self, left: Subproblems, score: Tensor, free: Tensor) -> None:
        """Push the halves of the boxes that are open, across the free coordinate of the largest score (B, n)."""
        wide = (left.box.width[:, free] > MIN_WIDTH * self._root[free]).any(1)
        stuck = (left.open.any(1) & ~wide).nonzero().squeeze(1)
        if len(stuck):
            self._stuck.append(left[stuck])
        keep = (left.open.any(1) & wide).nonzero().squeeze(1)
        if not len(keep):
            return
        left, score = left[keep], score[keep].nan_to_num(0.0, posinf=torch.finfo(score.dtype).max)
        width = left.box.width[:, free]
        entry = free[torch.where(width > MIN_WIDTH * self._root[free], score, -1.0).argmax(1)]
        each = torch.arange(len(left))
        lower, upper = left.box.lower.clone(), left.box.upper.clone()
        upper[each, entry] = lower[each, entry] = left.box.centre[each, entry]
        halves = (Interval(left.box.lower, upper), Interval(lower, left.box.upper))
        self._stack.append(
            Subproblems.concatenated([Subproblems(h, left.group, left.open, left.margins) for h in halves])
        )

    def _scores(self, left: Subproblems, row: Tensor, forms: Form) -> Tensor:
        """(B, n): how much the rows (B, K) of every box move along each coordinate, relative to what they fall short.

        Half of what a mixed term moves counts for either coordinate; errors count for all, by width.
        """
        n = forms.monomials.count
        moves = forms.linear.abs()
        if forms.quadratic.shape[1]:
            i, j = (t[n:] for t in forms.monomials.pairs)
            mixed = 0.5 * forms.quadratic[:, n:].abs()
            moves = moves + forms.quadratic[:, :n].abs()
            moves = moves.index_add(1, i, mixed).index_add(1, j, mixed)
        share = left.box.width[:, forms.monomials.free] / self._root[forms.monomials.free]
        moves = moves + ERRORS * share.unsqueeze(2) * forms.error.nan_to_num(posinf=1.0).unsqueeze(1)
        short = forms.range().lower
        each = torch.arange(len(left)).unsqueeze(1)
        picked = moves.mT[each, row.clamp(min=0)] / (short[each, row.clamp(min=0)].abs().unsqueeze(2) + 1e-30)
        return torch.where((row >= 0).unsqueeze(2), picked, 0.0).sum(1)

    def _clip(self, left: Subproblems, position: Tensor, found: list[Minorants]) -> tuple[Interval, Tensor]:
        """The boxes around where all rows of an open disjunct may be violated, and the disjuncts that are nowhere."""
        b, d = left.open.nonzero().unbind(1)
        row = position[b, d]
        limit = self.checker.property.thresholds[left.group[b], d] + DELTA * left.margins[b, d].amax(1, True).abs()
        limit = torch.where(row >= 0, limit, torch.inf).flatten()
        box = b.repeat_interleave(row.shape[1])
        ends = [m.within(box, row.clamp(min=0).flatten(), limit) for m in found]
        n = found[0].monomials.count
        low = torch.stack([e[0] for e in ends]).amax(0).reshape(*row.shape, n).amax(1)
        high = torch.stack([e[1] for e in ends]).amin(0).reshape(*row.shape, n).amin(1)
        nowhere = (low > high).any(1) | (low > 1.0).any(1) | (high < -1.0).any(1)
        empty = torch.zeros_like(left.open)
        empty[b, d] = nowhere
        index = b[~nowhere].unsqueeze(1).expand(-1, n)
        shape = (len(left), n)
        first = torch.full(shape, 1.0, dtype=low.dtype).scatter_reduce_(0, index, low[~nowhere], "amin")
        last = torch.full(shape, -1.0, dtype=low.dtype).scatter_reduce_(0, index, high[~nowhere], "amax")
        return around(found[0].monomials, left.box, first, last), empty

    def _worst(self, left: Subproblems, disjunct: Tensor, row: Tensor, best: Minorants) -> Attack:
        """Groups, disjuncts and points (P, 1, m): the minimisers of the most open boxes' most promising rows."""
        index = left.margin_lower.argsort()[:STARTS]
        monomials = best.monomials[index]
        x = left.box.centre[index]
        x[:, monomials.free] = (
            monomials.centre + monomials.radius * best[index].minimiser[torch.arange(len(index)), :, row[index]]
        )
        return left.group[index], disjunct[index], x.unsqueeze(1)

    def _pop(self, count: int) -> Subproblems:
        """So many boxes from the top of the stack, or all there are."""
        parts: list[Subproblems] = []
        while self._stack and count:
            part = self._stack.pop()
            if len(part) > count:
                self._stack.append(part[: len(part) - count])
                part = part[len(part) - count :]
            parts.append(part)
            count -= len(part)
        return Subproblems.concatenated(parts)

    def _record(self, settled: Tensor, group: Tensor, margins: Tensor) -> None:
        """Keep the smallest of the margins (B, D) with which disjuncts were settled on leaves."""
        worst = torch.where(settled, margins, torch.inf)
        self._settled.scatter_reduce_(0, group.unsqueeze(1).expand_as(worst), worst, "amin")


def _gains(before: Subproblems, after: Subproblems) -> list[float]:
    """What the bounds have gained on some of the boxes, see `shares`."""
    index = torch.linspace(0, len(before) - 1, min(REMEMBERED, len(before))).long()
    return shares(before.margin_lower[index].tolist(), after.margin_lower[index].tolist())


def _order(graph: Graph) -> int:
    """Of the forms: quadratic parts are of no use where nothing bends."""
    return 1 if all(node.straight for node in graph) else 2


def at_once(graph: Graph, free: int, memory: float) -> int:
    """How many boxes' forms in so many free inputs fit into the memory (GiB): the widest node's, several times."""
    terms = 1 + free + (free * (free + 1) // 2 if _order(graph) == 2 else 0)
    widest = max(node.size for node in graph)
    return max(1, min(8192, int(min(memory, PIECE) * 2**30 / (8 * 6 * terms * widest))))
