"""Constants anchored at a point x: sup over y in the region of ||f(y) - f(x)|| / ||y - x||, and the same for Df.

With F_vj(y) the derivative of v by the output of nonlinear node j at y, the difference of two Jacobians is exactly

    Dv(y) - Dv(x) = sum_j F_vj(y) diag(sigma_j'(z_j(y)) - sigma_j'(z_j(x))) Dz_j(x),

in which one of three factors, Dz_j(x), is the Jacobian at the known point instead of a Lipschitz constant, and
|sigma'(z(y)) - sigma'(z(x))| <= beta' |z(y) - z(x)| with beta' the steepest secant of sigma' from z(x).

Source: Entesari, Sharifi and Fazlyab, ICML 2024, section 3.3; the exact factor, used for all layers at once, is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvverify.bounding.constants.analysis import Analysis, analyse
from curvverify.bounding.constants.gradients import derivatives
from curvverify.bounding.constants.rules import node_constants
from curvverify.bounding.constants.second_order import weighted_upper
from curvverify.bounding.constants.setting import AnyBlock, slopes_over
from curvverify.bounding.constants.values import (
    UNBOUNDED,
    Bound,
    Constants,
    Entries,
    largest,
    length,
    plus,
    scaled,
    times,
    total,
)
from curvverify.bounding.interval import interval_bounds
from curvverify.numerics.rounding import outward, round_up
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.product import Product
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Anchored:
    """Anchored constants of every node; their third order is inf, because none is defined."""

    nodes: tuple[Constants, ...]
    row_curvature: Tensor | None
    """(R) of every entry of the output on its own, where there are few."""


def anchored_constants(region: Analysis, point: Tensor) -> Anchored:
    """Anchored constants over the region of an analysis, at a point (*S_in) in it."""
    passes = _Passes.of(region, point)
    graph = region.setting.graph
    found: dict[int, Constants] = {}
    for v in range(len(graph)):
        rule = _rule(passes, v, [found[i] for i in graph.nodes[v].inputs])
        for blocks in (region.setting.structure.blocks, region.setting.structure.skips):
            if v in blocks:
                rule = rule.least(_block(passes, blocks[v], found[blocks[v].input], graph.nodes[v].shape))
        if region.maps is not None and v in region.maps.targets and v:
            rule = replace(rule, curvature=rule.curvature.least(_layered(passes, v)))
        found[v] = replace(rule.least(region.nodes[v]), third_order=UNBOUNDED).consistent()
    rows = None
    if region.rows is not None:
        rows = _rows(passes, region.rows.curvature)
        last = found[graph.output]
        e = last.entries
        by_rows = Bound(length(rows), "anchored, rows")
        entries = Entries(e.lipschitz, torch.minimum(e.curvature, rows.reshape(e.curvature.shape)), e.third_order)
        found[graph.output] = replace(last, curvature=last.curvature.least(by_rows), entries=entries).consistent()
    return Anchored(tuple(found[v] for v in range(len(graph))), rows)


@dataclass(frozen=True, eq=False)
class _Passes:
    """The three analyses that an anchored constant is made of, and the secants of sigma' from the point."""

    region: Analysis
    point: Analysis
    """At the point alone: its Lipschitz constants are norms of Jacobians."""
    secant: Analysis
    """With slopes of secants from the point: its Lipschitz constants are anchored."""
    steep: dict[int, Tensor]
    """beta' (*S) for every elementwise node."""
    _bends: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, region: Analysis, x: Tensor) -> _Passes:
        setting = region.setting
        graph = setting.graph
        at = tuple(v[0] for v in interval_bounds(graph, Interval(x.unsqueeze(0), x.unsqueeze(0))))
        here = replace(setting, ranges=at, slopes=slopes_over(graph, at))
        slopes: list[tuple[Interval, ...]] = []
        steep: dict[int, Tensor] = {}
        for i, node in enumerate(graph.nodes):
            if isinstance(node.op, Elementwise):
                z = node.inputs[0]
                slopes.append((_secant(node.op, 1, at[z], setting.ranges[z]),))
                steep[i] = _secant(node.op, 2, at[z], setting.ranges[z]).magnitude
            elif isinstance(node.op, Product):
                u, v = node.inputs
                slopes.append((at[v], setting.ranges[u]))
            else:
                slopes.append(())
        secant = replace(setting, slopes=tuple(slopes))
        return cls(region, analyse(here, second_order=False), analyse(secant, second_order=False), steep)

    def jacobian(self, v: int) -> Constants:
        return self.point.nodes[v]

    def difference(self, v: int) -> Constants:
        return self.secant.nodes[v]

    def bend(self, j: int) -> float:
        """Upper bound on ||diag(sigma'(z(y)) - sigma'(z(x))) Dz(x)|| / ||y - x||, for blocks and products alike."""
        if j not in self._bends:
            self._bends[j] = self._bend(j)
        return self._bends[j]

    def _bend(self, j: int) -> float:
        setting = self.region.setting
        node = setting.graph.nodes[j]
        block = setting.structure.blocks.get(j)
        if block is not None:
            i = block.input
            return times(block.curvature, self.difference(i).lipschitz.value, self.jacobian(i).lipschitz.value)
        if isinstance(node.op, Product):
            u, v = node.inputs
            return plus(self._cross(u, v), self._cross(v, u))
        (z,) = node.inputs
        J, d, steep = self.jacobian(z), self.difference(z), self.steep[j]
        weight = scaled(steep, d.entries.lipschitz)
        bound = min(
            times(d.lipschitz.value, largest(scaled(steep, J.entries.lipschitz))),
            times(largest(weight), J.lipschitz.value),
        )
        if bool(weight.isfinite().all()):
            bound = min(bound, float(self.weighted_jacobian(z, weight.reshape(1, -1))[0]))
        return bound

    def _cross(self, u: int, v: int) -> float:
        """Upper bound on ||diag(u(y) - u(x)) Dv(x)|| / ||y - x||."""
        d, J = self.difference(u), self.jacobian(v)
        return min(
            times(d.lipschitz.value, largest(J.entries.lipschitz)),
            times(largest(d.entries.lipschitz), J.lipschitz.value),
        )

    def weighted_jacobian(self, z: int, weights: Tensor) -> Tensor:
        """Upper bounds (R) on ||diag(w) Dz(x)||."""
        return weighted_upper(self.point.setting, self.point.bends.known, self.point.maps, z, weights)


