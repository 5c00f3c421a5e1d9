"""Branch and bound: one queue, most open subproblem first; `methods` says how to split, `splits` where."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvverify.bounding.coupling.block import Frame
from curvverify.bounding.linear import Effort
from curvverify.bounding.relaxation import Part
from curvverify.bounding.resume import NodeState
from curvverify.bounding.slabs import Slabs
from curvverify.ops.joint import Tangent, stacked
from curvverify.types import Deadline, Interval
from curvverify.verification.checker import Checked, Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.methods import Method, best, shares
from curvverify.verification.phases import Finisher
from curvverify.verification.result import Witness
from curvverify.verification.splits import Cut, Directions, Open, SlabCut, directions, input_cuts, neuron_cuts
from curvverify.verification.state import Subproblems

ATTACK_EVERY = 0.5
"""Seconds between attacks from the subproblems' own minimisers."""

MIN_WIDTH = 1e-9
"""Relative to the query's box: coordinates narrower than this are not split any further."""

PLAIN, COLD, WARM = 1, 4, 2
"""Frank-Wolfe iterations for the nodes of children: plain ones, coupled ones without and with the states of their
parents' searches."""

ROWS = 6
"""Frank-Wolfe iterations for the property's rows, more where coupled."""

PATIENCE = 1.0
"""CPU seconds, at least, that a search of phases may take before it has halved what is open."""

SEARCHED = 0.75
"""Phases are searched again where a part's margin is above this share of what it was at the last search."""

STEP = 0.5
"""CPU seconds that one batch should take, within a factor of two."""

STATES, DEEP = 0.3, 0.6
"""Shares of the memory above which the queue forgets the states of searches, and goes deep instead of wide."""


@dataclass(eq=False)
class _Root:
    """What the parts of one root box share; its directions are found when they are first asked for."""

    checked: Checked | None
    frames: Mapping[tuple[int, ...], Frame | None]
    tangents: Mapping[int, Tangent]
    _found: tuple[Directions | None] | None = None

    def directions(self, checker: Checker) -> Directions | None:
        if self._found is None and self.checked is not None:
            self._found = (directions(checker, self.checked, 0),)
            self.checked = None
        return None if self._found is None else self._found[0]


@dataclass(frozen=True)
class _Above:
    """What a subproblem takes over from the one it is a part of."""

    root: int
    share: float = 1.0
    searched: float = -torch.inf


