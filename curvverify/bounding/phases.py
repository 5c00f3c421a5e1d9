"""Rows of a network on parts of a box that fix the phases of ReLU-like functions: multipliers for what is fixed.

On a part where sign * z >= 0 for some unstable arguments z, these functions are affine, and a row h is bounded by
min h - sum multiplier * sign * z over the box alone, for any multipliers >= 0.  Slopes of the other functions' lower
lines and multipliers are found together by ascent, with the exact supergradients that one backward and one forward
pass of the relaxation give; the bounds of all nodes stay those of the whole box, which makes a pass over a part cheap.

Source: the multipliers are those of beta-CROWN (Wang et al., NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from curvverify.bounding.reduced import Hinges, ReducedNetwork
from curvverify.bounding.relaxation import Relaxation
from curvverify.bounding.substitution import Halves, Rows, Substitution

RATE, LAST = 0.5, 0.3
"""First step of an ascent, relative to the range of a slope, and what share of it the last one is."""

MEAN, SQUARE = 0.9, 0.99
"""Weights of the past in the running means of gradients and of their squares."""

OVER = 1.5
"""Relaxation of steps that aim at a value."""

DECIDED = 32
"""Parts that are decided at once."""


@dataclass(frozen=True, eq=False)
class Phases:
    """B parts of a box with U unstable hinges, all (B, U) in float32.

    `signs`: 1 where z >= 0, -1 where z <= 0, 0 where the part holds both.  `turns` in [0, 1]: how far the lower line
    has turned from the left slope to the right one.  `multipliers` >= 0 of the signs.  Only the signs have a meaning;
    the others are what the last search found, and any numbers give valid bounds.
    """

    signs: Tensor
    turns: Tensor
    multipliers: Tensor

    @classmethod
    def whole(cls, hinges: Hinges) -> Phases:
        """The box itself, with CROWN's slopes."""
        turns = (hinges.upper > -hinges.lower).float().unsqueeze(0)
        return cls(torch.zeros_like(turns), turns, torch.zeros_like(turns))

    def __len__(self) -> int:
        return len(self.signs)

    def __getitem__(self, index: Tensor) -> Phases:
        return Phases(self.signs[index], self.turns[index], self.multipliers[index])

    def halves(self, entries: Tensor) -> Phases:
        """Both halves of every part, z >= 0 first, for the hinges (B,) that are cut."""
        made = self[torch.arange(len(self)).repeat_interleave(2)]
        index = torch.arange(len(made))
        made.signs[index, entries.repeat_interleave(2)] = torch.tensor([1.0, -1.0]).repeat(len(self))
        return made


def concatenated(parts: list[Phases]) -> Phases:
    """All parts, in order."""
    return Phases(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Phases)))


@dataclass(eq=False)
class Pass:
    """One backward pass: the estimated bounds (B,), the linear forms (B, n), coefficients (B, U) of the hinges."""

    lower: Tensor
    slope: Tensor
    coefficients: Tensor
    lines: tuple[Tensor, Tensor, Tensor]
    """Slopes of the lower lines, slopes and intercepts of the upper ones."""


@dataclass(frozen=True, eq=False)
class _Place:
    """What a search keeps of every part beside its phases: (B, 1), (B,), and running means (B, U)."""

    scale: Tensor
    enough: Tensor
    moments: list[Tensor]

    def __getitem__(self, index: Tensor) -> _Place:
        return _Place(self.scale[index], self.enough[index], [m[index] for m in self.moments])


