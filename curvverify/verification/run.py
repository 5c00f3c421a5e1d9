"""One decision from start to end: falsify briefly, interval, linear, refine, coupled, cuts and branches."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from curvverify.bounding.coupling.build import covered
from curvverify.bounding.linear import Effort
from curvverify.bounding.reduced import bends, convex_hinge, reducible
from curvverify.bounding.relaxation import Part
from curvverify.graph import LoadedModel
from curvverify.graph.attention import with_attention
from curvverify.graph.layers import Graph
from curvverify.graph.ramps import with_ramps
from curvverify.graph.replay import Replayer
from curvverify.ops.base import Elementwise
from curvverify.ops.joint import Joint
from curvverify.spec.query import Query
from curvverify.types import Deadline, Interval, Verdict
from curvverify.verification.bound_methods import BoundMethod
from curvverify.verification.boxes import MANY, BoxSearch, at_once
from curvverify.verification.branch import PATIENCE, Branching, attack_minima
from curvverify.verification.checker import Checked, Checker
from curvverify.verification.falsify import Falsifier
from curvverify.verification.given import Given
from curvverify.verification.methods import Method
from curvverify.verification.options import Options
from curvverify.verification.phases import Finisher
from curvverify.verification.progress import REGIONS, Reporter, open_boxes, open_leaves
from curvverify.verification.property import compile_query
from curvverify.verification.provenance import provenance
from curvverify.verification.result import DisjunctBound, Remaining, Result, Stage, Witness
from curvverify.verification.state import Subproblems

log = logging.getLogger("curvverify")

COUPLED_BOX = 0.1
"""GiB that the tables and matrices of one coupled level of one box may take."""

COUPLED_SHARE, DEARER = 0.4, 3.0
"""Coupling more levels may take this share of the time left; it is expected to take so many times the last step's."""

COVERED, FIRST_SHARE, FURTHER = 0.9, 0.1, 0.05
"""Kinks are cut without coupling where a block would hold less than the first share of the first level's gaps, or would
take more than the second of the time left; before that, bounds are refined further where this takes less than the
third."""

SPLIT, ROOT, LONG = 0.5, 0.3, 6.0
"""Patience with a root's phases: a share of the seconds of its last bounds, or of what is left, so long at most."""

ALONE = 0.85
"""The same where roots are not coupled, so that splits gain little: a share of what is left."""

BRIEF, AFTER = 0.05, 2.0
"""Where splits gain much, since few inputs are free or functions bend: CPU seconds of patience with phases, after so
many seconds of splits."""

SMOOTH_LEVELS = 1
"""Levels coupled before branching where all functions are smooth: more levels gain less than cuts along directions."""

WORTH = 0.05
"""Coupling goes on, with more levels, while the last step took away this share of the deepest shortfall."""


def _free(box: Interval) -> int:
    """The largest number of coordinates that are not fixed, over the boxes (B, n)."""
    return int((box.width > 1e-7).sum(1).max()) if len(box.lower) else 0


def _paid(before: Subproblems, after: Subproblems) -> bool:
    """Whether the bounds in between have raised the worst margin noticeably, or settled something."""
    old, new = float(before.margin_lower.min()), float(after.margin_lower.min())
    return int(after.open.sum()) < int(before.open.sum()) or new - old > WORTH * abs(old)


