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

from curvverify.bounding.constants.setting import Setting
from curvverify.bounding.constants.values import Constants, largest, length, plus, scaled, times, total
from curvverify.graph.layers import Node
from curvverify.numerics.norms import (
    matrix_column_norms_upper,
    matrix_infinity_norm_upper,
    matrix_norm_upper,
    matrix_row_norms_upper,
    matrix_weighted_norm_upper,
)
from curvverify.numerics.norms.scaling import enlarge
from curvverify.numerics.rounding import gamma, round_up
from curvverify.ops.base import Linear

ENTRIES = 2**25
"""Largest number of entries of all matrices M_vj together; networks with more are bounded operator by operator."""

SIDE = 2048
"""Largest shorter side of one of them."""


@dataclass(frozen=True, eq=False)
class Map:
    """M (size_v, size_j) in float64, and for every row a bound (size_v) on the l_2 norm of its error."""

    matrix: Tensor
    row_error: Tensor

    @property
    def error(self) -> float:
        """Bound on the error's spectral norm."""
        return length(self.row_error)


@dataclass(frozen=True, eq=False)
class Slot:
    """One input of a source: its remainder is diag(d) D(input), |d| <= radius; or a block, of slope `lipschitz`."""

    input: int
    radius: Tensor
    """(size_j)."""
    lipschitz: float = 1.0


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
    _norms: dict[tuple[int, int, int], float] = field(default_factory=dict)
    _gains: dict[tuple[int, int], float] = field(default_factory=dict)

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
        slots, centres = _slots(setting, sources)
        maps: dict[tuple[int, int], Map] = {}
        for j in (0, *sources):
            maps |= _push(setting, centres, j, targets)
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
        key = (v, 0, -1)
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

    def norm(self, v: int, j: int, slot: int = -1) -> float:
        """Upper bound on ||M_vj diag(radius of the slot)||; slot -1 stands for radius 1."""
        key = (v, j, slot)
        if key not in self._norms:
            found = self.maps.get((v, j))
            radius = None if slot < 0 else self.slots[j][slot].radius
            if found is None:
                self._norms[key] = 0.0
            elif radius is None:
                self._norms[key] = float(matrix_norm_upper(found.matrix, found.error))
            elif bool((radius == radius[0]).all()):
                self._norms[key] = times(float(radius[0]), self.norm(v, j)) if float(radius[0]) else 0.0
            else:
                bound = float(matrix_weighted_norm_upper(found.matrix, right=radius))
                self._norms[key] = plus(bound, times(found.error, largest(radius)))
        return self._norms[key]

    # -- first order -----------------------------------------------------------------------------------------------

    def lipschitz(self, v: int, known: dict[int, Constants]) -> tuple[float, Tensor]:
        """(L, l): upper bounds for a target and its entries (*S), from those of the inputs of its sources."""
        whole, rows = self.direct(v), self._direct_rows(v)
        for j in self.sources_of(v):
            found = self.maps.get((v, j))
            if found is None:
                continue
            for number, slot in enumerate(self.slots[j]):
                inner = known[slot.input]
                L = times(slot.lipschitz, inner.lipschitz.value)
                whole = plus(whole, times(self.norm(v, j, number), L))
                error = scaled(found.row_error, largest(slot.radius), L)
                by_norm = scaled(_row_norms(found.matrix, slot.radius), L)
                if slot.lipschitz == 1.0:
                    spread = scaled(slot.radius, inner.entries.lipschitz.flatten())
                    if bool(spread.isfinite().all()):
                        by_entry = enlarge(found.matrix.abs() @ spread, gamma(len(spread) + 8))
                        by_norm = torch.minimum(by_norm, by_entry)
                rows = total(rows, by_norm, error)
        return whole, rows.reshape(self.setting.graph.nodes[v].shape)

    def remainder(self, v: int, known: dict[int, Constants]) -> float:
        """Upper bound on sup ||Dv - M_v0||."""
        amount = 0.0
        for j in self.sources_of(v):
            for number, slot in enumerate(self.slots[j]):
                inner = times(slot.lipschitz, known[slot.input].lipschitz.value)
                amount = plus(amount, times(self.norm(v, j, number), inner))
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
            for slot in self.slots[j]:
                L = times(slot.lipschitz, known[slot.input].lipschitz.value)
                right = slot.radius.expand(len(weights), -1)
                norms = matrix_weighted_norm_upper(found.matrix.unsqueeze(0), left=weights, right=right)
                error = scaled(top, found.error, largest(slot.radius))
                bound = total(bound, scaled(round_up(norms + error), L))
        return bound

    # -- from a source to a target ---------------------------------------------------------------------------------

    def gain(self, v: int, j: int) -> float:
        """Upper bound on the Lipschitz constant of the map from the output of source j, if it were free, to v."""
        if j not in self.sources_of(v):
            return 0.0
        if (v, j) not in self._gains:
            bound = self.norm(v, j)
            for k in self.sources_of(v):
                if k > j:
                    for number, slot in enumerate(self.slots[k]):
                        inner = times(slot.lipschitz, self.gain(slot.input, j))
                        bound = plus(bound, times(self.norm(v, k, number), inner))
            self._gains[v, j] = bound
        return self._gains[v, j]

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
                for slot in self.slots[k]:
                    norms = round_up(_row_norms(matrix, slot.radius) + scaled(error, largest(slot.radius)))
                    bound = total(bound, scaled(norms, slot.lipschitz, self.gain(slot.input, j)))
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
            for slot in self.slots[j]:
                L = times(slot.lipschitz, known[slot.input].lipschitz.value)
                norms = round_up(_row_norms(matrix, slot.radius) + scaled(error, largest(slot.radius)))
                bound = total(bound, scaled(norms, L))
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
            if k > j:
                for number, slot in enumerate(self.slots[k]):
                    bound = total(
                        bound, scaled(self.column_gains(slot.input, j), slot.lipschitz, self.norm(v, k, number))
                    )
        return bound

    def affine(self, v: int) -> bool:
        """Whether the target depends on no nonlinear node."""
        return not self.sources_of(v)