def _secant(op: Elementwise, order: int, at: Interval, region: Interval) -> Interval:
    """Secants of sigma^(order - 1) over the region from every point of the narrow interval `at`.

    Sound because: a secant's slope changes by at most sup|sigma^(order + 1)| / 2 per unit that its fixed end moves.
    """
    whole = op.derivative(order, region)
    middle = at.centre.clamp(region.lower, region.upper)
    error = round_up(torch.maximum(at.upper - middle, middle - at.lower))
    error = torch.where(at.lower == at.upper, 0.0, error)
    pad = scaled(op.derivative(order + 1, region).magnitude, error)
    found = op.secant(order, middle, region)
    found = outward(found.lower - pad, found.upper + pad)
    return Interval(
        torch.where(found.lower > whole.lower, found.lower, whole.lower),
        torch.where(found.upper < whole.upper, found.upper, whole.upper),
    )


def _rule(passes: _Passes, v: int, inputs: list[Constants]) -> Constants:
    """One node from its inputs: the curvature anchored, the Lipschitz constant from the pass with secants."""
    setting = passes.region.setting
    op = setting.graph.nodes[v].op
    d = passes.difference(v)
    unknown = torch.full(setting.graph.nodes[v].shape, torch.inf, dtype=torch.float64)
    if isinstance(op, Linear):
        image = node_constants(setting, v, inputs)
        return _constants(d, image.curvature.value, image.entries.curvature, unknown)
    if isinstance(op, Elementwise):
        (x,) = inputs
        (z,) = setting.graph.nodes[v].inputs
        slope = setting.slopes[v][0].magnitude
        bend = scaled(passes.steep[v], passes.difference(z).entries.lipschitz, passes.jacobian(z).entries.lipschitz)
        curved = total(scaled(slope, x.entries.curvature), bend)
        return _constants(d, plus(times(largest(slope), x.curvature.value), passes.bend(v)), curved, unknown)
    if isinstance(op, Product):
        u, w = setting.graph.nodes[v].inputs
        of_u, of_w = (s.magnitude for s in setting.slopes[v])
        straight = [times(largest(s), c.curvature.value) for s, c in zip((of_u, of_w), inputs, strict=True)]
        curved = total(
            scaled(of_u, inputs[0].entries.curvature),
            scaled(of_w, inputs[1].entries.curvature),
            scaled(passes.difference(u).entries.lipschitz, passes.jacobian(w).entries.lipschitz),
            scaled(passes.difference(w).entries.lipschitz, passes.jacobian(u).entries.lipschitz),
        )
        return _constants(d, plus(*straight, passes.bend(v)), curved, unknown)
    zero = torch.zeros_like(unknown)
    return Constants(d.lipschitz, Bound(0.0, "affine"), UNBOUNDED, Entries(d.entries.lipschitz, zero, unknown))


