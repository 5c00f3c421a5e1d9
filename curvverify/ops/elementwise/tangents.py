"""Building the envelope of a smooth function: admissible arcs by bisection, chords where there is no arc.

Everything is said about the lower side of tau = sign * sigma; the upper side of sigma is the lower side of -sigma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY
from curvverify.ops.elementwise.accuracy import CONDITION_SLACK, LINE_SLACK
from curvverify.ops.elementwise.envelope import SmoothEnvelope
from curvverify.ops.elementwise.facts import Piece, Pieces, SmoothFunction
from curvverify.ops.elementwise.select import BITS, Pair
from curvverify.types import Interval

STEPS = 22
"""Bisection steps for the end of an arc; what is left, some 1e-6 of the function's range, costs tightness only."""


@dataclass(frozen=True)
class Cell:
    """The interval [l, u] of every entry and sigma at its ends; harmless values where the entry is not `usable`."""

    l: Tensor  # noqa: E741
    u: Tensor
    at_l: Tensor
    at_u: Tensor
    reach: Tensor
    usable: Tensor


@dataclass(frozen=True)
class Arc:
    """Tangent points [first, last] whose tangents support the convex envelope; valid where `exists`, up to `pad`."""

    first: Tensor
    last: Tensor
    exists: Tensor
    pad: Tensor


@dataclass(frozen=True)
class Search:
    """Find the tangent point nearest to `bad`, on the way from `good`, whose tangent is not above tau at `end`."""

    good: Tensor
    bad: Tensor
    end: Tensor
    at_end: Tensor
    sign: int
    wanted: Tensor


def smooth_envelope(op: SmoothFunction, x: Interval, saturation: float) -> SmoothEnvelope:
    """Supporting lines of sigma over the interval; see `find_arcs` and `chord` for the two kinds of lines."""
    bounds = op.interval(x)
    cell = make_cell(op, x)
    constant = ~cell.usable | (bounds.upper - bounds.lower <= saturation)
    sides = {sign: op.pieces(Interval(cell.l, cell.u), sign) for sign in (1, -1)}
    arcs = find_arcs(op, cell, sides)
    below = one_side(op, cell, sides[1], arcs[1], 1, constant, bounds.lower)
    above = one_side(op, cell, sides[-1], arcs[-1], -1, constant, bounds.upper)
    facts = op.facts
    scales = LINE_SLACK * (facts.value_scale + facts.slope_scale * cell.reach) + TINY * (1.0 + cell.reach)
    pad = torch.maximum(below.pad, above.pad) + scales

    def pair(name: str) -> Pair:
        return Pair.of(getattr(below, name).unsqueeze(1), getattr(above, name).unsqueeze(1))

    return SmoothEnvelope(
        op=op,
        first=pair("first"),
        last=pair("last"),
        tangent=pair("tangent"),
        fixed_slope=pair("slope"),
        fixed_intercept=pair("intercept"),
        pad=pad.unsqueeze(1),
        reach=cell.reach.unsqueeze(1),
        gap=(pair("gap_left"), pair("gap_right")) if below.gapped or above.gapped else None,
    )


def make_cell(op: SmoothFunction, x: Interval) -> Cell:
    """Entries with infinite, huge, reversed or undefined ends are not usable."""
    at_l, at_u = op.at_ends(x)
    usable = (x.magnitude <= op.facts.largest) & (x.lower <= x.upper) & ~at_l.isnan() & ~at_u.isnan()
    l, u = torch.where(usable, x.lower, 1.0), torch.where(usable, x.upper, 1.0)  # noqa: E741
    reach = torch.maximum(l.abs(), u.abs()) + (u - l)
    return Cell(l, u, torch.where(usable, at_l, 0.0), torch.where(usable, at_u, 0.0), reach, usable)