@dataclass(frozen=True, eq=False)
class Ascent:
    """Estimates of the bounds of rows of a reduced network on parts of its box."""

    network: ReducedNetwork

    def backward(self, rows: Tensor, phases: Phases) -> Pass:
        """The bounds of rows (B,) on the parts, for their slopes and multipliers."""
        h, forms, wanted = self.network.hinges, self.network.arguments, self.network.rows
        split = phases.signs != 0
        fixed = torch.where(phases.signs > 0, h.right, h.left)
        low = torch.where(split, fixed, torch.addcmul(h.left, h.right - h.left, phases.turns))
        high = torch.where(split, fixed, h.chord)
        intercept = torch.where(split, 0.0, h.intercept)
        pull = phases.signs * phases.multipliers
        a = wanted.hinges[rows]
        z = torch.empty_like(a)
        for site in reversed(h.sites):
            part = a[:, site.place]
            above = part.clamp(min=0.0)
            z[:, site.place] = above * low[:, site.place] + (part - above) * high[:, site.place] - pull[:, site.place]
            if site.place.start:
                before = slice(0, site.place.start)
                a[:, before] += z[:, site.place] @ forms.hinges[site.place, before]
        slope = torch.addmm(wanted.inputs[rows], z, forms.inputs)
        constant = wanted.constant[rows] + z @ forms.constant + (a.clamp(max=0.0) * intercept).sum(1)
        return Pass(constant - slope.abs().sum(1), slope, a, (low, high, intercept))

    def forward(self, found: Pass) -> Tensor:
        """The hinges' arguments (B, U) where the relaxed rows take their minima."""
        h, forms = self.network.hinges, self.network.arguments
        low, high, intercept = found.lines
        below = found.coefficients > 0
        slope, shift = torch.where(below, low, high), torch.where(below, 0.0, intercept)
        z = torch.addmm(forms.constant, found.slope.sign(), forms.inputs.T, alpha=-1.0)
        values = torch.empty_like(z)
        for site in h.sites:
            here, before = site.place, slice(0, site.place.start)
            if site.place.start:
                z[:, here] += values[:, before] @ forms.hinges[here, before].T
            values[:, here] = slope[:, here] * z[:, here] + shift[:, here]
        return z

    def ascend(self, rows: Tensor, phases: Phases, enough: Tensor, iterations: int) -> tuple[Tensor, Phases]:
        """The best bounds (B,) found for the rows, and the slopes and multipliers they belong to.

        Parts whose bound exceeds `enough` (B,) are not improved any further.
        """
        moments = [torch.zeros_like(phases.turns) for _ in range(4)]

        def step(t: int, now: Phases, found: Pass, z: Tensor, at: _Place) -> Phases:
            return self._step(t, RATE * LAST ** (t / iterations), now, found, z, at.scale, at.moments)

        return self._search(rows, phases, enough, iterations, step, lambda a: a.mean(1, keepdim=True), moments)

    def climb(self, rows: Tensor, phases: Phases, enough: Tensor, iterations: int) -> tuple[Tensor, Phases]:
        """The same as `ascend`, with steps as long as `enough` asks for, so that multipliers grow as far as they must.

        Parts that hold no point, or hardly any, have bounds that grow without limit with the multipliers, which small
        steps find slowly; where `enough` is out of reach these steps are too long.  Source: Polyak (1969).
        """

        def step(t: int, now: Phases, found: Pass, z: Tensor, at: _Place) -> Phases:
            return self._long_step(now, found, z, at.scale, at.enough)

        return self._search(rows, phases, enough, iterations, step, lambda a: a.amax(1, keepdim=True), [])

    def _search(
        self,
        rows: Tensor,
        phases: Phases,
        enough: Tensor,
        iterations: int,
        step: Callable[[int, Phases, Pass, Tensor, _Place], Phases],
        scale: Callable[[Tensor], Tensor],
        moments: list[Tensor],
    ) -> tuple[Tensor, Phases]:
        """The best over all iterates; a quarter of the parts, or more, drop out together once they have `enough`.

        `scale` of the first |coefficients| (B, U) is what multipliers are measured by.
        """
        best = torch.full((len(phases),), -torch.inf)
        turns, multipliers = phases.turns.clone(), phases.multipliers.clone()
        kept, now, at = torch.arange(len(phases)), phases, None
        for t in range(iterations):
            found = self.backward(rows, now)
            better = (found.lower > best[kept]).nonzero().squeeze(1)
            place = kept[better]
            best[place], turns[place] = found.lower[better], now.turns[better]
            multipliers[place] = now.multipliers[better]
            at = at or _Place(scale(found.coefficients.abs()), enough, moments)
            chosen = (~(found.lower > at.enough)).nonzero().squeeze(1)
            if t + 1 == iterations or not len(chosen):
                break
            now = step(t, now, found, self.forward(found), at)
            if len(chosen) < 0.75 * len(kept):
                kept, rows, now, at = kept[chosen], rows[chosen], now[chosen], at[chosen]
        return best, Phases(phases.signs, turns, multipliers)

    @staticmethod
    def _long_step(now: Phases, found: Pass, z: Tensor, scale: Tensor, enough: Tensor) -> Phases:
        """To where the supergradient, over-relaxed and without what leaves the feasible set, would reach `enough`."""
        turn, pull = found.coefficients.clamp(min=0.0) * z, -now.signs * z
        outwards = ((now.turns <= 0.0) & (turn < 0.0)) | ((now.turns >= 1.0) & (turn > 0.0)) | (now.signs != 0)
        turn = turn.masked_fill(outwards, 0.0)
        pull = pull.masked_fill((now.multipliers <= 0.0) & (pull < 0.0), 0.0) * scale
        size = (turn.square().sum(1) + pull.square().sum(1)).clamp(min=1e-20)
        step = (OVER * (enough - found.lower).clamp(min=0.0) / size).unsqueeze(1)
        moved = (now.multipliers + step * pull * scale).clamp(min=0.0) * now.signs.abs()
        return Phases(now.signs, (now.turns + step * turn).clamp(0.0, 1.0), moved)

    @staticmethod
    def _step(t: int, rate: float, now: Phases, found: Pass, z: Tensor, scale: Tensor, moments: list[Tensor]) -> Phases:
        """Step t of Adam (Kingma and Ba, 2015) upwards, projected."""
        gradients = found.coefficients.clamp(min=0.0) * z, -now.signs * z
        moved = []
        for k, (gradient, x, size) in enumerate(
            zip(gradients, (now.turns, now.multipliers), (1.0, scale), strict=True)
        ):
            mean, square = moments[2 * k], moments[2 * k + 1]
            mean.lerp_(gradient, 1.0 - MEAN)
            square.lerp_(gradient * gradient, 1.0 - SQUARE)
            step = mean / (1.0 - MEAN ** (t + 1)) / ((square / (1.0 - SQUARE ** (t + 1))).sqrt() + 1e-12)
            moved.append(x + (rate * size) * step)
        return Phases(now.signs, moved[0].clamp(0.0, 1.0), moved[1].clamp(min=0.0) * now.signs.abs())

    def gains(self, phases: Phases, found: Pass, z: Tensor, most: Tensor) -> Tensor:
        """A score (B, U) of cutting a hinge, -1 where the phase is fixed: what both halves gain at the minimiser z.

        A half counts up to `most` (B, 1) > 0: one that is closed needs no more.
        """
        h = self.network.hinges
        low, high, intercept = found.lines
        a = found.coefficients
        line = torch.where(a > 0, low * z, torch.addcmul(intercept, high, z))
        total = torch.zeros_like(z)
        for slope in (h.right, h.left):
            total += torch.minimum((a * (slope * z - line)).clamp(min=0.0), most)
        return total.masked_fill(phases.signs != 0, -1.0)


