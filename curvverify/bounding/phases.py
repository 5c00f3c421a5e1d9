"""Rows of a network on parts of a box given by ranges of the arguments of ReLU-like functions.

Where a range lies on one side of 0, the function is affine, and what was cut there has a multiplier: a row h is bounded
by min h - sum multiplier * sign * z over the box alone, for any multipliers >= 0.  Slopes of the other functions' lower
lines and multipliers are found together by ascent, with the exact supergradients that one backward and one forward
pass of the relaxation give; the bounds of all other nodes stay those of the whole box, which makes a pass over a part
cheap.

The same passes bound how far an argument z gets where the row stays below a bar: row - weight * sign * z >= b on the
part gives sign * z <= (bar - b) / weight at all its points with row <= bar, for any weight > 0.

Source: the multipliers are those of beta-CROWN (Wang et al., NeurIPS 2021); bounds of arguments where the output is
constrained, those of INVPROP (Kotha et al., NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.bounding.reduced import Hinges, ReducedNetwork, Site
from curvverify.bounding.relaxation import Relaxation
from curvverify.bounding.substitution import Restriction, Rows, Substitution
from curvverify.numerics.rounding import round_up
from curvverify.types import Columns

RATE, LAST = 0.5, 0.3
"""First step of an ascent, relative to the range of a slope, and what share of it the last one is."""

WARM = 0.1
"""Steps of slopes that were found for a larger part, likewise."""

MEAN, SQUARE = 0.9, 0.99
"""Weights of the past in the running means of gradients and of their squares."""

OVER = 3.0
"""How much further multipliers move than a linear model has to, for what their concave bound gains less."""

PULL = 0.3
"""What an aim takes off at first, over its range, is the reach of the row's form divided by this."""

DECIDED = 32
"""Parts that are decided at once."""

LARGE, ROUGH = 2**19, 0.01
"""Matrices so large are multiplied in bfloat16, if that moves the bounds by this share of what they miss at most."""


@dataclass(frozen=True, eq=False)
class Phases(Columns):
    """B parts of a box with U unstable hinges, all (B, U) in float32.

    `lower`, `upper`: ranges of the arguments, exact float32 numbers.  `turns` in [0, 1]: how far the lower line has
    turned from the left slope to the right one.  `multipliers` >= 0 of the signs.  Only the ranges have a meaning; the
    others are what the last search found, and any numbers give valid bounds.
    """

    lower: Tensor
    upper: Tensor
    turns: Tensor
    multipliers: Tensor

    @classmethod
    def whole(cls, hinges: Hinges) -> Phases:
        """The box itself, with CROWN's slopes."""
        lower, upper = hinges.lower.unsqueeze(0), hinges.upper.unsqueeze(0)
        return cls(lower, upper, (upper > -lower).float(), torch.zeros_like(lower))

    def __len__(self) -> int:
        return len(self.lower)

    @property
    def signs(self) -> Tensor:
        """1 where z >= 0, else -1 where z <= 0, and 0 where the part holds both."""
        return torch.where(self.lower >= 0, 1.0, torch.where(self.upper <= 0, -1.0, 0.0))

    @property
    def empty(self) -> Tensor:
        """(B,): parts that hold no point."""
        return (self.lower > self.upper).any(1)

    def fixed(self, signs: Tensor) -> Phases:
        """The parts of these parts where z >= 0 for the signs (B, U) above 0, and z <= 0 for those below."""
        lower = torch.where(signs > 0, self.lower.clamp(min=0.0), self.lower)
        upper = torch.where(signs < 0, self.upper.clamp(max=0.0), self.upper)
        return Phases(lower, upper, self.turns, self.multipliers)

    def pushed(self, entries: Tensor, signs: Tensor, multipliers: Tensor) -> Phases:
        """The halves of the parts where sign * z >= 0 for one hinge (B,) each, with so much more of a multiplier."""
        at, fixed, longer = torch.arange(len(self)), torch.zeros_like(self.lower), self.multipliers.clone()
        fixed[at, entries] = signs
        longer[at, entries] += multipliers
        return replace(self.fixed(fixed), multipliers=longer)


