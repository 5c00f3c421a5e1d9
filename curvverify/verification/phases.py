"""Branch and bound over the phases of unstable ReLU-like functions, on the node bounds of the whole box.

A part costs a few products of small matrices, so that thousands are bounded in the time that bounds on all nodes of a
few parts would take.  Each disjunct is refuted by its most promising row.  Boxes that are cut otherwise come first to
this search, which closes them or gives up: what it has closed by then need not be closed on their halves again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.bounding.contraction import Contraction
from curvverify.bounding.cuts import best_cuts
from curvverify.bounding.phases import Ascent, Phases, decided_lower
from curvverify.bounding.reduced import bends, reduced_network, reducible, unstable_hinges
from curvverify.types import Deadline, Interval
from curvverify.verification.checker import Checked, Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.parts import OpenPart, PartQueue, Parts, hull
from curvverify.verification.result import Witness
from curvverify.verification.state import Subproblems

FIRST, ITERATIONS = 40, 12
"""Steps of ascent for a whole box, and for its parts."""

BETWEEN, ATTACKS = 1.0, 0.05
"""Seconds between attacks, at least, and the share of the time they take, at most."""

SECONDS = (0.4, 2.0)
"""A batch that took less is doubled, one that took more is halved."""

ENOUGH = {torch.float32: 1e-5, torch.bfloat16: 3e-3}
"""Relative to the size of what was to be gained: how far above 0 estimates of some precision end a search."""

EARLY, WHILE = 0.05, 0.2
"""Share of the time left for contracting the ranges of whole boxes before any cut, and for doing so again if that was
enough for a first time."""

HASTY = 3.0
"""With less patience ranges are not contracted at all."""

AGAIN, DUE = 0.1, 8
"""Hulls of groups that cuts do not close are contracted, and again while this share of what was missing is gained; so
many at once."""

CUTS, GROWS, DEAR = 2.0, 0.15, 0.25
"""Seconds of cuts for every second of contractions.  Cuts do not close a group with more open parts than this for every
cut, if bounding these takes more than this share of what a contraction takes."""

ALIKE = 6
"""Phases that all open parts of a disjunct have in common, at least, for a box of their own."""


@dataclass(frozen=True, eq=False)
class _Target:
    """A disjunct of the box and the row that is to refute it: its lower bound has to exceed `least`."""

    disjunct: int
    row: int
    least: float
    margin: float
    """Proved on the whole box."""


@dataclass(frozen=True, eq=False)
class Remainder:
    """What a search has left open: disjuncts (D,) on the part of the box where these bounds of nodes hold."""

    open: Tensor
    known: dict[int, Interval]
    share: float
    """1 / 2 to the number of phases that the part has fixed."""


@dataclass(eq=False)
class PhaseSearch:
    """The parts of one box that are still open."""

    checker: Checker
    falsifier: Falsifier
    root: Checked
    """One subproblem."""
    memory: float
    """GiB for the network's matrices, and for the queue."""
    batch: int
    """Most parts bounded at once."""
    progress: Callable[[PhaseSearch], None] = lambda search: None
    """Called after every batch of parts."""
    bounded: int = 0
    witness: Witness | None = None
    _cutting: float = 0.0
    _contracting: float = 0.0
    _contracted: int = 0
    """Seconds that cuts have taken, and contractions of so many parts."""
    _size: int = 8

    def __post_init__(self) -> None:
        self.graph, self.problems = self.checker.graph, self.root.problems
        # of each disjunct, the smallest margin proved on what is closed
        self.settled = torch.full(self.problems.open.shape[1:], torch.inf, dtype=torch.float64)

    @property
    def possible(self) -> bool:
        """Whether there are hinges to be cut, everything is bounded, and the matrices fit into the memory."""
        relaxation, output = self.root.relaxation, self.graph.output
        if not reducible(relaxation, output):
            return False
        nodes = [self.graph.nodes[i] for i in self.graph.ancestors[output]]
        free = self.graph.nodes[0].size + sum(node.size for node in nodes if bends(node))
        count = unstable_hinges(relaxation, output).count
        return count > 0 and 4.0 * count * (free + count) < self._room

    def run(self, deadline: Deadline, patience: float = math.inf) -> None:
        """Cut until nothing is open, a witness is found or time or memory is up.

        What cuts do not close is contracted in between, if there is patience.  It gives up where so many seconds of CPU
        time have not been enough to halve the share that is open.
        """
        self._attack_at = time.monotonic() + BETWEEN
        self._begin()
        contracts = patience >= HASTY
        if contracts and self.queue.free:
            early, later = (deadline.sooner(share * deadline.remaining) for share in (EARLY, WHILE))
            self._contract(self.queue.pop(self.queue.free), early, later)
        turn, share = time.process_time(), self.queue.share
        while self.queue.free and not self._over(deadline):
            if time.process_time() - turn > patience:
                if self.queue.share > 0.5 * share:
                    break
                turn, share = time.process_time(), self.queue.share
            due = self._due if contracts else []
            if due:
                found, still = self._searched(self.queue.hulls(due))
                self._contract(found[still], deadline)
            else:
                self._advance(deadline)

    def _over(self, deadline: Deadline) -> bool:
        full = 16.0 * len(self.queue) * self.ascent.network.hinges.count > 0.5 * self.memory * 2**30
        return deadline.passed or self.witness is not None or full

    def _advance(self, deadline: Deadline) -> None:
        """Cut a batch of parts."""
        begun = time.monotonic()
        batch = self.queue.pop(self._size)
        corners = self._cut(batch)
        now = time.monotonic()
        self._cutting += now - begun
        if now - begun < SECONDS[0]:
            self._size = min(2 * self._size, self.batch)
        elif now - begun > SECONDS[1]:
            self._size = max(1, self._size // 2)
        if now > self._attack_at:
            self._attack(batch, corners, deadline)
            self._attack_at = time.monotonic() + max(BETWEEN, (time.monotonic() - now) / ATTACKS)
        self.progress(self)

    @property
    def _due(self) -> list[int]:
        """Groups whose turn it is to be contracted: of those that cuts do not close, the ones that were cut most."""
        if self._cutting <= CUTS * self._contracting:
            return []
        each, part = self._contracting / max(1, self._contracted), self._cutting / self.bounded
        due = self.queue.growing(DUE, GROWS, DEAR * each / part)
        return due if self._cutting >= CUTS * (self._contracting + len(due) * each) else []

    def outcome(self) -> tuple[Tensor, Tensor]:
        """(D,) each: the smallest proved margins over all parts, and the disjuncts that are open on some part."""
        margins, still = self.settled.clone(), torch.zeros_like(self.problems.open[0])
        for target in {part.target for part in self.queue}:
            disjunct = self.targets[target].disjunct
            margins[disjunct] = min(float(margins[disjunct]), self.targets[target].margin)
            still[disjunct] = True
        return margins, still

    def remainder(self, alike: float = ALIKE) -> list[Remainder]:
        """What is open.

        Disjuncts of which only parts with so many phases in common are open have a box of their own.
        """
        parts: dict[int, list[OpenPart]] = {}
        for part in self.queue:
            parts.setdefault(part.target, []).append(part)
        found, whole = list[Remainder](), torch.zeros_like(self.problems.open[0])
        before = Phases.whole(self.ascent.network.hinges).signs.count_nonzero()
        for held in map(hull, parts.values()):
            disjunct, fixed = self.targets[held.target].disjunct, int(held.phases.signs.count_nonzero() - before)
            if fixed < alike:
                whole[disjunct] = True
            else:
                alone = torch.zeros_like(whole)
                alone[disjunct] = True
                found.append(Remainder(alone, self._bounds(held.phases), held.share))
        return [*([Remainder(whole, {}, 1.0)] if bool(whole.any()) else []), *found]

    def _bounds(self, phases: Phases) -> dict[int, Interval]:
        """Bounds of the nodes that are arguments of hinges, on one part."""
        found: dict[int, Interval] = {}
        for site in self.ascent.network.hinges.sites:
            i = self.graph.nodes[site.node].inputs[0]
            x = found.get(i, self.root.relaxation.intervals[i])
            ends = x.lower.clone(), x.upper.clone()
            for end, ranges in zip(ends, (phases.lower, phases.upper), strict=True):
                end.flatten()[site.entries] = ranges[0, site.place].double()
            found[i] = x.intersect(Interval(*ends))
        return found

    @property
    def _room(self) -> float:
        """Bytes for the network's matrices, and as many for slopes that are kept."""
        return 0.0625 * self.memory * 2**30

    def _begin(self) -> None:
        prop, problems, relaxation = self.checker.property, self.problems, self.root.relaxation
        margins, rows = problems.margins[0], prop.rows[problems.group[0]]
        output, box = relaxation.intervals[-1].magnitude.flatten(1), problems.box.magnitude
        self.targets: list[_Target] = []
        for d in problems.open[0].nonzero().squeeze(1).tolist():
            k = int(margins[d].argmax())
            row = rows[d, k : k + 1]
            slack = float(prop.coefficient_slack(row, output, box)[0, 0])
            least = float(prop.thresholds[problems.group[0], d, k]) + 1.0000001 * slack
            self.targets.append(_Target(d, int(row[0]), least, float(margins[d, k])))
        self.queue = PartQueue(len(self.targets))
        index = torch.tensor([t.row for t in self.targets])
        self.rows = prop.select_rows(index, self.graph.output_shape, self.graph.input_shape)
        shift = None if self.rows.input is None else self.rows.input[0]
        network = reduced_network(relaxation, self.graph.output, self.rows.coefficients[0], shift)
        self.least = torch.tensor([t.least for t in self.targets], dtype=torch.float64)
        self.ascent = Ascent.quick(network, self.least.float())
        enough = ENOUGH[self.ascent.precision]
        self.enough = torch.tensor([enough * abs(t.margin) for t in self.targets], dtype=torch.float64)
        remember = 8.0 * len(index) * network.hinges.count**2 < self._room
        self.contraction = Contraction(self.ascent, relaxation, self.graph.output, self.rows, remember)
        whole = Phases.whole(network.hinges)[torch.zeros(len(index), dtype=torch.long)]
        self._bound(Parts.whole(whole))

    def _contract(self, batch: Parts, deadline: Deadline, later: Deadline | None = None) -> None:
        """Narrow the ranges of parts where their rows are not positive, again and again while that pays.

        If there was time for all of it, there may be a later deadline for doing so again.
        """
        begun = time.monotonic()
        self._contracted += len(batch)
        while len(batch) and not deadline.passed:
            bars = self.least[batch.targets] + self.enough[batch.targets]
            narrowed = self.contraction.narrowed(batch.targets, batch.phases, bars, deadline)
            less = (narrowed.lower > batch.phases.lower) | (narrowed.upper < batch.phases.upper)
            for target in batch.targets[less.any(1)].tolist():  # what was taken off is above the bar
                self._settle(target, float(self.enough[target]))
            batch = replace(batch, phases=narrowed)[~narrowed.empty]
            found, still = self._searched(batch)
            pays = (found.margins - batch.margins > AGAIN * batch.margins.abs()) | deadline.passed
            self.queue.add(found[still & ~pays].contracted(), searched=True)
            batch = found[still & pays]
            if not deadline.passed:
                deadline = later or deadline
            self.progress(self)
        self.queue.add(batch, searched=True)
        self._contracting += time.monotonic() - begun

    def _cut(self, batch: Parts) -> Tensor:
        """Cut every part at the most promising hinge and bound both halves; the corners (B, n) of their minima."""
        found = self.ascent.backward(batch.targets, batch.phases)
        missing = (self.enough[batch.targets] - batch.margins).float()
        cuts = best_cuts(self.ascent, batch.targets, batch.phases, found, missing)
        if bool(cuts.free.any()):
            self._bound(batch[cuts.free].halves(cuts[cuts.free]), warm=True)
        if not bool(cuts.free.all()):  # every phase is fixed: more ascent is all that is left
            self._bound(batch[~cuts.free])
        return found.slope.sign().neg()

    def _bound(self, batch: Parts, warm: bool = False) -> None:
        found, still = self._searched(batch, warm)
        self.queue.add(found[still], searched=not warm)

    def _searched(self, batch: Parts, warm: bool = False) -> tuple[Parts, Tensor]:
        """With estimated margins, and those (B,) that are still open; what is proved in float64 is settled.

        A short search from the slopes of a larger part where it is `warm`, otherwise a long one.
        """
        self.bounded += len(batch)
        least, enough = self.least[batch.targets], self.enough[batch.targets]
        bars, iterations = (least + enough).float(), ITERATIONS if warm else FIRST
        estimates, phases = self.ascent.ascend(batch.targets, batch.phases, bars, iterations, warm)
        margins = estimates.double() - least
        near = (margins > 0.5 * enough).nonzero().squeeze(1)
        if len(near):
            relaxation, rows = self.root.relaxation, self.rows[batch.targets[near]]
            hinges = self.ascent.network.hinges
            lower = decided_lower(relaxation, self.graph.output, rows, hinges, phases[near])
            margins[near] = lower - least[near]
        proved = torch.zeros(len(batch), dtype=torch.bool)
        proved[near] = margins[near] > 0.0
        for target, margin in zip(batch.targets[proved].tolist(), margins[proved].tolist(), strict=True):
            self._settle(target, margin)
        return replace(batch, phases=phases, margins=torch.fmax(margins.clamp(max=0.0), batch.margins)), ~proved

    def _settle(self, target: int, margin: float) -> None:
        disjunct = self.targets[target].disjunct
        self.settled[disjunct] = min(float(self.settled[disjunct]), margin)

    def _attack(self, batch: Parts, corners: Tensor, deadline: Deadline) -> None:
        """Descend from the corners at which the relaxed rows of some parts take their minima."""
        box = self.problems.box[0]
        inputs = self.root.relaxation.box.width[0].flatten() > 0
        starts = box.centre.expand(len(corners), -1).clone()
        starts[:, inputs] += corners[:, : int(inputs.sum())].double() * (0.5 * box.width[inputs])
        disjuncts = torch.tensor([self.targets[target].disjunct for target in batch.targets.tolist()])
        group = self.problems.group.expand(len(batch))
        some = slice(0, 32)
        self.witness = self.falsifier.descend(group[some], disjuncts[some], starts[some].unsqueeze(1), deadline)


@dataclass(eq=False)
class Finisher:
    """Searches the phases of boxes before they are split otherwise."""

    checker: Checker
    falsifier: Falsifier
    memory: float
    batch: int
    patience: float
    """Seconds of CPU time in which a search has to halve what is open: about what cutting a box otherwise costs."""
    least: float
    """The patience with parts of roots, at least."""
    after: float = 0.0
    """CPU seconds of splits before any search: what those close is closed sooner by them."""
    alike: float = ALIKE
    """Phases that open parts have in common, for a box of their own."""
    progress: Callable[[], None] = lambda: None
    parts: int = 0
    """Parts bounded so far."""
    witness: Witness | None = None

    def finish(self, box: Checked, deadline: Deadline) -> tuple[Subproblems, list[Remainder], Tensor] | None:
        """The one subproblem after a search, what that has left open, and the smallest margins (D,) on the rest.

        None where phases cannot be searched.
        """
        search = PhaseSearch(self.checker, self.falsifier, box, self.memory, self.batch, lambda search: self.progress())
        if not search.possible:
            return None
        search.run(deadline, self.patience)
        self.parts += search.bounded
        self.witness = search.witness
        margins, still = search.outcome()
        return (
            box.problems.branched(margins.unsqueeze(0), still.unsqueeze(0)),
            search.remainder(self.alike),
            search.settled,
        )
