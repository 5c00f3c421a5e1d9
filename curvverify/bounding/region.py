"""Regions of the input: all of R^n, a box, or an l_2 ball; and how users name them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.errors import UsageError
from curvverify.numerics.rounding import round_down, round_up
from curvverify.spec import load_query
from curvverify.spec.query import Query
from curvverify.types import Ball, Interval

RegionLike = str | os.PathLike[str] | Query | tuple[Tensor, Tensor] | Ball | None
"""A VNN-LIB path or Query, a box (lower, upper), a ball, or None for all of R^n."""


@dataclass(frozen=True, eq=False)
class Region:
    """A set of inputs: a box (*S_in), and where there is one an l_2 ball inside it; all in float64."""

    box: Interval
    ball: Ball | None = None
    name: str = "global"

    @classmethod
    def everywhere(cls, shape: tuple[int, ...]) -> Region:
        """R^n."""
        inf = torch.full(shape, torch.inf, dtype=torch.float64)
        return cls(Interval(-inf, inf))

    @property
    def bounded(self) -> bool:
        return bool(self.box.lower.isfinite().all() and self.box.upper.isfinite().all())

    @property
    def free(self) -> Tensor:
        """1.0 (*S_in) for coordinates that may move, 0.0 for fixed ones."""
        return (self.box.lower < self.box.upper).to(torch.float64)


def region_of(value: RegionLike, shape: tuple[int, ...]) -> Region:
    """The region that a user means, for inputs of that shape.

    None is R^n; a VNN-LIB path or Query the smallest box around its input boxes; a pair of tensors a box (lower,
    upper); a `Ball` itself.  UsageError where the region is empty, has NaN bounds or another size.
    """
    if value is None:
        return Region.everywhere(shape)
    if isinstance(value, Ball):
        return _ball(value, shape)
    if isinstance(value, tuple):
        lower, upper = value
        name = "box"
    else:
        query = value if isinstance(value, Query) else load_query(value)
        lower, upper = _cover(query)
        name = f"box of {query.path}" if query.path else "box"
    lower, upper = (_sized(t, shape, "the region has") for t in (lower, upper))
    if not bool((lower <= upper).all()):
        raise UsageError("the region is empty or has NaN bounds")
    return Region(Interval(lower, upper), None, name)


def region_size(value: RegionLike) -> int | None:
    """Number of input entries that a region is about; None for R^n, which fits every network."""
    if value is None:
        return None
    if isinstance(value, Ball):
        return value.centre.numel()
    if isinstance(value, tuple):
        return value[0].numel()
    return (value if isinstance(value, Query) else load_query(value)).inputs


def _cover(query: Query) -> tuple[Tensor, Tensor]:
    """The smallest box around the query's input boxes."""
    covers = [g.box.cover for g in query.groups if not g.box.empty]
    if not covers:
        raise UsageError("every input box of the query is empty: there is nothing to bound")
    lower = torch.stack([torch.from_numpy(c[0]) for c in covers]).amin(0)
    return lower, torch.stack([torch.from_numpy(c[1]) for c in covers]).amax(0)


def _ball(ball: Ball, shape: tuple[int, ...]) -> Region:
    centre = _sized(ball.centre, shape, "the ball's centre has")
    if not ball.radius >= 0.0:
        raise UsageError(f"a ball's radius must be at least 0, not {ball.radius}")
    if not bool(centre.isfinite().all()):
        raise UsageError("the ball's centre has entries that are not finite")
    if ball.radius == 0.0:
        box = Interval(centre, centre)
    else:
        box = Interval(round_down(centre - ball.radius), round_up(centre + ball.radius))
    size = "R^n" if math.isinf(ball.radius) else f"ball of radius {ball.radius:g}"
    return Region(box, Ball(centre, float(ball.radius)), size)


def _sized(values: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    size = int(torch.Size(shape).numel())
    if values.numel() != size:
        raise UsageError(f"{what} {values.numel()} entries, but the network's input has {size}")
    return values.detach().to(torch.float64).reshape(shape)