@dataclass(frozen=True, eq=False)
class Sides(Columns):
    """What lines above and below hinges on parts have in common, all (B, U): slopes start + span * turn of the lower
    lines, which pass through 0, slopes and intercepts of the chords, and the signs of the parts."""

    start: Tensor
    span: Tensor
    chord: Tensor
    intercept: Tensor
    signs: Tensor

    @classmethod
    def of(cls, hinges: Hinges, phases: Phases) -> Sides:
        signs = phases.signs
        split = signs != 0
        start = torch.where(signs > 0, hinges.right, hinges.left)
        rise, width = hinges.right * phases.upper - hinges.left * phases.lower, phases.upper - phases.lower
        chord = torch.where(split, start, rise / width)
        intercept = torch.where(split, 0.0, (hinges.right - chord) * phases.upper)
        return cls(start, (hinges.right - hinges.left).masked_fill(split, 0.0), chord, intercept, signs)


@dataclass(frozen=True, eq=False)
class Aims(Columns):
    """Arguments sign * z of hinges to be bounded where rows are small: entry, sign and weight of each; (B,)."""

    entries: Tensor
    signs: Tensor
    weights: Tensor

    def pulled(self, pull: Tensor) -> Tensor:
        """With what the aims take off added to what multipliers do, (B, U)."""
        pull[torch.arange(len(pull)), self.entries] += self.signs * self.weights
        return pull


@dataclass(eq=False)
class Pass:
    """One backward pass: the estimated bounds (B,), the linear forms (B, n), coefficients (B, U) of the hinges."""

    lower: Tensor
    slope: Tensor
    coefficients: Tensor
    low: Tensor
    """Slopes of the lower lines."""
    sides: Sides