@dataclass(eq=False)
class Branching:
    """The queue of open subproblems and what became of the others."""

    checker: Checker
    falsifier: Falsifier
    memory: float
    """GiB for one computation, and for the queue."""
    batch: int
    """Most subproblems bounded at once."""
    methods: list[Method]
    finisher: Finisher | None = None
    """What boxes go through before they are split."""
    progress: Callable[[Branching], None] = lambda branching: None
    """Called after every batch of subproblems."""
    bounded: int = 0
    """Subproblems bounded so far."""
    witness: Witness | None = None
    share: float = 0.0
    """Sum of the open subproblems' shares of the root boxes."""
    _bytes: int = 0
    _splitting: float = 0.0
    """CPU seconds that splits have taken."""
    _queue: list[tuple[float, int, Open]] = field(default_factory=list)
    _count: itertools.count[int] = field(default_factory=itertools.count)
    _roots: list[_Root] = field(default_factory=list)

    def run(self, roots: list[Checked], deadline: Deadline) -> None:
        """Split until nothing is open, a witness is found or time is up.

        `roots` hold the bounded but open subproblems; `outcome` tells what became of them.
        """
        self._begin(roots, deadline)
        attacked = time.monotonic()
        while self._queue and not deadline.passed and self.witness is None and not self.full:
            method = best(self.methods)
            checked = self._step(method, deadline)
            now = time.monotonic()
            if self.witness is None and (now - attacked > ATTACK_EVERY or self.bounded < 64):
                attacked = now
                self.witness = attack_minima(checked, self.falsifier, deadline)
            self.progress(self)

    @property
    def full(self) -> bool:
        """Whether the open subproblems take all of the memory."""
        return self._bytes >= self.memory * 2**30

    @property
    def open(self) -> int:
        """Number of open subproblems."""
        return len(self._queue)

    @property
    def margin_lower(self) -> float:
        """The smallest margin of the open subproblems, inf where there are none."""
        return self._queue[0][0] if self._queue else torch.inf

    def worst(self, count: int) -> list[Open]:
        """So many of the open subproblems, those with the smallest margins first."""
        return [entry for _, _, entry in heapq.nsmallest(count, self._queue)]

    def outcome(self) -> tuple[Tensor, Tensor]:
        """(G, D) each: the smallest proved margin over all leaves, and the disjuncts that are open on some leaf."""
        margins, still = self._settled.clone(), torch.zeros_like(self.checker.property.present)
        if self._queue:
            left = Subproblems.concatenated([entry.problem for _, _, entry in self._queue])
            best = torch.where(left.open, left.margins.amax(2), torch.inf)
            index = left.group.unsqueeze(1).expand_as(best)
            margins.scatter_reduce_(0, index, best, "amin")
            still = torch.zeros_like(margins).scatter_reduce_(0, index, left.open.double(), "amax") > 0
        return margins, still

    def _begin(self, roots: list[Checked], deadline: Deadline) -> None:
        shape = self.checker.property.present.shape
        self._settled = torch.full(shape, torch.inf, dtype=torch.float64)
        widths = torch.cat([root.problems.box.width for root in roots])
        self._smallest = MIN_WIDTH * widths.amax(0)
        sliced = any(method.kind == "slab" for method in self.methods)
        for root in roots:
            for b in root.problems.unsettled.tolist():
                one = root[torch.tensor([b])]
                self._roots.append(_Root(one if sliced else None, one.relaxation.frames, one.relaxation.tangents))
                self._push(one, None, [_Above(len(self._roots) - 1)], deadline)

    def _step(self, method: Method, deadline: Deadline) -> Checked:
        """Split the most open subproblems by one method, and bound their halves."""
        begun = time.process_time()  # not what other processes take
        trial = len(self.methods) > 1 and not method.gains
        entries = self._pop(1 if trial else max(1, min(method.batch, self.batch)), method)
        cuts = self._cuts(method, entries)
        halves = [half for entry, cut in zip(entries, cuts, strict=True) for half in entry.halves(cut)]
        problems = Subproblems.concatenated([problem for problem, _ in halves])
        part = self._stacked(method, entries, [part for _, part in halves])
        iterations = (WARM if part.states else COLD) if method.coupling else PLAIN
        effort = Effort(iterations, self.memory, deadline, method.coupling, keep=method.coupling > 0)
        checked = self.checker.linear(problems, effort, ROWS + 2 * min(method.coupling, 2), part)
        checked = _without_empty(checked)
        self.bounded += len(problems)
        spent = time.process_time() - begun
        self._splitting += spent
        parents = [entry.margin for entry in entries for _ in range(2)]
        method.record(shares(parents, checked.problems.margin_lower.tolist()), spent, len(entries))
        if best(self.methods) is method or all(m is method or not m.gains for m in self.methods):
            self._record(problems, checked.problems)
            if self.finisher is not None:
                self.finisher.patience = max(self.finisher.least, spent / len(entries))
            above = [_Above(entry.root, 0.5 * entry.share, entry.searched) for entry in entries for _ in range(2)]
            self._push(checked, part.slabs, above, deadline)
        else:  # a trial that was not worth it: another cut of the same subproblems will do better
            for entry in entries:
                self._add(entry)
        if spent < 0.5 * STEP:
            method.batch = min(2 * method.batch, self.batch)
        elif spent > 2.0 * STEP:
            method.batch = max(1, method.batch // 2)
        return checked

    def _cuts(self, method: Method, entries: list[Open]) -> list[Cut | SlabCut]:
        """Where to split each of the subproblems: by the method, or the input where that finds nothing.

        The first cut along directions gives a subproblem its slabs.
        """
        cuts: list[Cut | SlabCut | None] = []
        if method.kind == "slab":
            for k, entry in enumerate(entries):
                found = self._roots[entry.root].directions(self.checker)
                if found is None:
                    cuts.append(None)
                    continue
                slabs = entry.part.slabs or found.slabs
                entries[k] = replace(entry, part=replace(entry.part, slabs=slabs))
                cuts.append(found.cut(slabs))
        elif method.kind == "neuron":
            known = _stack([entry.part.known for entry in entries], self.checker.graph.bounded)
            cuts += neuron_cuts(self.checker, Subproblems.concatenated([entry.problem for entry in entries]), known)
        else:
            cuts = [None] * len(entries)
        return [cut or entry.steepest or entry.widest for entry, cut in zip(entries, cuts, strict=True)]

    def _stacked(self, method: Method, entries: list[Open], parts: list[Part]) -> Part:
        """What is known of all halves together."""
        known = _stack([part.known for part in parts], self.checker.graph.bounded)
        root = self._roots[entries[0].root]
        found = [part.slabs for part in parts if part.slabs is not None]
        slabs = None
        if len(found) == len(parts):
            slabs = Slabs.concatenated(found)
        roots = [self._roots[entry.root] for entry in entries for _ in range(2)]
        tangents = {i: stacked([r.tangents[i] for r in roots]) for i in root.tangents}
        if not method.coupling:
            return Part(known, slabs, tangents=tangents)
        index = torch.zeros(len(parts), dtype=torch.long)
        frames = {i: None if f is None else f[index] for i, f in root.frames.items()}
        states: dict[int, NodeState] = {}
        if len(entries) == 1:
            states = {i: state.boxes(index) for i, state in entries[0].part.states.items()}
        return Part(known, slabs, frames=frames, states=states, tangents=tangents)

    def _finish(self, queued: list[tuple[int, Open]], checked: Checked, deadline: Deadline) -> None:
        """Search the phases of boxes just queued, each with its position among the `checked`."""
        finisher = self.finisher
        for b, entry in queued:
            if finisher is None or deadline.passed or self.witness is not None:
                return
            if self._splitting < finisher.after or entry.margin < SEARCHED * entry.searched:
                continue
            found = finisher.finish(checked[torch.tensor([b])], deadline)
            self.witness = finisher.witness
            if found is None:
                continue
            after, left, margins = found
            self._record(entry.problem, after)
            group = int(after.group)
            self._settled[group] = torch.minimum(self._settled[group], margins)
            self._remove(entry)
            for rest in left:
                problem = replace(after, open=rest.open.unsqueeze(0))
                part = replace(entry.part, known={**entry.part.known, **rest.known})
                share = entry.share * rest.share * int(rest.open.sum()) / int(entry.problem.open.sum())
                margin = float(problem.margin_lower)
                open_ = replace(entry, problem=problem, part=part, margin=margin, share=share, searched=entry.margin)
                self._add(open_)

    def _remove(self, entry: Open) -> None:
        self._queue = [item for item in self._queue if item[2] is not entry]
        heapq.heapify(self._queue)
        self._bytes -= entry.bytes
        self.share -= entry.share

    def _record(self, before: Subproblems, after: Subproblems) -> None:
        """Keep the smallest margin with which each disjunct was settled on a leaf."""
        settled = before.open & ~after.open
        best = torch.where(settled, after.margins.amax(2), torch.inf)
        index = after.group.unsqueeze(1).expand_as(best)
        self._settled.scatter_reduce_(0, index, best, "amin")

    def _push(self, checked: Checked, slabs: Slabs | None, above: list[_Above], deadline: Deadline) -> None:
        """Queue what is still open, and try to finish it."""
        problems, relaxation = checked.problems, checked.relaxation
        boxes = problems.unsettled
        if not boxes.numel():
            return
        cuts: list[Cut] | list[None] = [None] * len(boxes)
        if any(method.kind == "input" for method in self.methods):
            cuts = input_cuts(self.checker, checked, boxes, self._smallest)
        margins = problems.margin_lower.tolist()
        roomy = self._bytes < STATES * self.memory * 2**30
        queued: list[tuple[int, Open]] = []
        for b, cut in zip(boxes.tolist(), cuts, strict=True):
            known = {i: relaxation.intervals[i][b : b + 1] for i in self.checker.graph.bounded}
            index = torch.tensor([b])
            states = {i: s.boxes(index) for i, s in relaxation.states.items()} if roomy else {}
            part = Part(known, None if slabs is None else slabs[b : b + 1], states=states)
            a = above[b]
            queued.append((b, Open(problems[b : b + 1], part, a.root, margins[b], cut, a.share, a.searched)))
            self._add(queued[-1][1])
        self._finish(queued, checked, deadline)

    def _add(self, entry: Open) -> None:
        self._bytes += entry.bytes
        self.share += entry.share
        heapq.heappush(self._queue, (entry.margin, next(self._count), entry))

    def _pop(self, count: int, method: Method) -> list[Open]:
        """The most open subproblems, which share a root where they are coupled or cut along its directions."""
        if self._bytes > STATES * self.memory * 2**30:
            self._forget()
        deep = self._bytes > DEEP * self.memory * 2**30
        found: list[Open] = []
        others: list[tuple[float, int, Open]] = []
        while self._queue and len(found) < count and len(others) < count:
            if deep:  # the nearly proved: few are added before one is closed
                item = self._queue.pop(max(range(len(self._queue)), key=lambda k: self._queue[k][0]))
                heapq.heapify(self._queue)
            else:
                item = heapq.heappop(self._queue)
            bound = method.coupling or method.kind == "slab" or item[2].part.slabs is not None
            together = not found or not bound or item[2].root == found[0].root
            if together:
                found.append(item[2])
                self._bytes -= item[2].bytes
                self.share -= item[2].share
            else:
                others.append(item)
        for item in others:
            heapq.heappush(self._queue, item)
        return found

    def _forget(self) -> None:
        """Drop the states of the queue's searches."""
        self._queue = [(margin, n, entry.forgetful()) for margin, n, entry in self._queue]
        self._bytes = sum(entry.bytes for _, _, entry in self._queue)


def _stack(known: list[Mapping[int, Interval]], nodes: tuple[int, ...]) -> dict[int, Interval]:
    return {i: Interval(torch.cat([k[i].lower for k in known]), torch.cat([k[i].upper for k in known])) for i in nodes}


def _without_empty(checked: Checked) -> Checked:
    """Settle the boxes of which no point is where all bounds of nodes hold: cuts have left nothing of them."""
    empty = checked.relaxation.empty
    if not bool(empty.any()):
        return checked
    margins = torch.where(empty, torch.inf, -torch.inf).double().reshape(-1, 1, 1)
    return replace(checked, problems=checked.problems.proved(margins.expand_as(checked.problems.margins)))


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
