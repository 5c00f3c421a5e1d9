"""Loop transformation on any graph: every nonlinear node is its centre slope plus a remainder.

A nonlinear node a = sigma(z) with slopes in [c - r, c + r] is a = c z + rho(z), |rho'| <= r.  With all centre slopes in
place the network is linear, and the value of node v is

    v = M_v0 x + sum_j M_vj rho_j(z_j),

where M_vj is the linear network's map from the output of nonlinear node j to v.  Hence, with residual joins kept whole,

    L_v <= ||M_v0|| + sum_j ||M_vj diag(r_j)|| L_zj.

For a plain network this is LipLT (Fazlyab et al., NeurIPS 2023), for one residual block the loop transformation.  A
product u v has the two slopes v and u, a block (softmax, normalisation) centre 0 and its own Lipschitz constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from curvverify.bounding.constants.linearised import Map, Slot, push, slots_and_centres
from curvverify.bounding.constants.setting import Setting
from curvverify.bounding.constants.values import Constants, largest, length, plus, scaled, times, total
from curvverify.numerics.norms import (
    matrix_column_norms_upper,
    matrix_infinity_norm_upper,
    matrix_norm_upper,
    matrix_row_norms_upper,
    matrix_weighted_norm_upper,
)
from curvverify.numerics.norms.scaling import enlarge
from curvverify.numerics.rounding import gamma, round_up

ENTRIES = 2**25
"""Largest number of entries of all matrices M_vj together; networks with more are bounded operator by operator."""

SIDE = 2048
"""Largest shorter side of one of them."""


@dataclass(frozen=True)
class Side:
    """The radii of one slot of a source as weights, or their roots."""

    source: int
    slot: int
    root: bool = False


@dataclass(frozen=True, eq=False)
class Leg:
    """||M d(remainder)|| <= ||M diag(weights)|| factor."""

    side: Side
    weights: Tensor
    factor: float


@dataclass(eq=False)
class CentredMaps:
    """The matrices M_vj of one setting, and the bounds that follow from them."""

    setting: Setting
    targets: tuple[int, ...]
    sources: tuple[int, ...]
    """Nonlinear nodes that are no part of a block, and the outputs of blocks; 0, the input, is no member."""
    slots: dict[int, tuple[Slot, ...]]
    maps: dict[tuple[int, int], Map]
    """By (target, source), source 0 included; absent where M_vj = 0, though v may depend on j through a block."""
    _norms: dict[tuple[int, int, Side | None, Side | None], float] = field(default_factory=dict)
    _gains: dict[tuple[int, int], float] = field(default_factory=dict)
    _root_gains: dict[tuple[Side, int], float] = field(default_factory=dict)
    _weighted: dict[tuple[int, int], float] = field(default_factory=dict)

    @classmethod
    def build(cls, setting: Setting, targets: tuple[int, ...]) -> CentredMaps | None:
        """None where the matrices would be too large."""
        graph, opaque = setting.graph, setting.opaque
        targets = tuple(v for v in targets if v not in opaque)
        if not targets:
            return None
        last = max(targets)
        sources = tuple(
            j
            for j, node in enumerate(graph.nodes[: last + 1])
            if j not in opaque and (node.nonlinear or j in setting.structure.blocks)
        )
        size = [node.size for node in graph.nodes]
        pairs = [(v, j) for v in targets for j in (0, *sources) if j in graph.ancestors[v]]
        if sum(size[v] * size[j] for v, j in pairs) > ENTRIES:
            return None
        if any(min(size[v], size[j]) > SIDE for v, j in pairs):
            return None
        slots, centres = slots_and_centres(setting, sources)
        maps: dict[tuple[int, int], Map] = {}
        for j in (0, *sources):
            maps |= push(setting, centres, j, targets)
        return cls(setting, targets, sources, slots, maps)

    # -- norms -----------------------------------------------------------------------------------------------------

    def sources_of(self, v: int) -> list[int]:
        """The nonlinear sources that the target depends on, in order."""
        return [j for j in self.sources if j in self._ancestors[v]]

    @cached_property
    def _ancestors(self) -> dict[int, frozenset[int]]:
        return {v: frozenset(self.setting.graph.ancestors[v]) for v in self.targets}

    def direct(self, v: int) -> float:
        """Upper bound on ||M_v0|| from the input's norm to l_2; 0 where v does not depend on the input linearly."""
        key = (v, 0, None, None)
        if key not in self._norms:
            found = self.maps.get((v, 0))
            if found is None:
                self._norms[key] = 0.0
            elif self.setting.norm == 2.0:
                self._norms[key] = float(matrix_norm_upper(found.matrix, found.error))
            else:
                spectral = times(float(matrix_norm_upper(found.matrix, found.error)), self.setting.equivalence)
                self._norms[key] = min(spectral, length(self._direct_rows(v)))
        return self._norms[key]

    def _direct_rows(self, v: int) -> Tensor:
        """Upper bounds (size_v) on the dual norm of the rows of M_v0."""
        found = self.maps.get((v, 0))
        if found is None:
            return torch.zeros(self.setting.graph.nodes[v].size, dtype=torch.float64)
        if self.setting.norm == 2.0:
            return round_up(matrix_row_norms_upper(found.matrix) + found.row_error)
        sums = matrix_infinity_norm_upper(found.matrix.unsqueeze(1))
        return round_up(sums + scaled(found.row_error, self.setting.equivalence))

    def norm(self, v: int, j: int, right: Side | None = None, left: Side | None = None) -> float:
        """Upper bound on ||diag(left) M_vj diag(right)||; None means ones."""
        key = (v, j, right, left)
        if key not in self._norms:
            self._norms[key] = self._norm(v, j, self._weights(right), self._weights(left))
        return self._norms[key]

    def _norm(self, v: int, j: int, right: Tensor | None, left: Tensor | None) -> float:
        found = self.maps.get((v, j))
        if found is None:
            return 0.0
        if left is None and right is None:
            return float(matrix_norm_upper(found.matrix, found.error))
        if left is None and right is not None and bool((right == right[0]).all()):
            return times(float(right[0]), self.norm(v, j))
        bound = float(matrix_weighted_norm_upper(found.matrix, left=left, right=right))
        sizes = [largest(w) for w in (left, right) if w is not None]
        return plus(bound, times(found.error, *sizes))

    def _weights(self, side: Side | None) -> Tensor | None:
        if side is None:
            return None
        slot = self.slots[side.source][side.slot]
        return slot.root if side.root else slot.radius

    def _legs(self, j: int, known: dict[int, Constants]) -> list[list[Leg]]:
        """For every slot of a source, one or two ways to bound M d(remainder): ||M diag(w)|| times a factor."""
        found = []
        for number, slot in enumerate(self.slots[j]):
            L = times(slot.lipschitz, known[slot.input].lipschitz.value)
            legs = [Leg(Side(j, number), slot.radius, L)]
            if slot.root is not None and slot.input in self.targets:
                if (j, number) not in self._weighted:
                    self._weighted[j, number] = float(self.weighted(slot.input, slot.root.unsqueeze(0), known)[0])
                legs.append(Leg(Side(j, number, root=True), slot.root, self._weighted[j, number]))
            found.append(legs)
        return found

    # -- first order -----------------------------------------------------------------------------------------------

    def lipschitz(self, v: int, known: dict[int, Constants]) -> tuple[float, Tensor]:
        """(L, l): upper bounds for a target and its entries (*S), from those of the inputs of its sources."""
        rows = self._direct_rows(v)
        for j in self.sources_of(v):
            found = self.maps.get((v, j))
            if found is None:
                continue
            for slot, legs in zip(self.slots[j], self._legs(j, known), strict=True):
                part = _least_leg(found.matrix, found.row_error, legs)
                spread = scaled(slot.radius, known[slot.input].entries.lipschitz.flatten())
                if slot.lipschitz == 1.0 and bool(spread.isfinite().all()):
                    by_entry = enlarge(found.matrix.abs() @ spread, gamma(len(spread) + 8))
                    part = torch.minimum(part, total(by_entry, scaled(found.row_error, length(spread))))
                rows = total(rows, part)
        return plus(self.direct(v), self.remainder(v, known)), rows.reshape(self.setting.graph.nodes[v].shape)

    def remainder(self, v: int, known: dict[int, Constants]) -> float:
        """Upper bound on sup ||Dv - M_v0||."""
        amount = 0.0
        for j in self.sources_of(v):
            if (v, j) in self.maps:
                for legs in self._legs(j, known):
                    amount = plus(amount, min(times(self.norm(v, j, leg.side), leg.factor) for leg in legs))
        return amount

    def weighted(self, v: int, weights: Tensor, known: dict[int, Constants]) -> Tensor:
        """Upper bounds (R) on sup ||diag(w) Dv||, one for each of the weights (R, size_v)."""
        bound = torch.zeros(len(weights), dtype=torch.float64)
        top = weights.amax(1)
        direct = self.maps.get((v, 0))
        if direct is not None:
            norms = matrix_weighted_norm_upper(direct.matrix.unsqueeze(0), left=weights)
            norms = scaled(round_up(norms + scaled(top, direct.error)), self.setting.equivalence)
            if self.setting.norm != 2.0:
                rows = enlarge(
                    (scaled(weights, self._direct_rows(v))).square().sum(1).sqrt(), gamma(weights.shape[1] + 8)
                )
                norms = torch.minimum(norms, rows)
            bound = norms
        for j in self.sources_of(v):
            found = self.maps.get((v, j))
            if found is None:
                continue
            for legs in self._legs(j, known):
                best = min(legs, key=lambda leg: times(self.norm(v, j, leg.side), leg.factor))
                wide = best.weights.expand(len(weights), -1)
                norms = matrix_weighted_norm_upper(found.matrix.unsqueeze(0), left=weights, right=wide)
                error = scaled(top, found.error, largest(best.weights))
                bound = total(bound, scaled(round_up(norms + error), best.factor))
        return bound

    # -- from a source to a target ---------------------------------------------------------------------------------

    def gain(self, v: int, j: int) -> float:
        """Upper bound on the Lipschitz constant of the map from the output of source j, if it were free, to v."""
        if j not in self.sources_of(v):
            return 0.0
        if (v, j) not in self._gains:
            self._gains[v, j] = self._gain(v, j, None)
        return self._gains[v, j]

    def _root_gain(self, side: Side, j: int) -> float:
        """The same to diag(root) z, z the input of a slot."""
        key = (side, j)
        if key not in self._root_gains:
            z = self.slots[side.source][side.slot].input
            self._root_gains[key] = self._gain(z, j, side) if j in self.sources_of(z) else 0.0
        return self._root_gains[key]

    def _gain_legs(self, k: int, j: int) -> list[list[Leg]]:
        """`_legs` of source k for what comes from source j instead of the input."""
        found = []
        for number, slot in enumerate(self.slots[k]):
            legs = [Leg(Side(k, number), slot.radius, times(slot.lipschitz, self.gain(slot.input, j)))]
            if slot.root is not None and slot.input in self.targets and legs[0].factor:
                side = Side(k, number, root=True)
                legs.append(Leg(side, slot.root, self._root_gain(side, j)))
            found.append(legs)
        return found

    def _gain(self, v: int, j: int, left: Side | None) -> float:
        bound = self.norm(v, j, left=left)
        for k in self.sources_of(v):
            if k > j and (v, k) in self.maps:
                for legs in self._gain_legs(k, j):
                    bound = plus(bound, min(times(self.norm(v, k, leg.side, left), leg.factor) for leg in legs))
        return bound

    def _combined(self, v: int, j: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows M_vj for rows (R, size_v), and bounds (R) on the l_2 norms of its errors."""
        found = self.maps.get((v, j))
        if found is None:
            size = self.setting.scale.numel() if j == 0 else self.setting.graph.nodes[j].size
            return torch.zeros(len(rows), size, dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
        weight = enlarge(rows.abs() @ found.row_error, gamma(rows.shape[1] + 8))
        sizes = enlarge(rows.abs() @ matrix_row_norms_upper(found.matrix), gamma(rows.shape[1] + 8))
        return rows @ found.matrix, total(weight, scaled(sizes, gamma(rows.shape[1] + 8)))

    def row_gains(self, v: int, j: int, rows: Tensor) -> Tensor:
        """Upper bounds (R) on the Lipschitz constant from the output of source j to rows (R, size_v) of v."""
        if j not in self.sources_of(v):
            return torch.zeros(len(rows), dtype=torch.float64)
        matrix, error = self._combined(v, j, rows)
        bound = round_up(matrix_row_norms_upper(matrix) + error)
        for k in self.sources_of(v):
            if k > j:
                matrix, error = self._combined(v, k, rows)
                for legs in self._gain_legs(k, j):
                    bound = total(bound, _least_leg(matrix, error, legs))
        return bound

    def row_lipschitz(self, v: int, rows: Tensor, known: dict[int, Constants]) -> Tensor:
        """Upper bounds (R) on the Lipschitz constants of rows (R, size_v) of v, in the input's norm."""
        bound = torch.zeros(len(rows), dtype=torch.float64)
        if (v, 0) in self.maps:
            matrix, error = self._combined(v, 0, rows)
            if self.setting.norm == 2.0:
                bound = round_up(matrix_row_norms_upper(matrix) + error)
            else:
                sums = enlarge(matrix.abs().sum(1), gamma(matrix.shape[1] + 8))
                bound = round_up(sums + scaled(error, self.setting.equivalence))
        for j in self.sources_of(v):
            matrix, error = self._combined(v, j, rows)
            for legs in self._legs(j, known):
                bound = total(bound, _least_leg(matrix, error, legs))
        return bound

    def column_gains(self, v: int, j: int) -> Tensor:
        """Upper bounds (size_j) on the Lipschitz constant from every single entry of source j to v."""
        bound = torch.zeros(self.setting.graph.nodes[j].size, dtype=torch.float64)
        if j not in self.sources_of(v):
            return bound
        found = self.maps.get((v, j))
        if found is not None:
            bound = round_up(matrix_column_norms_upper(found.matrix) + found.error)
        for k in self.sources_of(v):
            if k > j and (v, k) in self.maps:
                for number, slot in enumerate(self.slots[k]):
                    gains = self.column_gains(slot.input, j)
                    bound = total(bound, scaled(gains, slot.lipschitz, self.norm(v, k, Side(k, number))))
        return bound

    def affine(self, v: int) -> bool:
        """Whether the target depends on no nonlinear node."""
        return not self.sources_of(v)


def _least_leg(matrix: Tensor, error: Tensor, legs: list[Leg]) -> Tensor:
    """The least, for every row, of ||row diag(weights)|| factor over the legs, the rows being off by `error`."""
    bounds = []
    for leg in legs:
        norms = round_up(_row_norms(matrix, leg.weights) + scaled(error, largest(leg.weights)))
        bounds.append(scaled(norms, leg.factor))
    return torch.stack(bounds).amin(0)


def _row_norms(matrix: Tensor, radius: Tensor) -> Tensor:
    """Upper bounds on the l_2 norms of the rows of M diag(radius)."""
    return enlarge(matrix_row_norms_upper(matrix * radius), gamma(4))
