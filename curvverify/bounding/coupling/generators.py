"""Entries of a node as a centre plus generators: z - z0 = G xi + eps with |xi_i| <= 1.

The generators are the input's coordinates and, behind nonlinear nodes, one remainder per entry of each of those:
sigma(v) = k v + m + rho xi with k the chord's slope.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.coupling.grid import make_grid
from curvverify.bounding.relaxation import Relaxation
from curvverify.bounding.substitution import Rows, Slopes, Substitution
from curvverify.numerics.rounding import TINY, gamma, radius_upper, round_up
from curvverify.ops.base import Elementwise, Lines
from curvverify.ops.elementwise.hinge import Hinge
from curvverify.ops.joint import Joint
from curvverify.ops.product import Planes, Product
from curvverify.types import Interval

CELLS = 16
"""Cells per interval for the strips around chords."""


@dataclass(frozen=True, eq=False)
class Generators:
    """z_k = centre_k + sum_i columns_ki xi_i + eps_k with |eps_k| <= error_k, for n entries and each of B boxes.

    xi is in the unit box, and its first `round` entries are together in the unit l_2 ball; with several nodes'
    entries, they share it.
    """

    centre: Tensor
    error: Tensor
    """(B, n)"""
    columns: Tensor
    """(B, n, N)"""
    round: int = 0

    def without_empty(self) -> Generators:
        """Without the columns that are 0."""
        used = self.columns.any(1).any(0)
        return Generators(self.centre, self.error, self.columns[:, :, used], int(used[: self.round].sum()))


@dataclass(frozen=True, eq=False)
class Strip:
    """|value - (slope . arguments + middle)| <= radius, entry by entry, (B, *S)."""

    slopes: tuple[Tensor, ...]
    middle: Tensor
    radius: Tensor


def elementwise_strip(op: Elementwise, x: Interval, image: Interval) -> Strip:
    """The strip around the chord; constant where the interval is infinite.

    Sound because: a function with kinks is off its chord by its bow, and 20 roundings; for others sigma(v) - k v is at
    the grid points within their enclosures and 20 roundings, and in between it leaves the range of its neighbours by no
    more than sigma sags below or rises above its chords.
    """
    usable = (x.magnitude <= 1e100) & (image.width < torch.inf)
    x = Interval(torch.where(usable, x.lower, 0.0), torch.where(usable, x.upper, 0.0))
    several = op.straight and not isinstance(op, Hinge)  # kinks; the grid has a point at a hinge's only one
    slope, low, high = (_around_bow if several else _around_grid)(op, x)
    usable = usable & low.isfinite() & high.isfinite() & (high - low < image.width)
    slope = torch.where(usable, slope, 0.0)
    return _strip((slope,), torch.where(usable, low, image.lower), torch.where(usable, high, image.upper))


def _around_bow(op: Elementwise, x: Interval) -> tuple[Tensor, Tensor, Tensor]:
    """The chord's slope, and bounds on sigma less its linear part."""
    first, last = (op.interval(Interval(end, end)) for end in (x.lower, x.upper))
    slope = ((last.centre - first.centre) / x.width.clamp(min=1e-30)).nan_to_num(0.0, 0.0, 0.0)
    bow, tilts = op.bow(x), (slope * x.lower, slope * x.upper)
    slack = 2.0**-48 * (first.magnitude + last.magnitude + tilts[0].abs() + tilts[1].abs()) + TINY
    low = torch.minimum(first.lower - tilts[0], last.lower - tilts[1]) + bow.lower - slack
    high = torch.maximum(first.upper - tilts[0], last.upper - tilts[1]) + bow.upper + slack
    return slope, low, high


def _around_grid(op: Elementwise, x: Interval) -> tuple[Tensor, Tensor, Tensor]:
    """The same from a grid, for functions that bend."""
    grid = make_grid(op, x, CELLS)
    width = (x.upper - x.lower).clamp(min=1e-30)
    slope = ((grid.value.lower[..., -1] - grid.value.lower[..., 0]) / width).nan_to_num(0.0, 0.0, 0.0)
    tilt = slope.unsqueeze(-1) * grid.points
    slack = 2.0**-48 * (grid.value.magnitude + tilt.abs()).amax(-1) + TINY
    low = (grid.value.lower - tilt).amin(-1) - grid.sag(1).amax(-1) - slack
    high = (grid.value.upper - tilt).amax(-1) + grid.sag(-1).amax(-1) + slack
    return slope, low, high


def node_strip(relaxation: Relaxation, position: int) -> Strip:
    """The strip around a function of one variable, or around a product, on the relaxation's boxes."""
    node, intervals = relaxation.graph.nodes[position], relaxation.intervals
    inputs = [intervals[i] for i in node.inputs]
    if isinstance(node.op, Product):
        return product_strip(*inputs)
    assert isinstance(node.op, Elementwise)
    return elementwise_strip(node.op, inputs[0], intervals[position])