@dataclass(frozen=True, eq=False)
class Ascent:
    """Estimates of the bounds of rows of a reduced network on parts of its box."""

    network: ReducedNetwork

    @classmethod
    def quick(cls, network: ReducedNetwork, bars: Tensor) -> Ascent:
        """For rows that are to exceed bars (R,): with coarse products where they are faster, and precise enough."""
        fine = cls(network)
        if network.arguments.inputs.numel() < LARGE or not _multiplies_bfloat16():
            return fine
        coarse = cls(network.coarse())
        rows = torch.arange(len(bars))
        whole = Phases.whole(network.hinges)[torch.zeros_like(rows)]
        lower = fine.backward(rows, whole).lower
        moved, missing = (coarse.backward(rows, whole).lower - lower).abs(), (bars - lower).abs()
        return coarse if bool(moved.sum() <= ROUGH * missing.sum()) else fine

    @property
    def precision(self) -> torch.dtype:
        """Of the large products."""
        return self.network.arguments.inputs.dtype

    def backward(self, rows: Tensor, phases: Phases, sides: Sides | None = None, aims: Aims | None = None) -> Pass:
        """The bounds of rows (B,), less what `aims` take off, on the parts, for their slopes and multipliers."""
        forms, wanted = self.network.arguments, self.network.rows
        s = sides or Sides.of(self.network.hinges, phases)
        low = torch.addcmul(s.start, s.span, phases.turns)
        pull = s.signs * phases.multipliers
        if aims is not None:
            pull = aims.pulled(pull)
        a = wanted.hinges[rows]
        z = torch.empty_like(a)
        for site in reversed(self.network.hinges.sites):
            part = a[:, site.place]
            above = part.clamp(min=0.0)
            lines = above * low[:, site.place] + (part - above) * s.chord[:, site.place]
            z[:, site.place] = lines - pull[:, site.place]
            if site.place.start:
                before = slice(0, site.place.start)
                a[:, before] += _product(z[:, site.place], forms.hinges[site.place, before])
        slope = torch.addmm(wanted.inputs[rows], z.to(forms.inputs.dtype), forms.inputs)
        constant = wanted.constant[rows] + z @ forms.constant + (a.clamp(max=0.0) * s.intercept).sum(1)
        return Pass(constant - _size(slope), slope, a, low, s)

    def forward(self, found: Pass) -> Tensor:
        """The hinges' arguments (B, U) where the relaxed rows take their minima."""
        forms, sides = self.network.arguments, found.sides
        below = found.coefficients > 0
        slope, shift = torch.where(below, found.low, sides.chord), torch.where(below, 0.0, sides.intercept)
        z = forms.constant - _product(found.slope.sign(), forms.inputs.T)
        values = torch.empty_like(z)
        for site in self.network.hinges.sites:
            here, before = site.place, slice(0, site.place.start)
            if site.place.start:
                z[:, here] += _product(values[:, before], forms.hinges[here, before].T)
            values[:, here] = slope[:, here] * z[:, here] + shift[:, here]
        return z

    def ascend(
        self, rows: Tensor, phases: Phases, enough: Tensor, iterations: int, warm: bool = False
    ) -> tuple[Tensor, Phases]:
        """The best bounds (B,) found for the rows, and the slopes and multipliers they belong to.

        Slopes take short steps where they are `warm`, those of a larger part.  Multipliers take steps as long as
        `enough` (B,), finite, asks for: bounds of parts that hold no point, or hardly any, grow with them without
        limit.  Parts whose bound exceeds `enough` are not improved any further.
        """
        best = torch.full((len(phases),), -torch.inf)
        turns, multipliers = phases.turns.clone(), phases.multipliers.clone()
        moments = [torch.zeros_like(turns) for _ in range(4)]
        kept, now, sides = torch.arange(len(phases)), phases, Sides.of(self.network.hinges, phases)
        for t in range(iterations):
            found = self.backward(rows, now, sides)
            better = (found.lower > best[kept]).nonzero().squeeze(1)
            place = kept[better]
            best[place], turns[place] = found.lower[better], now.turns[better]
            multipliers[place] = now.multipliers[better]
            chosen = (~(found.lower > enough)).nonzero().squeeze(1)
            if t + 1 == iterations or not len(chosen):
                break
            z = self.forward(found)
            rate = WARM if warm else _rate(t, iterations)
            now = _step(t, rate, now, found, z, _length(now, found, z, enough), moments)
            if len(chosen) < 0.75 * len(kept):
                kept, rows, now, enough, sides = kept[chosen], rows[chosen], now[chosen], enough[chosen], sides[chosen]
                moments = [m[chosen] for m in moments]
        return best, replace(phases, turns=turns, multipliers=multipliers)

    def reach(
        self, rows: Tensor, phases: Phases, aims: Aims, bars: Tensor, iterations: int
    ) -> tuple[Tensor, Phases, Aims]:
        """Estimates (B,) of how large sign * z gets on the parts where the rows do not exceed the bars (B,).

        With the slopes, multipliers and weights that they belong to.  Weights of 0 are unknown.
        """
        sides = Sides.of(self.network.hinges, phases)
        found, now = self.backward(rows, phases, sides), phases
        scale = found.coefficients.abs().mean(1, keepdim=True)
        width = (phases.upper - phases.lower).gather(1, aims.entries.unsqueeze(1)).squeeze(1).clamp(min=1e-12)
        likely = torch.maximum(_size(found.slope) / PULL, bars - found.lower).clamp(min=1e-12) / width
        weights = torch.where(aims.weights > 0.0, aims.weights, likely)
        moments = [torch.zeros_like(phases.turns) for _ in range(4)]
        mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
        best, turns, multipliers = torch.full_like(bars, torch.inf), phases.turns.clone(), phases.multipliers.clone()
        kept = weights.clone()
        for t in range(iterations):
            found = self.backward(rows, now, sides, replace(aims, weights=weights))
            far = (bars - found.lower) / weights
            better = (far < best).nonzero().squeeze(1)
            best[better], kept[better] = far[better], weights[better]
            turns[better], multipliers[better] = now.turns[better], now.multipliers[better]
            if t + 1 == iterations:
                break
            z, rate = self.forward(found), _rate(t, iterations)
            there = aims.signs * z.gather(1, aims.entries.unsqueeze(1)).squeeze(1)
            now = _step(t, rate, now, found, z, rate * scale, moments)
            weights = weights * (rate * _adam(t, far - there, mean, square)).exp()
        return best, replace(phases, turns=turns, multipliers=multipliers), replace(aims, weights=kept)


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it; versions of torch that cannot tell are taken to say no."""
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict[str, object])()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """In the precision of the matrix, as float32."""
    return (x.to(matrix.dtype) @ matrix).float()


def _size(slope: Tensor) -> Tensor:
    """How far (B,) linear forms (B, n) reach below their value at 0."""
    return slope.abs().sum(1, dtype=torch.float32)


def _rate(t: int, iterations: int) -> float:
    return RATE * LAST ** (t / iterations)


def _step(t: int, rate: float, now: Phases, found: Pass, z: Tensor, length: Tensor, moments: list[Tensor]) -> Phases:
    """Step t of Adam upwards, projected: so far at most for slopes, and (B, 1) for multipliers."""
    signs = found.sides.signs
    turns = now.turns + rate * _adam(t, found.coefficients.clamp(min=0.0) * z, *moments[:2])
    moved = now.multipliers + length * _adam(t, -signs * z, *moments[2:])
    return replace(now, turns=turns.clamp(0.0, 1.0), multipliers=moved.clamp(min=0.0) * signs.abs())


def _length(now: Phases, found: Pass, z: Tensor, enough: Tensor) -> Tensor:
    """How far (B, 1) multipliers move, each along its gradient, for bounds to exceed `enough` (B,).

    Source: Polyak (1969), with the signs of the gradient for its direction, and over-relaxed.
    """
    pull = -found.sides.signs * z
    pull = pull.masked_fill((now.multipliers <= 0.0) & (pull < 0.0), 0.0)
    missing = (enough - found.lower).clamp(min=0.0)
    return (OVER * missing / pull.abs().sum(1).clamp(min=1e-20)).unsqueeze(1)


def _adam(t: int, gradient: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """The direction of step t of Adam (Kingma and Ba, 2015), whose running means are updated."""
    mean.lerp_(gradient, 1.0 - MEAN)
    square.lerp_(gradient * gradient, 1.0 - SQUARE)
    return mean / (1.0 - MEAN ** (t + 1)) / ((square / (1.0 - SQUARE ** (t + 1))).sqrt() + 1e-12)


def decided_lower(
    relaxation: Relaxation, node: int, rows: Rows, hinges: Hinges, phases: Phases, aims: Aims | None = None
) -> Tensor:
    """Lower bounds (B,) on the rows (1, B, *S) of a node, less what `aims` take off, each on its part of the
    relaxation's one box; rigorous.

    Sound because: `Substitution.backward` in float64 is, for any slopes and pulls, see `Restriction`; where
    sign * z >= 0, a row is not below what is left of it without multiples >= 0 of that.
    """
    found = []
    for piece in torch.arange(len(phases)).split(DECIDED):
        part = phases[piece]
        pull = part.signs * part.multipliers.clamp(min=0.0)
        pull = pull if aims is None else aims[piece].pulled(pull)
        substitution = Substitution(relaxation, node, rows[piece], torch.float64)
        for site in hinges.sites:
            substitution.restrictions[site.node] = _restriction(relaxation, site, part, pull)
        found.append(substitution.backward(1.0, rigorous=True).lower[0])
    return torch.cat(found)


def decided_reach(
    relaxation: Relaxation, node: int, rows: Rows, hinges: Hinges, phases: Phases, aims: Aims, bars: Tensor
) -> Tensor:
    """Upper bounds (B,) on sign * z on each part where its row does not exceed its bar (B,); rigorous, in float64.

    Sound because: see `decided_lower`, and the quotient is rounded up.
    """
    lower = decided_lower(relaxation, node, rows, hinges, phases, aims)
    return round_up(round_up(bars - lower) / aims.weights.double())


def _restriction(relaxation: Relaxation, site: Site, phases: Phases, pull: Tensor) -> Restriction:
    """What a node's lines need to know of the parts."""
    x = relaxation.intervals[relaxation.graph.nodes[site.node].inputs[0]]
    known = [end.flatten()[site.entries] for end in x.both]
    lower = torch.maximum(phases.lower[:, site.place].double(), known[0])
    upper = torch.minimum(phases.upper[:, site.place].double(), known[1])
    return Restriction(site.entries, lower, upper, phases.turns[:, site.place].double(), pull[:, site.place].double())