def decided_lower(relaxation: Relaxation, node: int, rows: Rows, hinges: Hinges, phases: Phases) -> Tensor:
    """Lower bounds (B,) on the rows (1, B, *S) of a node, each on its part of the relaxation's one box; rigorous.

    Sound because: `Substitution.backward` in float64 is, for any slopes and multipliers, see `Halves`.
    """
    found = []
    for piece in torch.arange(len(phases)).split(DECIDED):
        part = phases[piece]
        substitution = Substitution(relaxation, node, rows[piece], torch.float64)
        for site in hinges.sites:
            made = _halves(relaxation, site.node, site.entries, part, site.place)
            substitution.halves[site.node], substitution.points[site.node] = made
        found.append(substitution.backward(1.0, rigorous=True).lower[0])
    return torch.cat(found)


def _halves(
    relaxation: Relaxation, node: int, entries: Tensor, phases: Phases, place: slice
) -> tuple[Halves, tuple[Tensor, ...]]:
    """What a node's lines need to know of the parts, and points at which their slopes are the ones wanted."""
    x = relaxation.intervals[relaxation.graph.nodes[node].inputs[0]]
    shape = (1, len(phases), *x.lower.shape[1:])

    def dense(values: Tensor) -> Tensor:
        spread = torch.zeros(len(phases), x.lower[0].numel(), dtype=torch.float64)
        spread[:, entries] = values[:, place].double()
        return spread.reshape(shape)

    point = 2.0 * (dense(phases.turns) - 0.5) * x.width.unsqueeze(1)
    return Halves(dense(phases.signs), dense(phases.multipliers)), (point,)