def find_arcs(op: SmoothFunction, cell: Cell, sides: dict[int, Pieces]) -> dict[int, list[Arc]]:
    """For both signs and every convex piece, the tangent points whose tangents are below tau on all of [l, u].

    Sound because: a tangent at a point of a convex piece is below tau on that piece; where it is also below tau at an
    end of [l, u], it is below on the concave part between the piece and that end, which lies above the chord of the
    part's ends.  Moving the point right raises the tangent at u and lowers it at l, so the points that meet both
    conditions are an interval, and each of its ends is found by bisection with the tested point kept.  A test in
    floating point is wrong by at most e(tau(t)) + e(tau'(t)) |end - t| + e(tau(end)) and four roundings: the pad.
    """
    plan = [(sign, piece) for sign in sides for piece in sides[sign].pieces]
    searches = []
    for sign, piece in plan:
        filled = (piece.first <= piece.last) & cell.usable
        searches.append(Search(piece.last, piece.first, cell.l, cell.at_l, sign, filled & (piece.left > cell.l)))
        searches.append(Search(piece.first, piece.last, cell.u, cell.at_u, sign, filled & (piece.right < cell.u)))
    found = bisect(op, searches)
    arcs: dict[int, list[Arc]] = {sign: [] for sign in sides}
    for (sign, piece), (first, ok_l, pad_l), (last, ok_u, pad_u) in zip(plan, found[::2], found[1::2], strict=True):
        exists = cell.usable & ok_l & ok_u & (first <= last) & (piece.first <= piece.last)
        arcs[sign].append(Arc(first, last, exists, torch.maximum(pad_l, pad_u)))
    return arcs


