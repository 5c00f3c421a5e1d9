"""Which hinge of a part to cut.

The half that holds the point where the relaxed row takes its minimum gains hardly more than the bound of the hinge
there.  The other half has a multiplier, too, and gains many times as much where hardly any of it is in reach.  So other
halves are bounded before a hinge is chosen, in one pass each, with a multiplier as long as a linear model asks for.

Source: halves of some candidates are bounded by the filtered smart branching of De Palma et al. (2021), without
multipliers; what hinges' bounds gain is the score of BaBSR (Bunel et al., 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.phases import Ascent, Pass, Phases
from curvverify.types import Columns

PROBED = 16
"""Hinges that may be probed, the best by what their bounds gain."""

OVER = 2.0
"""How much further the multiplier of a probe goes than a linear model has to."""


@dataclass(frozen=True, eq=False)
class Cuts(Columns):
    """Hinges to be cut on parts, (B,).

    `pulls`: multipliers to begin with where z >= 0, and -1 times those where z <= 0.  Parts that are not `free` have
    every phase fixed.
    """

    entries: Tensor
    pulls: Tensor
    free: Tensor

    def halves(self, phases: Phases) -> Phases:
        """Both halves of every part, z >= 0 first."""
        twice, signs = torch.arange(len(phases)).repeat_interleave(2), torch.tensor([1.0, -1.0]).repeat(len(phases))
        return phases[twice].pushed(self.entries[twice], signs, (signs * self.pulls[twice]).clamp(min=0.0))


def best_cuts(ascent: Ascent, rows: Tensor, phases: Phases, found: Pass, missing: Tensor) -> Cuts:
    """The cuts of parts (B,) whose halves gain most together, each up to what is `missing` (B,) > 0: one that is closed
    needs no more.

    `found`: the parts' own bounds.
    """
    z, signs = ascent.forward(found), found.sides.signs
    held, other = _gains(ascent, found, z, missing.unsqueeze(1))
    score, tried = (held + other).masked_fill(signs != 0.0, -1.0).topk(min(PROBED, z.shape[1]), 1)
    held, z = held.gather(1, tried), z.gather(1, tried)
    away = torch.where(z < 0.0, 1.0, -1.0)
    length = OVER * missing.unsqueeze(1) / z.abs().clamp(min=1e-12)
    best, pulls, entries = score[:, 0].clone(), torch.zeros_like(missing), tried[:, 0].clone()
    for k in range(tried.shape[1]):
        able = ((held[:, k] + missing > best) & (score[:, k] >= 0.0)).nonzero().squeeze(1)
        if not len(able):
            continue
        half = phases[able].pushed(tried[able, k], away[able, k], length[able, k])
        gain = ascent.backward(rows[able], half).lower - found.lower[able]
        total = held[able, k] + gain.minimum(missing[able])
        better = total > best[able]
        at = able[better]
        best[at], pulls[at], entries[at] = total[better], (away * length)[at, k], tried[at, k]
    return Cuts(entries, pulls, score[:, 0] >= 0.0)


def _gains(ascent: Ascent, found: Pass, z: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """What the bounds of hinges gain (B, U) at the minimiser z on the half that holds it, and on the other one; up to
    `most` (B, 1)."""
    hinges, sides, a = ascent.network.hinges, found.sides, found.coefficients
    line = torch.where(a > 0.0, found.low * z, torch.addcmul(sides.intercept, sides.chord, z))
    right, left = ((a * (slope * z - line)).clamp(min=0.0).minimum(most) for slope in (hinges.right, hinges.left))
    return torch.where(z < 0.0, left, right), torch.where(z < 0.0, right, left)
