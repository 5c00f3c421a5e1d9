"""The layer graph: a network over the real numbers as a frozen, topologically ordered list of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from curvverify.ops.base import Elementwise, Input, Op
from curvverify.ops.joint import Joint
from curvverify.ops.product import Product


@dataclass(frozen=True, eq=False)
class Node:
    """One operator applied to earlier nodes.

    `name` is unique in the graph; `source` is the name of the ONNX node or torch module it came from, which several
    nodes may share.  `shape` is the value's shape without the batch dimension.  `values` are the names of the values of
    the ONNX file whose entries the node's are, in row-major order; values that were folded into others have no node.
    """

    name: str
    op: Op
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    source: str = ""
    values: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def nonlinear(self) -> bool:
        return isinstance(self.op, Elementwise | Product | Joint)

    @property
    def straight(self) -> bool:
        """Whether the operator is affine but for kinks."""
        return not self.nonlinear or (isinstance(self.op, Elementwise) and self.op.straight)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order: node 0 is the input, the last one the output."""

    nodes: tuple[Node, ...]
    _converted: dict[torch.dtype, Graph] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.nodes or not isinstance(self.nodes[0].op, Input):
            raise ValueError("node 0 of a graph must be its input")
        names: set[str] = set()
        for position, node in enumerate(self.nodes):
            if any(i >= position for i in node.inputs):
                raise ValueError(f"node {node.name!r} comes before one of its inputs")
            if node.name in names:
                raise ValueError(f"two nodes are called {node.name!r}")
            names.add(node.name)

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.nodes[-1].shape

    @property
    def output(self) -> int:
        """Position of the output node."""
        return len(self.nodes) - 1

    @cached_property
    def nonlinear(self) -> tuple[int, ...]:
        """Positions of the nodes that need bounds on their inputs."""
        return tuple(i for i, node in enumerate(self.nodes) if node.nonlinear)

    @cached_property
    def bounded(self) -> tuple[int, ...]:
        """Positions of the nodes whose bounds the nonlinear nodes need: their inputs, in topological order."""
        return tuple(sorted({j for i in self.nonlinear for j in self.nodes[i].inputs}))

    @cached_property
    def ancestors(self) -> tuple[tuple[int, ...], ...]:
        """For every node, the positions it depends on, itself included, ascending."""
        found: list[frozenset[int]] = []
        for position, node in enumerate(self.nodes):
            found.append(frozenset({position}).union(*(found[i] for i in node.inputs)))
        return tuple(tuple(sorted(s)) for s in found)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """For every node, the largest number of nonlinear nodes on a way from the input to it, itself excluded."""
        found: list[int] = []
        for node in self.nodes:
            found.append(max((found[i] + self.nodes[i].nonlinear for i in node.inputs), default=0))
        return tuple(found)

    def by_level(self, node: int) -> tuple[int, ...]:
        """The positions a node depends on, itself last: level by level, the nonlinear ones at the end of theirs."""
        levels, nodes = self.levels, self.nodes
        return tuple(sorted(self.ancestors[node], key=lambda i: (levels[i], nodes[i].nonlinear, i)))

    def values(self, x: Tensor) -> list[Tensor]:
        """The value of every node at the inputs x, (B, *input_shape) -> one (B, *S) per node."""
        found: list[Tensor] = [x]
        for node in self.nodes[1:]:
            found.append(node.op.forward(*(found[i] for i in node.inputs)))
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output at the inputs x, (B, *input_shape) -> (B, *output_shape)."""
        return self.values(x)[-1]

    def to(self, dtype: torch.dtype) -> Graph:
        """The same graph with its constants in another dtype, converted once."""
        if dtype not in self._converted:
            self._converted[dtype] = Graph(tuple(replace(n, op=n.op.to(dtype)) for n in self.nodes))
        return self._converted[dtype]
