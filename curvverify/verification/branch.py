"""Branch and bound: batched, most open subproblem first; `splits` says where to split."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvverify.bounding.linear import Effort
from curvverify.types import Deadline, Interval
from curvverify.verification.checker import Checked, Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.result import Witness
from curvverify.verification.splits import Cut, Open, input_cuts, neuron_cuts
from curvverify.verification.state import Subproblems, concatenate

ATTACK_EVERY = 0.5
"""Seconds between attacks from the subproblems' own minimisers."""

MIN_WIDTH = 1e-9
"""Relative to the query's box: coordinates narrower than this are not split any further."""


@dataclass(eq=False)
class Branching:
    """The queue of open subproblems and what became of the others."""

    checker: Checker
    falsifier: Falsifier
    memory: float
    """GiB for one computation, and for the queue."""
    batch: int
    by_input: bool = True
    """Whether to split input coordinates, which pays for few of them, or the arguments of elementwise functions."""
    progress: Callable[[str], None] = lambda line: None
    bounded: int = 0
    """Subproblems bounded so far."""
    witness: Witness | None = None
    _bytes: int = 0
    _queue: list[tuple[float, int, Open]] = field(default_factory=list)
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def run(self, roots: list[Checked], deadline: Deadline) -> None:
        """Split until nothing is open, a witness is found or time is up.

        `roots` hold the bounded but open subproblems; `outcome` tells what became of them.
        """
        shape = self.checker.property.present.shape
        self._settled = torch.full(shape, torch.inf, dtype=torch.float64)
        widths = torch.cat([root.problems.box.width for root in roots])
        self._smallest = MIN_WIDTH * widths.amax(0)
        for root in roots:
            self._push(root)
        reported = attacked = time.monotonic()
        batch = 16 if self.by_input else 4
        while self._queue and not deadline.passed and self.witness is None and self._bytes < self.memory * 2**30:
            begun = time.monotonic()
            problems, known = self._split(min(batch, self.batch))
            checked = self.checker.linear(problems, Effort(1, self.memory, deadline), row_iterations=6, known=known)
            self.bounded += len(problems)
            self._record(problems, checked.problems)
            self._push(checked)
            now = time.monotonic()
            if now - attacked > ATTACK_EVERY or self.bounded < 64:
                attacked = now
                self.witness = attack_minima(checked, self.falsifier, deadline)
            batch = 2 * batch if now - begun < 0.15 else max(4, batch // 2) if now - begun > 0.5 else batch
            if now - reported > 1.0:
                reported = now
                worst = self._queue[0][0] if self._queue else 0.0
                self.progress(f"branch: {self.bounded} bounded, {len(self._queue)} open, worst margin {worst:.4g}")

    def outcome(self) -> tuple[Tensor, Tensor]:
        """(G, D) each: the smallest proved margin over all leaves, and the disjuncts that are open on some leaf."""
        margins, still = self._settled.clone(), torch.zeros_like(self.checker.property.present)
        if self._queue:
            left = concatenate([entry.problem for _, _, entry in self._queue])
            best = torch.where(left.open, left.margins.amax(2), torch.inf)
            index = left.group.unsqueeze(1).expand_as(best)
            margins.scatter_reduce_(0, index, best, "amin")
            still = torch.zeros_like(margins).scatter_reduce_(0, index, left.open.double(), "amax") > 0
        return margins, still

    def _record(self, before: Subproblems, after: Subproblems) -> None:
        """Keep the smallest margin with which each disjunct was settled on a leaf."""
        settled = before.open & ~after.open
        best = torch.where(settled, after.margins.amax(2), torch.inf)
        index = after.group.unsqueeze(1).expand_as(best)
        self._settled.scatter_reduce_(0, index, best, "amin")

    def _push(self, checked: Checked) -> None:
        """Queue what is still open, with the place to split it."""
        problems, relaxation = checked.problems, checked.relaxation
        boxes = problems.unsettled
        if not boxes.numel():
            return
        cuts: list[Cut | None] = [None] * len(boxes)
        if not self.by_input:
            cuts = neuron_cuts(self.checker, checked, boxes)
        if None in cuts:  # nothing is left to split but the input
            inputs = input_cuts(self.checker, checked, boxes, self._smallest)
            cuts = [i if c is None else c for c, i in zip(cuts, inputs, strict=True)]
        for b, cut in zip(boxes.tolist(), cuts, strict=True):
            assert cut is not None
            known = {i: relaxation.intervals[i][b : b + 1] for i in self.checker.graph.bounded}
            entry = Open(problems[b : b + 1], known, cut)
            self._bytes += entry.bytes
            heapq.heappush(self._queue, (float(entry.problem.margin_lower[0]), next(self._count), entry))

    def _split(self, count: int) -> tuple[Subproblems, dict[int, Interval]]:
        """Both halves of the most open subproblems, with what is known of their nodes."""
        parts: list[tuple[Subproblems, dict[int, Interval]]] = []
        for _ in range(min(count, len(self._queue))):
            entry = heapq.heappop(self._queue)[2]
            self._bytes -= entry.bytes
            parts += entry.halves()
        stacked = {
            i: Interval(torch.cat([k[i].lower for _, k in parts]), torch.cat([k[i].upper for _, k in parts]))
            for i in self.checker.graph.bounded
        }
        return concatenate([problem for problem, _ in parts]), stacked


def attack_minima(checked: Checked, falsifier: Falsifier, deadline: Deadline, most: int = 512) -> Witness | None:
    """Descend from the corners at which the open rows' linear forms are smallest, at most so many of them.

    The minimiser of a tight relaxation is close to the network's own: these starts find isolated witnesses that
    random ones miss.
    """
    problems, prop = checked.problems, falsifier.property
    place = torch.full((len(prop.output),), -1, dtype=torch.long)
    place[checked.rows] = torch.arange(len(checked.rows))
    rows = prop.rows[problems.group]
    known = (rows >= 0) & (place[rows.clamp(min=0)] >= 0) & problems.open.unsqueeze(2)
    box, disjunct, slot = known.nonzero()[:most].unbind(1)
    if not box.numel():
        return None
    slope = checked.bounds.slope[box, place[rows[box, disjunct, slot]]].flatten(1)
    corner = torch.where(slope > 0, problems.box.lower[box], problems.box.upper[box])
    return falsifier.descend(problems.group[box], disjunct, corner.unsqueeze(1), deadline)
