"""The centred linear network: slopes of all nonlinear nodes at their centres, and identities sent through it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from curvverify.bounding.constants.setting import Setting
from curvverify.bounding.constants.values import length, scaled
from curvverify.graph.layers import Node
from curvverify.numerics.rounding import gamma, radius_upper, round_up
from curvverify.ops.base import Linear

EVEN = 0.7
"""Radii whose mean is this share of the largest count as alike."""


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

    @cached_property
    def root(self) -> Tensor | None:
        """sqrt(radius) rounded up, where radii differ: ||M sqrt(r)|| ||sqrt(r) Dz|| may be below ||M r|| ||Dz||."""
        if self.lipschitz != 1.0 or bool(self.radius.mean() >= EVEN * self.radius.max()):
            return None
        return round_up(self.radius.sqrt())


def slots_and_centres(
    setting: Setting, sources: tuple[int, ...]
) -> tuple[dict[int, tuple[Slot, ...]], dict[int, list[Tensor]]]:
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
        for i, slope in zip(node.inputs, setting.slopes[j], strict=True):
            radius = torch.where(slope.upper == slope.lower, 0.0, radius_upper(slope))
            found.append(Slot(i, radius.flatten()))
        slots[j] = tuple(found)
    return slots, centres


def push(
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
