"""The forward pass: every formula for every node, the least of them kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.maps import CentredMaps
from curvverify.bounding.constants.rows import RowConstants, difference_rows, row_constants
from curvverify.bounding.constants.rules import block_constants, input_constants, node_constants
from curvverify.bounding.constants.second_order import Bends, layered_curvature, layered_third_order
from curvverify.bounding.constants.setting import Setting
from curvverify.bounding.constants.values import Bound, Constants, Entries, length
from curvverify.graph.layers import Graph
from curvverify.ops.linear import Sum

MOST_ROWS = 64
"""Largest number of outputs whose Hessians are bounded one by one."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """Constants of every node of a network in one setting."""

    setting: Setting
    nodes: tuple[Constants, ...]
    maps: CentredMaps | None
    bends: Bends
    rows: RowConstants | None
    """Of every entry of the output on its own; None where there are too many."""

    def of_rows(self, rows: Tensor) -> RowConstants:
        """The constants of R linear functions (R, K) of the output's K entries."""
        wide = rows.reshape(-1, *self.setting.graph.output_shape)
        return row_constants(self.setting, wide, self.bends.known, self.maps, self.bends)


def pair_constants(analysis: Analysis, pairs: Sequence[tuple[int, int]]) -> RowConstants:
    """Bounds on z_y - z_t for every pair (y, t) of entries of the output.

    Cheaper than one analysis per pair, since the rest of the network is shared.
    """
    graph = analysis.setting.graph
    y, t = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return analysis.of_rows(difference_rows(graph.nodes[graph.output].size, y, t))


def targets_of(graph: Graph, block_inputs: list[int]) -> tuple[int, ...]:
    """The nodes for which residual joins are kept whole: inputs of nonlinear nodes and of blocks, joins, the output."""
    joins = [i for i, node in enumerate(graph.nodes) if isinstance(node.op, Sum)]
    return tuple(sorted({*graph.bounded, *joins, *block_inputs, graph.output}))


def analyse(setting: Setting, *, second_order: bool = True) -> Analysis:
    """Constants of every node; without `second_order`, the Lipschitz constants by all formulas and the others by rules.

    Sound because: each formula is, and the least of upper bounds is one.
    """
    graph, structure = setting.graph, setting.structure
    maps = CentredMaps.build(setting, targets_of(graph, [b.input for b in structure.blocks.values()]))
    known: dict[int, Constants] = {0: input_constants(setting)}
    bends = Bends(setting, known, maps)
    for v in range(1, len(graph)):
        node = graph.nodes[v]
        found = node_constants(setting, v, [known[i] for i in node.inputs])
        for blocks in (structure.blocks, structure.skips):
            if v in blocks:
                found = found.least(block_constants(blocks[v], known[blocks[v].input], node.shape))
        if maps is not None and v in maps.targets:
            found = _improved(found, maps, bends, known, v, second_order)
        known[v] = found.consistent()
    rows = None
    if second_order and graph.nodes[graph.output].size <= MOST_ROWS:
        unit = torch.eye(graph.nodes[graph.output].size, dtype=torch.float64).reshape(-1, *graph.output_shape)
        rows = row_constants(setting, unit, known, maps, bends)
        known[graph.output] = _with_rows(known[graph.output], rows)
    return Analysis(setting, tuple(known[v] for v in range(len(graph))), maps, bends, rows)


def _improved(
    found: Constants, maps: CentredMaps, bends: Bends, known: dict[int, Constants], v: int, second_order: bool
) -> Constants:
    """With the loop transformation's constants of a target; known holds the inputs of all its sources."""
    L, entries = maps.lipschitz(v, known)
    curvature, third_order = found.curvature, found.third_order
    if second_order:
        curvature = curvature.least(layered_curvature(maps, bends, v))
        third_order = third_order.least(layered_third_order(maps, bends, v))
    e = found.entries
    return Constants(
        found.lipschitz.least(Bound(L, "loop transformation")),
        curvature,
        third_order,
        Entries(torch.minimum(e.lipschitz, entries), e.curvature, e.third_order),
    )


def _with_rows(found: Constants, rows: RowConstants) -> Constants:
    """The output's constants with those of its entries: alone, or the root of their squares."""
    e = found.entries
    shape = e.lipschitz.shape
    name = "two layers, exact" if rows.exact else "layered, sign-split"
    lipschitz, curvature = rows.lipschitz.reshape(shape), rows.curvature.reshape(shape)
    return Constants(
        found.lipschitz.least(Bound(length(lipschitz), "gradient range")),
        found.curvature.least(Bound(length(curvature), name)),
        found.third_order,
        Entries(torch.minimum(e.lipschitz, lipschitz), torch.minimum(e.curvature, curvature), e.third_order),
    ).consistent()
