"""Progress of a run: events for a callback, at most some a second, and a trace of bounded length; what is left open."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from curvverify.bounding.slabs import Slabs
from curvverify.types import Deadline, Interval
from curvverify.verification.result import Halfspaces, OpenRegion, Progress
from curvverify.verification.splits import Open
from curvverify.verification.state import Subproblems

INTERVAL = 0.1
"""Seconds between two events of one stage, at least."""

MOST = 256
"""Longest trace: where it grows beyond, every second point inside of a stage is dropped."""

REGIONS, NUMBERS = 16, 50_000
"""Most open regions that a result lists, and most numbers they may take together."""


@dataclass(eq=False)
class Reporter:
    """Passes events on as they come, and remembers them."""

    started: float
    deadline: Deadline
    callback: Callable[[Progress], None] | None = None
    trace: list[Progress] = field(default_factory=list)
    _next: float = 0.0
    _interval: float = INTERVAL

    @property
    def due(self) -> bool:
        """Whether the last event is long enough ago for another one of the same stage."""
        return time.monotonic() >= self._next

    def event(
        self,
        stage: str,
        margin_lower: float,
        open_disjuncts: int,
        share_left: float,
        open_subproblems: int,
        bounded: int,
    ) -> None:
        """Report now, whether or not it is due."""
        now = time.monotonic()
        self._next = now + INTERVAL
        times = now - self.started, self.deadline.remaining
        progress = Progress(stage, *times, margin_lower, open_disjuncts, open_subproblems, bounded, share_left)
        self._remember(progress)
        if self.callback is not None:
            self.callback(progress)

    def _remember(self, progress: Progress) -> None:
        recent = self.trace[-2:]
        soon = bool(recent) and progress.seconds - recent[0].seconds < self._interval
        if len(recent) == 2 and soon and all(p.stage == progress.stage for p in recent):
            self.trace[-1] = progress
            return
        self.trace.append(progress)
        if len(self.trace) > MOST:
            self._interval *= 2.0
            ends = {0, len(self.trace) - 1}
            for i in range(1, len(self.trace)):
                if self.trace[i - 1].stage != self.trace[i].stage:
                    ends |= {i - 1, i}
            self.trace = [p for i, p in enumerate(self.trace) if i in ends or i % 2]


def open_boxes(problems: Subproblems, positions: list[int]) -> list[OpenRegion]:
    """The query's boxes with an open disjunct, worst first, as many as a result lists.

    `positions` are the numbers of the boxes' groups.
    """
    index, margins = problems.unsettled, problems.margin_lower
    worst = index[margins[index].argsort()[:REGIONS]]
    return [_region(problems[i : i + 1], float(margins[i]), 1.0, problems, None, positions) for i in worst.tolist()]


def open_leaves(leaves: Iterable[Open], roots: Subproblems, positions: list[int]) -> list[OpenRegion]:
    """Leaves of a branching as regions of the roots' boxes, as many as a result lists."""
    found: list[OpenRegion] = []
    numbers = 0
    for leaf in leaves:
        region = _region(leaf.problem, leaf.margin, leaf.share, roots, leaf.part.slabs, positions)
        numbers += 2 * len(region.lower or ()) + sum(len(h.direction) + 2 for h in region.halfspaces)
        if found and (len(found) == REGIONS or numbers > NUMBERS):
            break
        found.append(region)
    return found


def _region(
    problem: Subproblems, margin: float, share: float, roots: Subproblems, slabs: Slabs | None, positions: list[int]
) -> OpenRegion:
    group, box = int(problem.group[0]), problem.box[0]
    whole = _same(box, roots.box[group])
    return OpenRegion(
        group=positions[group],
        disjuncts=tuple(problem.open[0].nonzero().flatten().tolist()),
        margin_lower=margin,
        share=share,
        lower=None if whole else _numbers(box.lower),
        upper=None if whole else _numbers(box.upper),
        halfspaces=() if slabs is None else _halfspaces(slabs),
    )


def _halfspaces(slabs: Slabs) -> tuple[Halfspaces, ...]:
    ends = zip(slabs.directions[0], slabs.low[0].tolist(), slabs.high[0].tolist(), strict=True)
    return tuple(Halfspaces(_numbers(direction), low, high) for direction, low, high in ends)


def _same(a: Interval, b: Interval) -> bool:
    return bool((a.lower == b.lower).all() and (a.upper == b.upper).all())


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.flatten().tolist())
