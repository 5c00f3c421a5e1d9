"""What the constants are computed from: a graph, ranges of its nodes, slopes of its nonlinear nodes, an input norm."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from curvverify.bounding.constants.blocks import Block, find_blocks
from curvverify.bounding.constants.residual import SkipBlock, find_skip_blocks
from curvverify.graph.layers import Graph
from curvverify.numerics.norms import absolute_sums_upper, spectral_norms_upper, vector_norms_upper
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.product import Product
from curvverify.types import Interval

AnyBlock = Block | SkipBlock


@dataclass(eq=False)
class Structure:
    """A graph with what is computed once for all regions: norms of its linear operators, and its blocks."""

    graph: Graph
    """In float64."""
    _norms: dict[int, tuple[float, ...]] = field(default_factory=dict)
    _rows: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    _disjoint: dict[int, bool] = field(default_factory=dict)

    def like(self, graph: Graph) -> Structure:
        """The structure of a graph that differs from this one in additive constants only: norms are shared."""
        return replace(self, graph=graph)

    def _linear(self, node: int) -> tuple[Linear, list[tuple[int, ...]]]:
        op = self.graph.nodes[node].op
        assert isinstance(op, Linear)
        return op, [self.graph.nodes[i].shape for i in self.graph.nodes[node].inputs]

    def norms(self, node: int) -> tuple[float, ...]:
        """Upper bound on the spectral norm of a linear node for each of its inputs."""
        if node not in self._norms:
            op, shapes = self._linear(node)
            self._norms[node] = spectral_norms_upper(op, *shapes)
        return self._norms[node]

    def row_norms(self, node: int) -> tuple[Tensor, ...]:
        """Upper bounds (*S) on the l_2 norms of the rows of a linear node for each of its inputs."""
        if node not in self._rows:
            op, shapes = self._linear(node)
            if len(shapes) == 1:
                self._rows[node] = (vector_norms_upper(op, shapes[0])[0],)
            else:
                self._rows[node] = tuple(rows for rows, _ in absolute_sums_upper(op, *shapes))
        return self._rows[node]

    def disjoint(self, node: int) -> bool:
        """Whether every entry of a linear node depends on one of its inputs only, as in a concatenation."""
        if node not in self._disjoint:
            touched = sum((rows > 0).to(torch.int8) for rows in self.row_norms(node))
            self._disjoint[node] = bool((torch.as_tensor(touched) <= 1).all())
        return self._disjoint[node]

    @cached_property
    def blocks(self) -> dict[int, Block]:
        """Softmax and normalisation, by the position of their output."""
        return {block.output: block for block in find_blocks(self.graph)}

    @property
    def known_ranges(self) -> dict[int, Interval]:
        """Bounds (*S) on the outputs of blocks, whatever their input."""
        return {i: block.range for i, block in self.blocks.items() if block.range is not None}

    @cached_property
    def skips(self) -> dict[int, SkipBlock]:
        """Residual blocks H u + G sigma(W u), by the position of their output."""
        return {block.output: block for block in find_skip_blocks(self.graph)}


@dataclass(frozen=True, eq=False)
class Setting:
    """A region of a network's inputs, seen through the ranges of its nodes.

    Distances at the input are ||xi|| with x = centre + scale * xi, l_2 or l_inf: scale 1 measures x itself, scale 0
    takes a coordinate for fixed, and the radii of a box make it the unit ball of l_inf.
    """

    structure: Structure
    ranges: tuple[Interval, ...]
    """Bounds (*S) on every node over the region, without a batch axis; infinite where nothing is known."""
    slopes: tuple[tuple[Interval, ...], ...]
    """For every nonlinear node and each input, the range of the partial derivative; () for other nodes."""
    scale: Tensor
    """(*S_in), nonnegative."""
    norm: float = 2.0
    """2 or inf."""

    @property
    def graph(self) -> Graph:
        return self.structure.graph

    @cached_property
    def second(self) -> dict[int, Interval]:
        """The range of sigma'' (*S) for every elementwise node."""
        return self._derivatives(2)

    @cached_property
    def third(self) -> dict[int, Interval]:
        """The range of sigma''' (*S) for every elementwise node."""
        return self._derivatives(3)

    def _derivatives(self, order: int) -> dict[int, Interval]:
        graph = self.graph
        return {
            i: node.op.derivative(order, self.ranges[node.inputs[0]])
            for i, node in enumerate(graph.nodes)
            if isinstance(node.op, Elementwise)
        }

    @cached_property
    def free(self) -> int:
        """Number of coordinates of the input that may move."""
        return int((self.scale > 0).sum())

    @property
    def equivalence(self) -> float:
        """Upper bound on the l_2 norm over the unit ball of the input's norm."""
        return 1.0 if self.norm == 2.0 else math.nextafter(math.sqrt(self.free), math.inf)

    @cached_property
    def opaque(self) -> frozenset[int]:
        """Nodes that depend on a nonlinear one of infinite slope, other than through a block."""
        found: set[int] = set()
        for i, node in enumerate(self.graph.nodes):
            block = self.structure.blocks.get(i)
            inputs = node.inputs if block is None else (block.input,)
            steep = block is None and any(not bool(s.magnitude.isfinite().all()) for s in self.slopes[i])
            if steep or any(j in found for j in inputs):
                found.add(i)
        return frozenset(found)


def slopes_over(graph: Graph, ranges: tuple[Interval, ...]) -> tuple[tuple[Interval, ...], ...]:
    """For every nonlinear node and each input, the range of the partial derivative over the ranges of the nodes."""
    found: list[tuple[Interval, ...]] = []
    for node in graph.nodes:
        if isinstance(node.op, Elementwise):
            found.append((node.op.derivative(1, ranges[node.inputs[0]]),))
        elif isinstance(node.op, Product):
            u, v = node.inputs
            found.append((ranges[v], ranges[u]))
        else:
            found.append(())
    return tuple(found)
