"""Radii by bounds on the region itself: linear ones, then coupled ones, on balls or cubes that the domain cuts.

They need no curvature: the strongest for networks with kinks, and on large regions of deep smooth ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.bounding.balls import Balls
from curvverify.bounding.linear import Effort, linear_bounds, optimised_row_bounds
from curvverify.bounding.relaxation import Part
from curvverify.bounding.substitution import Rows
from curvverify.graph.layers import Graph
from curvverify.numerics.rounding import round_down, round_up
from curvverify.types import Interval

MEMORY = 2.0
"""GiB for one computation."""

STEEPEST = 4.0
"""Failed margins count as at most so many times the proved one when the next radius is guessed."""

MET = 0.01
"""A search ends when the radii of a bracket are within this share of each other."""

TRIES, TRIES_COUPLED = {"normal": 5, "high": 8}, 4
"""Regions that are bounded for a sample in search of its largest radius."""

NEAR = 0.1
"""Share of what is left of a bracket that a guess keeps off its ends."""


@dataclass(frozen=True)
class Stage:
    """How hard to bound: Frank-Wolfe iterations for nodes and for the margins, and coupled levels."""

    name: str
    iterations: int
    rows: int
    levels: int = 0
    together: int = 64
    """Samples at once."""


LINEAR = Stage("linear", 2, 6)


def coupled_stage(levels: int) -> Stage:
    """The first levels of nonlinear nodes coupled."""
    return Stage("coupled", 3 + levels, 6 + 2 * levels, levels, max(1, 8 // levels))


@dataclass(eq=False)
class Bracket:
    """For each of B samples: the largest radius proved, and the smallest one that is not to be proved."""

    low: Tensor
    high: Tensor
    limit: Tensor
    """What `high` was at first."""
    anchor: Tensor
    """(2, B): a proved radius, at first 0, and the least margin there."""
    beyond: Tensor
    """Likewise for the radius `high`, the margin 1 where unknown."""

    @classmethod
    def of(cls, margin: Tensor, known: Tensor, limit: Tensor) -> Bracket:
        """Nothing but what other methods know: margins at the samples, proved radii and limits, (B) each."""
        zero = torch.zeros_like(known)
        return cls(known.clone(), limit.clone(), limit, torch.stack([zero, margin]), torch.stack([limit, -margin]))

    def reopened(self) -> Bracket:
        """For stronger bounds: proved radii stay, those that were not to be proved are forgotten."""
        beyond = torch.stack([self.limit, self.beyond[1]])
        return Bracket(self.low, self.limit, self.limit, self.anchor, beyond)

    def guess(self) -> Tensor:
        """(B): where the margin is expected to vanish, by the secant, kept off the ends of what is left."""
        (a, m), (b, k) = self.anchor, self.beyond
        k = torch.maximum(k, -STEEPEST * m).minimum(-1e-3 * m)
        at = a + (b - a) * m / (m - k)
        width = self.high - self.low
        return at.maximum(self.low + NEAR * width).minimum(self.high - NEAR * width)

    def note(self, index: Tensor, r: Tensor, margin: Tensor) -> None:
        """Take the least margins (b) found for some of the samples at the radii (b)."""
        for k, radius, m in zip(index.tolist(), r.tolist(), margin.tolist(), strict=True):
            if m > 0.0:
                self.low[k] = max(float(self.low[k]), radius)
                self.anchor[:, k] = torch.tensor([radius, m])
            else:
                self.high[k] = min(float(self.high[k]), radius)
                self.beyond[:, k] = torch.tensor([radius, m])


@dataclass(frozen=True, eq=False)
class RegionBounds:
    """Bounds on the margins of one network over balls or cubes of any radius, cut by the domain."""

    graph: Graph
    norm: str
    low: Tensor
    """(n): what inputs may be at least, -inf where there is no limit; likewise `high`."""
    high: Tensor

    @property
    def levels(self) -> int:
        """How many levels of nonlinear nodes there are."""
        return max((self.graph.levels[i] + 1 for i in self.graph.nonlinear), default=0)

    @torch.no_grad()
    def margins(self, x: Tensor, rows: Tensor, r: Tensor, stage: Stage) -> Tensor:
        """Proved lower bounds (B, R) on rows (B, R, K) of the scores, within r (B) of x (B, n)."""
        pieces = torch.arange(len(x)).split(stage.together)
        return torch.cat([self._margins(x[piece], rows[piece], r[piece], stage) for piece in pieces])

    def _margins(self, x: Tensor, rows: Tensor, r: Tensor, stage: Stage) -> Tensor:
        graph, wide = self.graph, r.unsqueeze(1)
        shape = (len(x), *graph.input_shape)
        lower = torch.maximum(round_down(x - wide), self.low).reshape(shape)
        upper = torch.minimum(round_up(x + wide), self.high).reshape(shape)
        part = Part(balls=Balls(x, r) if self.norm == "l2" else None)
        if stage.levels:  # within plain bounds, which cost little beside
            plain = linear_bounds(graph, Interval(lower, upper), Effort(LINEAR.iterations, MEMORY), part=part)
            part = replace(part, known=dict(enumerate(plain.intervals)))
        effort = Effort(stage.iterations, MEMORY, coupling=stage.levels)
        relaxation = linear_bounds(graph, Interval(lower, upper), effort, part=part)
        wanted = Rows(rows.reshape(len(x), -1, *graph.output_shape))
        effort = replace(effort, iterations=stage.rows)
        found = optimised_row_bounds(relaxation, graph.output, wanted, effort, lambda m: bool((m > 0.0).all()))
        return found.lower

    def stages(self, effort: str) -> list[Stage]:
        """What to try in turn."""
        deepest = {"fast": -1, "normal": 1, "high": 4}[effort]
        return [] if deepest < 0 else [LINEAR, *(coupled_stage(k) for k in (1, 2, 4) if k <= min(deepest, self.levels))]

    def decided(self, x: Tensor, rows: Tensor, eps: float, settled: Tensor, effort: str) -> list[str | None]:
        """For each sample the stage that proves all margins within eps not yet `settled` (B, R), if any."""
        found: list[str | None] = [None] * len(x)
        settled = settled.clone()
        left = torch.arange(len(x))
        for stage in self.stages(effort):
            if not len(left):
                break
            r = torch.full((len(left),), eps, dtype=torch.float64)
            settled[left] |= self.margins(x[left], rows[left], r, stage) > 0.0
            done = settled[left].all(1)
            for k in left[done].tolist():
                found[k] = stage.name
            left = left[~done]
        return found

    def largest(
        self, x: Tensor, rows: Tensor, bracket: Bracket, effort: str, note: Callable[[int, float, str], None]
    ) -> None:
        """Search for the largest radii, one stage after the other, and note (sample, radius, stage) that is proved."""
        for stage in self.stages(effort):
            if stage.levels and effort != "high":
                break
            before = bracket.low.clone()
            self._search(x, rows, bracket, stage, TRIES[effort] if stage is LINEAR else TRIES_COUPLED)
            for k in (bracket.low > before).nonzero().squeeze(1).tolist():
                note(k, float(bracket.low[k]), stage.name)
            bracket = bracket.reopened()

    def _search(self, x: Tensor, rows: Tensor, bracket: Bracket, stage: Stage, tries: int) -> None:
        for _ in range(tries):
            left = (bracket.high > bracket.low * (1.0 + MET)) & bracket.high.isfinite()
            index = left.nonzero().squeeze(1)
            if not len(index):
                return
            r = bracket.guess()[index]
            bracket.note(index, r, self.margins(x[index], rows[index], r, stage).amin(1))