def product_strip(u: Interval, v: Interval) -> Strip:
    """The strip around the tangent plane at the centre: u v = v0 u + u0 v - u0 v0 + (u - u0)(v - v0)."""
    at_u, at_v = u.centre, v.centre
    radius_u, radius_v = (radius_upper(x) for x in (u, v))
    radius, middle = round_up(radius_u * radius_v), -at_u * at_v
    strip = _strip((at_v, at_u), middle - radius, middle + radius)
    return Strip(strip.slopes, strip.middle, strip.radius + 2.0**-50 * middle.abs())


def _strip(slopes: tuple[Tensor, ...], low: Tensor, high: Tensor) -> Strip:
    middle = 0.5 * (low + high)
    return Strip(slopes, middle, round_up(torch.maximum(high - middle, middle - low)))


class _Strips(Substitution):
    """A backward pass that follows the middles of the strips and keeps the rows at every nonlinear node."""

    def __init__(self, relaxation: Relaxation, node: int, rows: Rows, strips: dict[int, Strip]):
        super().__init__(relaxation, node, rows, torch.float64)
        self.strips = strips
        self.remainders: dict[int, Tensor] = {}

    def _lines(self, position: int, row: Tensor, smoothing: float) -> Lines | Planes | Slopes:
        node = self.graph.nodes[position]
        if isinstance(node.op, Joint):
            tangent = self.relaxation.tangent(position, self.dtype)
            self.remainders[position] = torch.where(row == 0, 0.0, row * tangent.radius.unsqueeze(1))
            return Slopes(tangent, tangent.middle.unsqueeze(1).expand_as(row))
        if position not in self.strips:
            self.strips[position] = node_strip(self.relaxation, position)
        strip = self.strips[position]
        self.remainders[position] = torch.where(row == 0, 0.0, row * strip.radius.unsqueeze(1))
        slopes = [s.unsqueeze(1).expand_as(row) for s in strip.slopes]
        middle = strip.middle.unsqueeze(1).expand_as(row)
        return Planes(slopes[0], slopes[1], middle) if isinstance(node.op, Product) else Lines(slopes[0], middle)


def node_generators(
    relaxation: Relaxation, node: int, entries: Tensor, strips: dict[int, Strip]
) -> tuple[Generators, dict[int, Tensor]]:
    """The generators of the entries (B, n) of a node: those of the input, and the columns of each nonlinear node.

    Sound because: the backward pass' slack covers what its linear form may be wrong by on the whole box, with the
    remainders as further terms; what is added covers the roundings of centre and columns.
    """
    graph, box, balls = relaxation.graph, relaxation.box, relaxation.balls
    rows = torch.zeros(*entries.shape, graph.nodes[node].size, dtype=torch.float64)
    rows.scatter_(2, entries.unsqueeze(2), 1.0)
    substitution = _Strips(relaxation, node, Rows(rows.reshape(*entries.shape, *graph.nodes[node].shape)), strips)
    trace = substitution.backward(0.0, rigorous=True)
    slope = trace.form.flatten(2)
    if balls is None:
        middle = box.centre.flatten(1).unsqueeze(1)
        radius = radius_upper(box).flatten(1).unsqueeze(1)
    else:
        middle, radius = balls.centre.unsqueeze(1), balls.radius.reshape(-1, 1, 1)
    columns = slope * radius
    remainders = {i: x.flatten(2) for i, x in substitution.remainders.items()}
    largest = torch.maximum(box.magnitude.flatten(1).unsqueeze(1), middle.abs())
    size = (slope.abs() * largest).sum(2) + trace.constant.abs() + columns.abs().sum(2)
    size = size + sum((x.abs().sum(2) for x in remainders.values()), torch.zeros_like(size))
    error = 1.01 * (trace.slack + gamma(slope.shape[2] + 16) * size) + TINY
    centre = (slope * middle).sum(2) + trace.constant
    return Generators(centre, error, columns, 0 if balls is None else slope.shape[2]), remainders


def row_remainders(relaxation: Relaxation, node: int, rows: Rows, strips: dict[int, Strip]) -> dict[int, Tensor]:
    """By nonlinear node, how much (B, R, *S) of a row's value its entries' remainders may take either way."""
    substitution = _Strips(relaxation, node, rows, strips)
    substitution.backward(0.0, rigorous=False)
    return substitution.remainders


def stacked(parts: list[tuple[Generators, dict[int, Tensor]]]) -> Generators:
    """The entries of several nodes over one set of generators."""
    nodes = sorted({i for _, remainders in parts for i in remainders})
    sizes = {i: x.shape[2] for _, remainders in parts for i, x in remainders.items()}
    columns = []
    for found, remainders in parts:
        zeros = {i: found.centre.new_zeros(*found.centre.shape, sizes[i]) for i in nodes if i not in remainders}
        columns.append(torch.cat([found.columns, *(remainders.get(i, zeros.get(i)) for i in nodes)], 2))  # type: ignore[arg-type]
    centre, error = (torch.cat(x, 1) for x in ([g.centre for g, _ in parts], [g.error for g, _ in parts]))
    return Generators(centre, error, torch.cat(columns, 1), parts[0][0].round)
