"""Narrower ranges of hinges' arguments, on the part of a box where a row is not above a bar.

Only there can the row be refuted, and with the narrower ranges its bound rises, which leaves less of the part: close
to what is true, a few rounds of this leave nothing at all.  The last hinges before the output move most with the row
and are taken first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from curvverify.bounding.phases import Aims, Ascent, Phases, decided_reach
from curvverify.bounding.reduced import Site
from curvverify.bounding.relaxation import Relaxation
from curvverify.bounding.substitution import Rows
from curvverify.numerics.rounding import float32_below
from curvverify.types import Deadline

ITERATIONS, WARM = 20, 12
"""Steps of ascent for an end of a range, and for one whose slopes are known from other parts."""

WORTH, LEAST = 0.02, 0.01
"""Hinges further from the output are left alone where ranges shrink by less than this share, and ends stay that move by
less than that."""

SAMPLE = 12
"""About so many arguments tell whether the rest of a site's are worth their bounds."""

TOGETHER = 256
"""Ends that are bounded at once."""


@dataclass(frozen=True, eq=False)
class Contraction:
    """Ranges on parts of one box, for the rows of a node."""

    ascent: Ascent
    relaxation: Relaxation
    node: int
    rows: Rows
    """The reduced network's rows."""
    remember: bool
    """Whether slopes are kept for other parts, which takes 8 U^2 bytes for each row."""

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor]:
        """Weights (2, R, U) and slopes (2, R, U, U) of the ends that were bounded last; weights of 0 are unknown."""
        shape = 2, self.rows.count, self.ascent.network.hinges.count
        return torch.zeros(shape), torch.zeros(*shape, shape[2])

    def narrowed(self, rows: Tensor, phases: Phases, bars: Tensor, deadline: Deadline) -> Phases:
        """The parts with ranges (B, U) that hold where row (B,) is at most its bar (B,), in float64; rigorous.

        Those that the deadline leaves no time for stay as they are.

        Sound because: every range is that of `decided_reach` on a part that holds all such points, rounded outward.
        """
        now = replace(phases, lower=phases.lower.clone(), upper=phases.upper.clone())
        active = torch.arange(len(phases))
        for site in reversed(self.ascent.network.hinges.sites):
            active = active[self._narrow(site, rows, now, bars, active, deadline) > WORTH]
            active = active[~now[active].empty]
            if not len(active):
                break
        return now

    def _narrow(
        self, site: Site, rows: Tensor, now: Phases, bars: Tensor, active: Tensor, deadline: Deadline
    ) -> Tensor:
        """Narrow the ranges of a site's arguments on the active parts; by what share (A,) they shrink on average."""
        kinked = now.signs[active][:, site.place] == 0
        count = kinked.sum(1, keepdim=True)
        sampled = kinked & ((kinked.cumsum(1) - 1) % (count // SAMPLE).clamp(min=1) == 0)
        shrunk = torch.zeros(kinked.shape)

        def bound(chosen: Tensor) -> None:
            at, place = chosen.nonzero().T
            shrunk[at, place] = self._shrunk(site.place.start + place, active[at], rows, now, bars, deadline)

        bound(sampled)
        bound(kinked & ~sampled & (_mean(shrunk, sampled) > WORTH))
        return torch.where(count.squeeze(1) > 0, _mean(shrunk, kinked).squeeze(1), torch.inf)

    def _shrunk(
        self, entries: Tensor, parts: Tensor, rows: Tensor, now: Phases, bars: Tensor, deadline: Deadline
    ) -> Tensor:
        """Move both ends of the arguments of entries (E,) on parts (E,); by what share (E,) their ranges shrink."""
        width = (now.upper - now.lower)[parts, entries]
        for sign, ends in ((1.0, now.upper), (-1.0, now.lower)):
            for piece in torch.arange(len(parts)).split(TOGETHER):
                if deadline.passed:
                    break
                part, entry = parts[piece], entries[piece]
                far, found, aims = self._reach(rows[part], now[part], entry, sign, bars[part].float())
                near = (far < sign * ends[part, entry] - LEAST * width[piece]).nonzero().squeeze(1)
                if not len(near):
                    continue
                part, entry = part[near], entry[near]
                row, hinges = self.rows[rows[part]], self.ascent.network.hinges
                reach = decided_reach(self.relaxation, self.node, row, hinges, found[near], aims[near], bars[part])
                nearer = -float32_below(-reach)
                ends[part, entry] = sign * torch.minimum(nearer.nan_to_num(nan=torch.inf), sign * ends[part, entry])
        return 1.0 - ((now.upper - now.lower)[parts, entries] / width).clamp(min=0.0)

    def _reach(
        self, rows: Tensor, phases: Phases, entries: Tensor, sign: float, bars: Tensor
    ) -> tuple[Tensor, Phases, Aims]:
        """Estimates (E,) of the ends, from the slopes and weights that were found last."""
        turns, weights, at = phases.turns, torch.zeros_like(bars), (int(sign < 0.0), rows, entries)
        if self.remember:
            weights = self._known[0][at]
            turns = torch.where(weights.unsqueeze(1) > 0.0, self._known[1][at], turns)
        aims = Aims(entries, torch.full_like(bars, sign), weights)
        iterations = WARM if bool((weights > 0.0).all()) else ITERATIONS
        far, found, aims = self.ascent.reach(rows, replace(phases, turns=turns), aims, bars, iterations)
        if self.remember:
            self._known[0][at], self._known[1][at] = aims.weights, found.turns
        return far, found, aims


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Means (B, 1) over the columns where the mask holds; 0 where there is none."""
    return (values * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