def bisect(op: SmoothFunction, searches: list[Search]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(point, condition met there, pad) per search; the piece's own end where no search is wanted."""
    wanted = torch.stack([s.wanted for s in searches])
    where = wanted.nonzero(as_tuple=True)
    points = torch.stack([s.bad for s in searches])
    met = torch.ones_like(wanted)
    pads = torch.zeros_like(points)
    if where[0].numel():
        good, bad, end, at_end = (
            torch.stack([getattr(s, name) for s in searches])[where] for name in ("good", "bad", "end", "at_end")
        )
        sign = torch.tensor([float(s.sign) for s in searches], dtype=end.dtype, device=end.device)[where[0]]
        points[where], met[where], pads[where] = boundary(op, good, bad, end, at_end, sign)
    return list(zip(points, met, pads, strict=True))


def boundary(
    op: SmoothFunction, good: Tensor, bad: Tensor, end: Tensor, at_end: Tensor, sign: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The tested point nearest to `bad` whose tangent is not above tau at `end`; whether there is one; its pad.

    The bisection runs in x = asinh(t - bad): a piece may be 10^6 long and its tangent points near the inflection.
    """
    goal = sign * at_end

    def below(t: Tensor) -> Tensor:
        value, slope = op.value_and_slope(t)
        return sign * torch.addcmul(value, slope, end - t) <= goal

    far = torch.zeros_like(bad)
    near = torch.where(below(bad), far, torch.asinh(good - bad))
    for _ in range(STEPS):
        middle = 0.5 * (near + far)
        fine = below(bad + torch.sinh(middle))
        near, far = torch.where(fine, middle, near), torch.where(fine, far, middle)
    point = between(bad + torch.sinh(near), good, bad)
    point = torch.where(below(point), point, good)  # sinh(asinh(.)) and the clamp may have moved it
    value, slope = op.value_and_slope(point)
    size = value.abs() + at_end.abs() + 2.0 * op.facts.value_scale
    size = size + (slope.abs() + op.facts.slope_scale) * (end - point).abs()
    return point, below(point), CONDITION_SLACK * size


def between(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(t, torch.minimum(a, b)), torch.maximum(a, b))


@dataclass(frozen=True)
class Side:
    """One side of the envelope, (B, *S): `tangent` is an integer mask, the other names are those of SmoothEnvelope."""

    first: Tensor
    last: Tensor
    tangent: Tensor
    slope: Tensor
    intercept: Tensor
    pad: Tensor
    gap_left: Tensor
    gap_right: Tensor
    gapped: bool


def one_side(
    op: SmoothFunction, cell: Cell, pieces: Pieces, arcs: list[Arc], sign: int, constant: Tensor, bound: Tensor
) -> Side:
    """Joins the arcs of one side and finds the fixed line of the entries that have none."""
    arc, gap_left, gap_right = join(arcs, cell)
    tangent = arc.exists & ~constant
    slope, intercept = torch.zeros_like(bound), bound
    if bool((~tangent & ~constant).any()):
        slope, intercept = chord(op, cell, pieces, sign)
        flat = constant | ~slope.isfinite() | ~intercept.isfinite()
        if pieces.complete is not None:
            flat |= ~pieces.complete
        slope, intercept = torch.where(flat, 0.0, slope), torch.where(flat, bound, intercept)
    return Side(
        first=torch.where(tangent, arc.first, cell.l),
        last=torch.where(tangent, arc.last, cell.l),
        tangent=tangent.to(BITS[slope.dtype]).neg(),
        slope=torch.where(tangent, 0.0, slope),
        intercept=torch.where(tangent, 0.0, intercept),
        pad=torch.where(tangent, arc.pad, 0.0),
        gap_left=gap_left,
        gap_right=gap_right,
        gapped=bool(gap_left.isfinite().any()),
    )


def join(arcs: list[Arc], cell: Cell) -> tuple[Arc, Tensor, Tensor]:
    """The arcs of one side, none to two in order, as one with a gap ]left, right[, at infinity where there is none."""
    nowhere = torch.full_like(cell.l, math.inf)
    if not arcs:
        return Arc(cell.l, cell.l, torch.zeros_like(cell.usable), torch.zeros_like(cell.l)), nowhere, nowhere
    if len(arcs) == 1:
        return arcs[0], nowhere, nowhere
    a, b = arcs
    both = a.exists & b.exists
    first, last = torch.where(a.exists, a.first, b.first), torch.where(b.exists, b.last, a.last)
    joined = Arc(first, last, a.exists | b.exists, torch.maximum(a.pad, b.pad))
    return joined, torch.where(both, a.last, nowhere), torch.where(both, b.first, nowhere)


def chord(op: SmoothFunction, cell: Cell, pieces: Pieces, sign: int) -> tuple[Tensor, Tensor]:
    """Slope and intercept of a line below tau (times sign: below or above sigma), the chord where that is possible.

    Sound because: with k the slope, tau - k z has its minimum over [l, u] at l, at u or in a convex piece [a, b],
    where it is above both tangents at a and b: their larger value is smallest at a, at b or where they cross.
    """
    width = cell.u - cell.l
    middle = 0.5 * (cell.l + cell.u)
    k = torch.where(width > 1e-7 * cell.reach, (cell.at_u - cell.at_l) / width, op.slope(middle)) * sign
    at_l, at_u = sign * cell.at_l, sign * cell.at_u
    lowest = torch.minimum(at_l - k * cell.l, at_u - k * cell.u)
    size = at_l.abs() + at_u.abs() + (k.abs() + op.facts.slope_scale) * cell.reach + op.facts.value_scale
    for piece in pieces.pieces:
        least, piece_size = lowest_over(op, piece, k, sign)
        filled = piece.left <= piece.right
        lowest = torch.where(filled, torch.minimum(lowest, least), lowest)
        size = size + torch.where(filled, piece_size, 0.0)
    return sign * k, sign * (lowest - CONDITION_SLACK * size - TINY * (1.0 + cell.reach))


def lowest_over(op: SmoothFunction, piece: Piece, k: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Lower bound of tau - k z over the convex piece, and the size of the numbers it was computed from."""
    (value_a, slope_a), (value_b, slope_b) = op.value_and_slope(piece.left), op.value_and_slope(piece.right)
    at_a, at_b = sign * value_a - k * piece.left, sign * value_b - k * piece.right
    down, up = sign * slope_a - k, sign * slope_b - k
    width = piece.right - piece.left
    crossing = ((at_b - at_a - up * width) / (down - up)).clamp(min=0.0).minimum(width)
    inner = torch.minimum(at_a + down * crossing, at_b - up * (width - crossing))
    least = torch.where(down >= 0.0, at_a, torch.where(up <= 0.0, at_b, inner))
    far = torch.maximum(piece.left.abs(), piece.right.abs()) + width
    return least, value_a.abs() + value_b.abs() + (slope_a.abs() + slope_b.abs() + k.abs()) * far
