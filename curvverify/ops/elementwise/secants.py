"""Difference quotients r(y) = (f(y) - f(a)) / (y - a) from a fixed point a: their range over an interval.

f is a derivative of sigma (or sigma itself); the extremes of f' and the joints of sigma's branches cut the line into
pieces, on each of which f is convex, concave or straight.  From a we walk to either end of the interval:

* On the piece that holds a, r is monotone: from f'(a) to its value at the far end.
* On another piece where f is convex, and right of a, r is quasi-convex: its maximum is at an end of the piece, its
  minimum there or where the tangent passes through (a, f(a)).  For every t in the piece, with K = f(t) - f(a) -
  f'(t) (t - a), f(y) >= f(t) + f'(t) (y - t) gives r(y) >= f'(t) + K / (y - a), which is least at an end of the piece.
  So the point of tangency is searched for, but any t proves a bound.  Concave pieces and the left side mirror this.
* By the mean value theorem r(y) is within the range of f' between a and y, unless f jumps there.

Inflections are declared to within an ulp; there f is straight up to the ulp's third power, far below its own error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY, UNIT_ROUNDOFF
from curvverify.ops.elementwise.levels import Branch, continuous
from curvverify.types import Columns, Interval

STEPS = 24
"""Steps of the search for a point of tangency; what is left costs tightness only."""
ROUNDING = 8.0 * UNIT_ROUNDOFF[torch.float64]
"""Covers the few roundings of a difference quotient, relative to the terms that it is made of."""


@dataclass(frozen=True)
class Points(Columns):
    """f and f' at one point per entry (or at one for all), with bounds on their errors."""

    z: Tensor
    value: Tensor
    value_error: Tensor
    slope: Tensor
    slope_error: Tensor

    def where(self, condition: Tensor, other: Points) -> Points:
        """These points where the condition holds, the other ones elsewhere."""
        return Points(*(torch.where(condition, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    @property
    def slopes(self) -> Interval:
        return Interval(self.slope - self.slope_error, self.slope + self.slope_error)


@dataclass(frozen=True)
class Piece:
    """Where f is convex (bend 1), concave (-1) or straight (0); `near` is passed before `far`."""

    branch: Branch
    near: Points
    far: Points
    bend: int
    joined: bool
    """f is continuous where the piece is entered."""


def points(branch: Branch, order: int, z: Tensor) -> Points:
    """f = sigma^(order - 1) and f' at z, one-sided limits at the ends of the branch."""
    value, slope = branch.at(order - 1, z), branch.at(order, z)
    return Points(z, value, branch.error(order - 1, value), slope, branch.error(order, slope))


def walk(branches: tuple[Branch, ...], order: int, side: int, like: Tensor) -> Iterator[Piece]:
    """All pieces, rightward (side 1) or leftward (-1)."""
    before = None
    for branch in branches[::side]:
        level = branch.levels[order]
        cuts = [branch.left, *(point for point, _ in level.extremes), branch.right]
        slopes = [level.limits[0], *(value for _, value in level.extremes), level.limits[1]]
        bends = [(a < b) - (a > b) for a, b in pairwise(slopes)]
        at = [points(branch, order, torch.full_like(like[:1], z)) for z in cuts[::side]]
        if before is None:
            joined = True
        else:
            joined = continuous(before, branch, order - 1) if side > 0 else continuous(branch, before, order - 1)
        for near, far, bend in zip(at, at[1:], bends[::side], strict=False):
            yield Piece(branch, near, far, bend, joined)
            joined = True
        before = branch


def secants(branches: tuple[Branch, ...], order: int, at: Tensor, x: Interval) -> Interval:
    """Bounds (n,) on r(y) for all y != at in the interval, which contains `at`; infinite where f jumps there."""
    low, high = torch.full_like(at, math.inf), torch.full_like(at, -math.inf)
    for side, end in ((1, x.upper), (-1, x.lower)):
        found = one_side(branches, order, at, end, side)
        low, high = torch.minimum(low, found.lower), torch.maximum(high, found.upper)
    for left, right in pairwise(branches):
        if not continuous(left, right, order - 1):
            torn = (at == left.right) & (x.lower < at) & (at < x.upper)
            low, high = torch.where(torn, -math.inf, low), torch.where(torn, math.inf, high)
    return Interval(low, high)


def one_side(branches: tuple[Branch, ...], order: int, at: Tensor, end: Tensor, side: int) -> Interval:
    """Bounds on r between `at` and `end` on its right (side 1) or left (-1); [inf, -inf] where they are equal."""
    origin = standing(branches, order, at, side)
    low, high = torch.full_like(at, math.inf), torch.full_like(at, -math.inf)
    mean = origin.slopes  # range of f' from `at` to where we have got
    moving = side * at < side * end
    everything = Interval(-low, low)
    branch, target = None, origin
    for piece in walk(branches, order, side, at):
        active = moving & (side * at < side * piece.far.z) & (side * piece.near.z < side * end)
        if not bool(active.any()):
            continue
        entered = active & (side * at < side * piece.near.z)
        if piece.branch is not branch:
            branch, target = piece.branch, points(piece.branch, order, end)
        far = target.where(side * end < side * piece.far.z, piece.far)
        if not piece.joined:
            mean = cover(mean, everything, entered)
        mean = cover(mean, piece.near.slopes, entered)
        at_near = within(quotient(origin, piece.near), mean)
        mean = cover(mean, far.slopes, active)
        at_far = within(quotient(origin, far), mean)
        own = origin.slopes
        first = Interval(torch.where(entered, at_near.lower, own.lower), torch.where(entered, at_near.upper, own.upper))
        found = cover(first, at_far, active)
        if piece.bend != 0 and bool(entered.any()):
            found = touching(piece, order, origin, far, side, entered, found, mean)
        low = torch.where(active, torch.minimum(low, found.lower), low)
        high = torch.where(active, torch.maximum(high, found.upper), high)
    return Interval(low, high)


def standing(branches: tuple[Branch, ...], order: int, at: Tensor, side: int) -> Points:
    """f and f' at `at` as seen from the side we go to."""
    found = points(branches[0], order, at)
    for branch in branches[1:]:
        found = points(branch, order, at).where(at >= branch.left if side > 0 else at > branch.left, found)
    return found


def cover(x: Interval, y: Interval, where: Tensor) -> Interval:
    """The hull of both where the condition holds, x elsewhere; NaN where either is."""
    return Interval(
        torch.where(where, torch.minimum(x.lower, y.lower), x.lower),
        torch.where(where, torch.maximum(x.upper, y.upper), x.upper),
    )


def within(x: Interval, y: Interval) -> Interval:
    """What both say; NaN says nothing."""
    return Interval(torch.fmax(x.lower, y.lower), torch.fmin(x.upper, y.upper))


def quotient(a: Points, b: Points) -> Interval:
    """Bounds on r at b; at infinity its limit, that of f'."""
    infinite = b.z.isinf()
    distance = (b.z - a.z).abs()
    r = torch.where(infinite, b.slope, (b.value - a.value) / (b.z - a.z))
    error = torch.where(infinite, b.slope_error, (a.value_error + b.value_error) / distance)
    error = error * (1.0 + ROUNDING) + ROUNDING * r.abs() + TINY
    return Interval(r - error, r + error)


def gap(a: Points, t: Points) -> Tensor:
    """K = f(t) - f(a) - f'(t) (t - a)."""
    return t.value - a.value - t.slope * (t.z - a.z)


def touching(
    piece: Piece, order: int, origin: Points, far: Points, side: int, entered: Tensor, found: Interval, mean: Interval
) -> Interval:
    """`found`, the hull of r at both ends of the piece, widened to all of r between them where it is `entered`.

    Sound because: with s = side * bend, s r(y) >= s f'(t) + bend K / |y - a| for any t in the piece, and K's roundings
    are a few ulp of `size`.  bend K falls as t moves away, so its signs at the ends tell where the best t is.
    """
    where = entered.nonzero()[:, 0]
    a, near, last = (p[where] for p in (origin, piece.near.where(entered, origin), far))
    reach = side * (1e3 + 1e3 * near.z.abs() + 10.0 * (near.z - a.z).abs())
    t = last
    if bool(last.z.isinf().any()):
        t = points(piece.branch, order, torch.where(last.z.isinf(), near.z + reach, last.z))
    at_near, at_far = piece.bend * gap(a, near), piece.bend * gap(a, t)
    inner = (at_near > 0.0) & (at_far < 0.0)
    if bool(inner.any()):
        which = inner.nonzero()[:, 0]
        ends = torch.stack([near.z[which], t.z[which]])
        best = tangency(piece, order, a[which], ends[0], ends[1], side).clamp(ends.amin(0), ends.amax(0))
        t = points(piece.branch, order, t.z.index_put((which,), best))
    t = near.where(at_near <= 0.0, t)
    s = side * piece.bend
    size = t.value.abs() + a.value.abs() + (t.slope * (t.z - a.z)).abs()
    k = piece.bend * gap(a, t)
    k = k - (t.value_error + a.value_error + t.slope_error * (t.z - a.z).abs() + ROUNDING * size) * 1.01 - TINY
    least = torch.minimum(k / (near.z - a.z).abs(), k / (last.z - a.z).abs())
    bound = s * t.slope - t.slope_error + least
    bound = bound - ROUNDING * (t.slope.abs() + least.abs()) - TINY
    if s > 0:
        bound = torch.fmax(bound, mean.lower[where])
        return Interval(found.lower.index_put((where,), torch.minimum(found.lower[where], bound)), found.upper)
    bound = torch.fmin(-bound, mean.upper[where])
    return Interval(found.lower, found.upper.index_put((where,), torch.maximum(found.upper[where], bound)))


def tangency(piece: Piece, order: int, a: Points, near: Tensor, far: Tensor, side: int) -> Tensor:
    """A point of the piece where K is about 0: Newton's method, or bisection where that leaves the bracket."""
    f, slope, second = (piece.branch.levels[k].value for k in (order - 1, order, order + 1))
    found, where = near.clone(), torch.arange(len(near), device=near.device)
    at, value = a.z, a.value
    low, high = torch.zeros_like(near), (far - near).abs()  # of the distance d from `near`, as far as known
    d = torch.minimum(torch.minimum(0.5 * (near - at).abs(), 1.0 + near.abs()), halfway(low, high))
    for _ in range(STEPS):
        t = near + side * d
        k = piece.bend * (f(t) - value - slope(t) * (t - at))
        low, high = torch.where(k > 0.0, d, low), torch.where(k > 0.0, high, d)
        step = k / (second(t) * (t - at)).abs()
        following = d + step
        following = torch.where((following >= low) & (following <= high), following, halfway(low, high))
        done = (following - d).abs() <= 1e-8 * (near - at).abs()
        d = following
        if 4 * int(done.sum()) > len(d):
            found[where] = near + side * d
            keep = ~done
            where, near, at, value, low, high, d = (x[keep] for x in (where, near, at, value, low, high, d))
        if not len(d):
            break
    found[where] = near + side * d
    return found


def halfway(low: Tensor, high: Tensor) -> Tensor:
    """Between two distances, in their logarithms: pieces are long, and points of tangency near their beginning."""
    return (low + high + low * high) / (1.0 + ((1.0 + low) * (1.0 + high)).sqrt())