@dataclass(eq=False)
class Run:
    """One decision from start to end."""

    loaded: LoadedModel
    query: Query
    options: Options
    deadline: Deadline
    reporter: Reporter
    started: float
    given: Given | None = None
    method: BoundMethod | None = None
    """Bounds alone by this."""
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settled_by: dict[tuple[int, int], str] = field(default_factory=dict)
    bounded: int = 0
    roots: list[Checked] = field(default_factory=list)
    """The boxes that linear bounds leave open."""
    coupled: int = 0
    """Levels that the roots' bounds have coupled and gained by."""
    cost: float = 0.0
    """Seconds that the roots' last bounds took."""
    left: Remaining | None = None
    """What branching left open."""

    def decide(self) -> Result:
        """Run the stages in order until nothing is open, a witness is found or time is up."""
        self.notes += [*self.loaded.notes, *self.query.notes]
        if self.given is not None:
            self.notes.append(self.given.note)
        self.property = compile_query(self.query)
        disjuncts = int(self.property.present.sum())
        self._stage("read", time.monotonic() - self.started, disjuncts, disjuncts)
        self.positions = [i for i, g in enumerate(self.query.groups) if not g.box.empty]
        empty = len(self.query.groups) - self.property.groups
        if empty:
            self.notes.append(f"{empty} of {len(self.query.groups)} input boxes are empty: nothing to refute there")
        if not self.property.groups:
            return self._result(Verdict.VERIFIED, None, None)
        self.checker = Checker(self._bounded_graph(), self.property)
        replayer = Replayer(self.loaded)
        self.falsifier = Falsifier(
            self.loaded.graph, self.query, self.property, replayer.run, self.options.seed, self.options.attack_starts
        )
        with torch.no_grad():
            return self._search()

    def _bounded_graph(self) -> Graph:
        """The graph that is bounded: with piecewise linear functions and joint operators as one node each.

        The latter not where few inputs are free, which are better split.
        Given bounds, and bound methods of one's own, are for the nodes of the graph that was loaded.
        """
        graph = self.loaded.graph
        if self.given is not None or self.method is not None:
            return graph
        graph = with_ramps(graph)
        few = _free(self.property.boxes) <= self.options.branch_inputs
        return graph if few else with_attention(graph)

    def _search(self) -> Result:
        problems = Subproblems.of(self.property)
        witness = self._burst(problems, "falsify", rounds=1)
        if witness is not None:
            return self._result(Verdict.FALSIFIED, problems, witness)
        if self.method is None:
            problems, witness = self._linear(self._interval(problems))
        else:
            problems = self._by_method(problems, self.method)
        few = self._branches and self._boxed(_free(problems.box[problems.unsettled]))
        if witness is None and problems.open.any() and not self.deadline.passed:
            witness = self._burst(problems, "falsify again", 1 if few else self.options.attack_rounds)
        if witness is None and problems.open.any() and self._branches and not self.deadline.passed:
            problems, witness = self._boxes(problems) if few else self._branch(problems)
        if witness is not None:
            return self._result(Verdict.FALSIFIED, problems, witness)
        if not problems.open.any():
            return self._result(Verdict.VERIFIED, problems, None)
        if self.deadline.cancelled:
            self.notes.append("cancelled: the best bounds so far")
            return self._result(Verdict.UNKNOWN, problems, None)
        return self._result(Verdict.TIMEOUT if self.deadline.passed else Verdict.UNKNOWN, problems, None)

    def _burst(self, problems: Subproblems, name: str, rounds: int) -> Witness | None:
        begun = time.monotonic()
        self._report(name, problems)
        deadline = self.deadline.sooner(self.options.attack_seconds)
        witness = self.falsifier.burst(problems.group, problems.open, deadline, rounds)
        still = int(problems.open.sum())
        self._stage(name, time.monotonic() - begun, still, still, "witness replayed" if witness else "")
        return witness

    def _interval(self, problems: Subproblems) -> Subproblems:
        begun, before = time.monotonic(), int(problems.open.sum())
        parts = [self.checker.interval(problems[piece]) for piece in self._pieces(len(problems), 1.0)]
        return self._account("interval", begun, before, Subproblems.concatenated(parts))

    def _by_method(self, problems: Subproblems, method: BoundMethod) -> Subproblems:
        """Bounds by one method, which the result names."""
        kind = type(method)
        self.notes.append(f"bounded by {method.name} alone ({kind.__module__}.{kind.__qualname__})")
        begun, before, memory = time.monotonic(), int(problems.open.sum()), self.options.memory
        self._report(method.name, problems)
        pieces = [problems[piece] for piece in self._pieces(len(problems), 16.0)]
        found = Subproblems.concatenated(
            [self.checker.by_method(piece, method, memory, self.deadline) for piece in pieces]
        )
        return self._account(method.name, begun, before, found)

    @property
    def _branches(self) -> bool:
        return self.options.branch and self.method is None

    def _linear(self, problems: Subproblems) -> tuple[Subproblems, Witness | None]:
        """Plain linear bounds on everything open, then optimised and coupled ones on what they leave open.

        In between, the points at which the relaxed rows take their minima are attacked.
        """
        options = self.options
        index = problems.unsettled
        if not index.numel() or self.deadline.passed:
            return problems, None
        for name, iterations, levels in self._efforts(_free(problems.box)):
            rows = max(2 * iterations, options.property_iterations)
            begun, before = time.monotonic(), int(problems.open.sum())
            self._report(name, problems)
            effort = Effort(iterations, options.memory, self.deadline, levels, keep=levels > 0)
            if self.roots:
                parts = [root[part] for root in self.roots for part in self._parts(len(root.problems), levels)]
                roots = [self._again(part, effort, rows) for part in parts]
            else:
                pieces = [index[piece] for piece in self._pieces(len(index), 16.0)]
                part = None if self.given is None else Part(self.given.known)
                roots = [self.checker.linear(problems[piece], effort, rows, part) for piece in pieces]
            found = Subproblems.concatenated([root.problems for root in roots])
            last, problems = problems, self._account(name, begun, before, problems.replaced(index, found))
            together = len(roots) == 1  # more would be too much to remember
            self.roots = [root.unsettled(remember=together) for root in roots if root.problems.open.any()]
            index = problems.unsettled
            for root in self.roots:
                witness = attack_minima(root, self.falsifier, self.deadline.sooner(options.attack_seconds))
                if witness is not None:
                    return problems, witness
            spent = self.cost = time.monotonic() - begun
            if levels and _paid(last, problems):
                self.coupled = levels
            if not index.numel() or self.deadline.passed:
                break
            if levels and not (_paid(last, problems) and DEARER * spent < COUPLED_SHARE * self.deadline.remaining):
                break
        return problems, None

    def _efforts(self, free: int) -> Iterator[tuple[str, int, int]]:
        """Name, Frank-Wolfe iterations and coupled levels of the stages with linear bounds, the cheapest first.

        `free` inputs: few of them are split instead of coupled, very few without more ado.
        """
        options, graph = self.options, self.checker.graph
        yield "linear", 1, 0
        if options.branch and self._boxed(free):
            return
        if options.refine_iterations >= 3:
            yield "refine", 3, 0
        further = options.refine_iterations > 3
        coupling = options.coupling and free > options.coupling_inputs
        if coupling and self._cut_instead():
            coupling, further = False, further and DEARER * self.cost < FURTHER * self.deadline.remaining
        if not coupling:
            if further:
                yield "refine more", options.refine_iterations, 0
            return
        depth = min(options.coupling_levels, max((graph.levels[i] + 1 for i in graph.nonlinear), default=0))
        if options.branch and not self._kinked():
            depth = min(depth, SMOOTH_LEVELS)
        levels = 1
        while levels <= depth:
            yield f"coupled {levels}", options.coupling_iterations + levels - 1, levels
            levels = max(levels + 1, min(2 * levels, depth))

    def _cut_instead(self) -> bool:
        """Whether the kinks are going to be cut, and coupling first would take long or could not hold most of them."""
        output = self.checker.graph.output
        free = max(_free(root.problems.box) for root in self.roots)
        if not self.options.branch or free <= self.options.branch_inputs or self._bent:
            return False
        long = DEARER * self.cost > FIRST_SHARE * self.deadline.remaining
        return all(
            reducible(r.relaxation, output) and (long or covered(r.relaxation, output) < COVERED) for r in self.roots
        )

    def _has_phases(self) -> bool:
        """Whether phases can be searched: something has them, and everything is bounded."""
        graph = self.checker.graph
        kinked = any(convex_hinge(node.op) for node in graph)
        return kinked and all(reducible(root.relaxation, graph.output) for root in self.roots)

    @property
    def _bent(self) -> bool:
        """Whether something bends between the kinks, but for joint operators: splits make its strips narrower."""
        return any(bends(node) and not isinstance(node.op, Joint) for node in self.checker.graph)

    def _boxed(self, free: int) -> bool:
        """Whether Taylor forms in so many free inputs pay: they are few, something bends, and many boxes fit at once.

        Networks that are straight but for kinks, and wide ones, do better with rows by substitution, box by box; Taylor
        forms have no joint operators.
        """
        options, graph = self.options, self.checker.graph
        if free > options.box_inputs or all(node.straight for node in graph):
            return False
        return at_once(graph, free, options.memory) >= MANY and not any(isinstance(n.op, Joint) for n in graph)

    def _kinked(self) -> bool:
        """Whether some function of the network has no second derivative at 0."""
        graph = self.checker.graph
        for i in graph.nonlinear:
            op = graph.nodes[i].op
            if isinstance(op, Elementwise):
                unit = torch.ones(1, *graph.nodes[i].shape, dtype=torch.float64)
                if not bool(op.derivative(2, Interval(-unit, unit)).upper.isfinite().all()):
                    return True
        return False

    def _parts(self, boxes: int, levels: int) -> Sequence[Tensor]:
        """Positions of the boxes that are bounded at once: all of them, or as many as tables and matrices allow."""
        if not levels:
            return [torch.arange(boxes)]
        return torch.arange(boxes).split(max(1, int(self.options.memory / (COUPLED_BOX * levels))))

    def _again(self, root: Checked, effort: Effort, rows: int) -> Checked:
        """Bound the same subproblems once more, within the node bounds that are known."""
        relaxation = root.relaxation
        states = {i: state.pointed for i, state in relaxation.states.items()}
        part = Part(dict(enumerate(relaxation.intervals)), states=states, tangents=relaxation.tangents)
        return self.checker.linear(root.problems, effort, rows, part)

    def _boxes(self, problems: Subproblems) -> tuple[Subproblems, Witness | None]:
        """Split the boxes themselves, thousands at a time; the problems with what that proved of them."""
        begun, before = time.monotonic(), int(problems.open.sum())
        self._report("boxes", problems)

        def report(now: BoxSearch) -> None:
            if self.reporter.due:
                share = now.share / self.property.groups
                self.reporter.event("boxes", now.margin_lower, before, share, now.open, now.bounded)

        search = BoxSearch(self.checker, self.falsifier, self.options.memory, report)
        search.run(problems, self.deadline)
        self.bounded += search.bounded
        leaves = open_leaves(search.worst(REGIONS), problems, self.positions)
        self.left = Remaining(search.open, search.share / self.property.groups, tuple(leaves))
        problems = problems.branched(*search.outcome())
        self._account("boxes", begun, before, problems, f"{search.bounded} boxes, {search.used}")
        return problems, search.witness

    def _branch(self, problems: Subproblems) -> tuple[Subproblems, Witness | None]:
        """Split the roots' boxes; the root problems with what the branches proved of them."""
        begun, before = time.monotonic(), int(problems.open.sum())
        options = self.options
        free = max(_free(root.problems.box) for root in self.roots)
        methods = self._methods(free)
        self._report("branch", problems)

        def report(now: Branching) -> None:
            if self.reporter.due:
                margin, share = now.margin_lower, now.share / self.property.groups
                self.reporter.event("branch", margin, before, share, now.open, now.bounded)

        branching = Branching(self.checker, self.falsifier, options.memory, options.branch_batch, methods, None, report)
        if self._has_phases():
            branching.finisher = self._finisher(lambda: report(branching), free)
        branching.run(self.roots, self.deadline)
        if branching.full:
            self.notes.append(f"stopped: the open subproblems take {options.memory:g} GiB (option memory)")
        self.bounded += branching.bounded
        leaves = open_leaves(branching.worst(REGIONS), problems, self.positions)
        self.left = Remaining(branching.open, branching.share / self.property.groups, tuple(leaves))
        problems = problems.branched(*branching.outcome())
        what = [f"{branching.bounded} subproblems"]
        if branching.finisher is not None and branching.finisher.parts:
            self.bounded += branching.finisher.parts
            what.append(f"{branching.finisher.parts} parts by phases")
        what += [f"{method.kind}s {len(method.gains)}" for method in methods if method.gains]
        self._account("branch", begun, before, problems, ", ".join(what))
        return problems, branching.witness

    def _finisher(self, report: Callable[[], None], free: int) -> Finisher:
        """Searches phases of boxes: of roots while that gets on, of their parts while it is cheaper than splits."""
        options, left = self.options, self.deadline.remaining
        made = partial(Finisher, self.checker, self.falsifier, options.memory, options.branch_batch, progress=report)
        if free <= min(options.coupling_inputs, options.branch_inputs) or self._bent:
            return made(patience=BRIEF, least=BRIEF, after=AFTER, alike=math.inf)
        if not self.coupled:
            return made(ALONE * left, PATIENCE)
        return made(max(PATIENCE, SPLIT * self.cost, min(ROOT * left, LONG)), PATIENCE)

    def _methods(self, free: int) -> list[Method]:
        """The ways to split so many free inputs: few of them themselves; else directions, and activations."""
        options = self.options
        methods = [Method("input", batch=16) if free <= options.branch_inputs else Method("neuron", batch=4)]
        if free <= options.coupling_inputs:
            return methods
        if not self.coupled:
            return [*methods, Method("slab")]
        return [Method("slab", self.coupled), *methods, Method("neuron", self.coupled)]

    def _pieces(self, boxes: int, copies: float) -> list[slice]:
        """Consecutive ranges of boxes on which all node values, `copies` times, fit into the memory."""
        per_box = 8.0 * copies * sum(node.size for node in self.checker.graph)
        count = max(1, int(self.options.memory * 2**30 / per_box))
        return [slice(i, i + count) for i in range(0, boxes, count)]

    def _report(self, stage: str, problems: Subproblems) -> None:
        """Where the run stands at the beginning or end of a stage."""
        count = len(problems.unsettled) if self.left is None else self.left.count
        share = count / self.property.groups if self.left is None else self.left.share
        margin = float(problems.margin_lower.min())
        self.reporter.event(stage, margin, int(problems.open.sum()), share, count, self.bounded)

    def _remaining(self, problems: Subproblems) -> Remaining:
        """What is open: boxes of the query, or leaves of the branching."""
        if self.left is not None:
            return self.left
        count = len(problems.unsettled)
        return Remaining(count, count / self.property.groups, tuple(open_boxes(problems, self.positions)))

    def _account(self, name: str, begun: float, before: int, problems: Subproblems, detail: str = "") -> Subproblems:
        """Record a stage, and which disjuncts it settled."""
        for g, d in (self.property.present & ~problems.open).nonzero().tolist():
            self.settled_by.setdefault((g, d), name)
        margins = problems.margins.amax(2)[self.property.present]
        worst = float(margins.min()) if margins.numel() else math.inf
        detail = ", ".join(filter(None, (detail, f"margin {worst:.6g}")))
        self._stage(name, time.monotonic() - begun, before, int(problems.open.sum()), detail)
        self._report(name, problems)
        return problems

    def _stage(self, name: str, seconds: float, before: int, after: int, detail: str = "") -> None:
        self.stages.append(Stage(name, seconds, before, after, detail))
        log.info("%s: %.2f s, open disjuncts %d -> %d %s", name, seconds, before, after, detail)

    def _result(self, verdict: Verdict, problems: Subproblems | None, witness: Witness | None) -> Result:
        disjuncts = () if problems is None else tuple(self._disjunct_bounds(problems))
        undecided = verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)
        return Result(
            verdict=verdict,
            margin_lower=min((d.margin_lower for d in disjuncts), default=math.inf),
            disjuncts=disjuncts,
            witness=witness,
            stages=tuple(self.stages),
            seconds=time.monotonic() - self.started,
            provenance=provenance(
                self.loaded, self.query, self.options, "" if self.given is None else self.given.source
            ),
            subproblems=self.bounded,
            notes=tuple(self.notes),
            trace=tuple(self.reporter.trace),
            remaining=self._remaining(problems) if problems is not None and undecided else None,
        )

    def _disjunct_bounds(self, problems: Subproblems) -> Iterator[DisjunctBound]:
        for g, d in self.property.present.nonzero().tolist():
            rows = problems.margins[g, d][self.property.rows[g, d] >= 0]
            margin = float(rows.max()) if rows.numel() else -math.inf
            yield DisjunctBound(
                group=self.positions[g],
                disjunct=d,
                margin_lower=margin,
                rows=tuple(rows.tolist()),
                settled_by=self.settled_by.get((g, d)),
            )