def _constants(d: Constants, curvature: float, entries: Tensor, unknown: Tensor) -> Constants:
    formula = Bound(curvature, "anchored")
    return Constants(d.lipschitz, formula, UNBOUNDED, Entries(d.entries.lipschitz, entries, unknown))


def _block(passes: _Passes, block: AnyBlock, inputs: Constants, shape: tuple[int, ...]) -> Constants:
    i = block.input
    moved = times(passes.difference(i).lipschitz.value, passes.jacobian(i).lipschitz.value)
    inf = torch.full(shape, math.inf, dtype=torch.float64)
    curvature = plus(times(block.lipschitz, inputs.curvature.value), times(block.curvature, moved))
    return Constants(UNBOUNDED, Bound(curvature, "anchored block"), UNBOUNDED, Entries(inf, inf, inf))


def _layered(passes: _Passes, v: int) -> Bound:
    """sum_j ||F_vj|| times the bend of j, by gains over the region."""
    maps = passes.region.maps
    assert maps is not None
    amount = 0.0
    for j in maps.sources_of(v):
        term = times(maps.gain(v, j), passes.bend(j))
        if j in passes.steep:
            (z,) = passes.region.setting.graph.nodes[j].inputs
            weight = scaled(passes.steep[j].flatten(), maps.column_gains(v, j))
            if bool(weight.isfinite().all()):
                jacobian = float(passes.weighted_jacobian(z, weight.reshape(1, -1))[0])
                term = min(term, times(jacobian, passes.difference(z).lipschitz.value))
        amount = plus(amount, term)
    return Bound(amount, "anchored, layered")


def _rows(passes: _Passes, regional: Tensor) -> Tensor:
    """Upper bounds (R) on the anchored curvature of every entry of the output."""
    setting = passes.region.setting
    graph = setting.graph
    unit = torch.eye(graph.nodes[graph.output].size, dtype=torch.float64).reshape(-1, *graph.output_shape)
    backward = derivatives(setting, unit, passes.region.maps)
    amount = torch.zeros(len(unit), dtype=torch.float64)
    for j, F in backward.ranges.items():
        if not graph.nodes[j].nonlinear and j not in setting.structure.blocks:
            continue
        term = scaled(backward.norms[j], passes.bend(j))
        if j in passes.steep and j not in setting.structure.blocks:
            (z,) = graph.nodes[j].inputs
            weight = scaled(F.magnitude.flatten(1), passes.steep[j].flatten())
            if bool(weight.isfinite().all()):
                jacobian = passes.weighted_jacobian(z, weight)
                term = torch.minimum(term, scaled(jacobian, passes.difference(z).lipschitz.value))
        amount = total(amount, term)
    return torch.minimum(amount, regional)