def _row_norms(matrix: Tensor, radius: Tensor) -> Tensor:
    """Upper bounds on the l_2 norms of the rows of M diag(radius)."""
    return enlarge(matrix_row_norms_upper(matrix * radius), gamma(4))


def _slots(setting: Setting, sources: tuple[int, ...]) -> tuple[dict[int, tuple[Slot, ...]], dict[int, list[Tensor]]]:
    """The slots of every source, and its centre slope for every input (none for a block)."""
    slots: dict[int, tuple[Slot, ...]] = {}
    centres: dict[int, list[Tensor]] = {}
    for j in sources:
        node = setting.graph.nodes[j]
        block = setting.structure.blocks.get(j)
        if block is not None:
            ones = torch.ones(node.size, dtype=torch.float64)
            slots[j], centres[j] = (Slot(block.input, ones, block.lipschitz),), []
            continue
        found = []
        centres[j] = [s.centre for s in setting.slopes[j]]
        for i, slope, centre in zip(node.inputs, setting.slopes[j], centres[j], strict=True):
            radius = round_up(torch.maximum(slope.upper - centre, centre - slope.lower))
            radius = torch.where(slope.upper == slope.lower, 0.0, radius)
            found.append(Slot(i, radius.flatten()))
        slots[j] = tuple(found)
    return slots, centres


def _push(
    setting: Setting, centres: dict[int, list[Tensor]], source: int, targets: tuple[int, ...]
) -> dict[tuple[int, int], Map]:
    """M_vj for one source and all targets: the identity sent through the linear network.

    Sound because: every row of the result errs by at most gamma(all operations on the way) times the sum of its
    absolute terms, which one pass of absolute values gives.
    """
    graph = setting.graph
    node = graph.nodes[source]
    scale = setting.scale.flatten() if source == 0 else torch.ones(node.size, dtype=torch.float64)
    values = {source: torch.diag(scale).reshape(-1, *node.shape)}
    sizes = {source: scale.reshape(1, *node.shape)}
    found: dict[tuple[int, int], Map] = {}
    if source in targets:
        matrix = torch.diag(scale)
        found[source, source] = Map(matrix, torch.zeros(len(scale), dtype=torch.float64))
    steps = 8
    for v in range(source + 1, max(targets) + 1):
        later = graph.nodes[v]
        inputs = [i for i in later.inputs if i in values]
        if not inputs or v in setting.opaque or (later.nonlinear and v not in centres):
            continue
        if v in setting.structure.blocks:
            continue
        steps += _steps(later)
        values[v], sizes[v] = (
            _through(graph.nodes, later, centres.get(v), values),
            _through(graph.nodes, later, centres.get(v), sizes, absolute=True),
        )
        if v in targets:
            matrix = values[v].reshape(len(scale), -1).T.contiguous()
            found[v, source] = Map(matrix, scaled(sizes[v].flatten(), gamma(steps)))
    return found


def _steps(node: Node) -> int:
    return node.op.terms + 4 if isinstance(node.op, Linear) else 4


def _through(
    nodes: tuple[Node, ...],
    node: Node,
    centre: list[Tensor] | None,
    values: dict[int, Tensor],
    absolute: bool = False,
) -> Tensor:
    """One node of the linear network; inputs that do not depend on the source are 0."""
    batch = next(iter(values.values())).shape[0]
    inputs = [
        values[i] if i in values else torch.zeros(batch, *nodes[i].shape, dtype=torch.float64) for i in node.inputs
    ]
    if centre is None:
        assert isinstance(node.op, Linear)
        return node.op.absolute(*inputs, bias=False) if absolute else node.op.forward(*inputs, bias=False)
    slopes = [c.abs() for c in centre] if absolute else centre
    terms = [c * x for c, x in zip(slopes, inputs, strict=True)]
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]
