"""Fixed inputs folded away: where few coordinates of the input move, linear forms are only about those.

A digit that a network gets beside eight free inputs is 784 coordinates of every row's linear form, and most of the
work of a pass; what it adds to the nodes next to the input is the same for all rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.graph.layers import Graph
from curvverify.numerics.rounding import TINY, gamma, radius_upper
from curvverify.ops.base import Linear
from curvverify.types import Interval

NARROW = 1e-12
"""Coordinates narrower than this share of the widest do not move: decimals that are not float64 numbers have widths."""

SHARE = 0.25
"""Largest share of free coordinates at which the others are folded away."""


@dataclass(frozen=True, eq=False)
class Image:
    """A node next to the input: value +- error (B, *S) with the free coordinates at 0, plus columns (n, *S) times them.

    The columns are those of the operator, up to the roundings that its magnitude accounts for.
    """

    columns: Tensor
    value: Tensor
    error: Tensor

    def to(self, dtype: torch.dtype) -> Image:
        return Image(self.columns.to(dtype), self.value.to(dtype), self.error.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The values (B, R, *S) at free coordinates (B, R, n)."""
        found = x @ self.columns.flatten(1)
        return self.value.unsqueeze(1) + found.reshape(*x.shape[:2], *self.columns.shape[1:])

    def adjoint(self, row: Tensor) -> Tensor:
        """Coefficients (B, R, n) of the free coordinates in rows (B, R, *S)."""
        return row.flatten(2) @ self.columns.flatten(1).mT


@dataclass(frozen=True, eq=False)
class Folded:
    """The n coordinates `free` of the flat input over B boxes (B, n), and the images of all nodes next to the input."""

    free: Tensor
    box: Interval
    images: dict[int, Image]
    shape: tuple[int, ...]
    """S_in"""

    def to(self, dtype: torch.dtype) -> Folded:
        return Folded(self.free, self.box.to(dtype), {i: m.to(dtype) for i, m in self.images.items()}, self.shape)

    def unfolded(self, slope: Tensor) -> Tensor:
        """Coefficients (B, R, n) of the free coordinates as those (B, R, *S_in) of all, 0 at the others."""
        return spread(slope, self.free, self.shape)


def free_coordinates(box: Interval) -> Tensor:
    """The positions (n,) of the flat input's coordinates that move in some of the boxes (B, *S)."""
    width = box.width.flatten(1).amax(0)
    return (width > NARROW * width.max()).nonzero().squeeze(1)


def coordinates(box: Interval, free: Tensor) -> Interval:
    """The boxes (B, n) in those coordinates of the flat input."""
    return Interval(box.lower.flatten(1)[:, free], box.upper.flatten(1)[:, free])


def spread(slope: Tensor, free: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Coefficients (B, R, n) of those coordinates as coefficients (B, R, *shape) of all, 0 at the others."""
    full = slope.new_zeros(*slope.shape[:2], math.prod(shape))
    full[:, :, free] = slope
    return full.reshape(*slope.shape[:2], *shape)


def folded(graph: Graph, box: Interval) -> Folded | None:
    """The float64 network's nodes next to the input over the boxes (B, *S_in); None where folding does not pay.

    Sound because: L x + c = L x_free + (L x_fixed + c), where x_fixed is a point up to its radius, on which |L| acts;
    sums err by at most gamma_n of their absolute terms.
    """
    free, n = free_coordinates(box), graph.nodes[0].size
    nearest = [i for i, node in enumerate(graph.nodes) if 0 in node.inputs]
    alone = all(isinstance(graph.nodes[i].op, Linear) and graph.nodes[i].inputs == (0,) for i in nearest)
    if not alone or len(free) > SHARE * n:
        return None
    fixed = torch.ones(n, dtype=torch.float64).index_fill(0, free, 0.0).reshape(graph.input_shape)
    centre, radius = box.centre * fixed, radius_upper(box) * fixed
    units = torch.zeros(len(free), n, dtype=torch.float64).scatter_(1, free.unsqueeze(1), 1.0)
    images = {}
    for i in nearest:
        op = graph.nodes[i].op
        assert isinstance(op, Linear)
        unit = gamma(op.terms + 16)
        error = op.absolute(radius + unit * (centre.abs() + radius), bias=False) + unit * op.absolute(centre.abs())
        columns = op.forward(units.reshape(-1, *graph.input_shape), bias=False)
        images[i] = Image(columns, op.forward(centre), (1.0 + 2.0 * unit) * error + TINY)
    return Folded(free, coordinates(box, free), images, graph.input_shape)
