"""The network on as many inputs as its first layer has rows: the same constants, found in a smaller space.

With z = W x + b the first layer and R a square matrix with R R^T >= W W^T, every move d has an e with W d = R e and
||e|| <= ||d||: e = V d, R V = W, V V^T = R^-1 W W^T R^-T <= I.  So the network f(x0 + d) = F(W d + c), c = W x0 + b,
is (F o (R . + c))(V d), and every l_2 Lipschitz constant, curvature and range of F o (R . + c) over the ball around 0
holds for f over the ball around x0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.graph.layers import Graph, Node
from curvverify.numerics.rounding import gamma
from curvverify.ops.base import Input
from curvverify.ops.linear import Dense, Reshape

RELATIVE = 1e-10
"""By so much of its trace W W^T is enlarged."""


@dataclass(frozen=True, eq=False)
class Reduced:
    """A graph's first layer, factored."""

    graph: Graph
    position: int
    first: Dense
    factor: Tensor
    """R (m, m)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the reduced input."""
        return self.graph.nodes[self.position].shape

    def around(self, x: Tensor | None) -> Graph:
        """The reduced graph whose input 0 stands for x (n); None for x = 0.

        Sound because: c = fl(W x + b) errs by at most gamma(n + 1) (|W| |x| + |b|), and a layer's constant is taken to
        be off by gamma(m + 9) times its size.
        """
        m, n = self.first.weight.shape
        zero = torch.zeros(m, dtype=torch.float64)
        offset = zero if self.first.bias is None else self.first.bias
        size = zero if self.first.constant_size is None else self.first.constant_size
        if x is not None:
            offset = self.first.weight @ x.flatten() + offset
            ratio = gamma(n + 16) / gamma(m + 9) + 1.0
            size = ratio * (self.first.weight.abs() @ x.flatten().abs() + size)
        p = self.position
        entry = Node(self.graph.nodes[0].name, Input(), (), self.shape)
        layer = replace(self.graph.nodes[p], op=Dense(self.factor, offset, size), inputs=(0,))
        rest = [replace(node, inputs=tuple(i - p + 1 for i in node.inputs)) for node in self.graph.nodes[p + 1 :]]
        return Graph((entry, layer, *rest))


def reduced(graph: Graph) -> Reduced | None:
    """None where the network does not begin with a dense layer of fewer rows than inputs."""
    position = 1
    while position < len(graph) and isinstance(graph.nodes[position].op, Reshape):
        position += 1
    if position == len(graph):
        return None
    node = graph.nodes[position]
    chain = all(graph.nodes[i].inputs == (i - 1,) for i in range(1, position + 1))
    alone = all(i >= position for later in graph.nodes[position + 1 :] for i in later.inputs)
    if not (chain and alone and isinstance(node.op, Dense)):
        return None
    m, n = node.op.weight.shape
    if not (node.size == m < n == graph.nodes[0].size):
        return None
    R = _factor(node.op.weight)
    return None if R is None else Reduced(graph, position, node.op, R)


def _factor(W: Tensor) -> Tensor | None:
    """Lower triangular R with R R^T >= W W^T; None where that could not be proved.

    Sound because: with S = fl(W W^T), ||S - W W^T|| <= gamma ||W||_F^2, and E = S + delta I - R R^T is multiplied out,
    itself within gamma (||S||_F + ||R||_F^2) + its own rounding: R R^T >= W W^T + (delta - ||E|| - errors) I.
    """
    m, n = W.shape
    S = W @ W.T
    S = 0.5 * (S + S.T)
    trace = float(W.square().sum())
    delta = RELATIVE * trace + 1e-300
    raised = S + delta * torch.eye(m, dtype=torch.float64)
    R, info = torch.linalg.cholesky_ex(raised)
    if int(info) != 0:
        return None
    E = raised - R @ R.T
    square = float(R.square().sum())
    errors = 2.0 * (gamma(n + 8) * trace + gamma(m + 16) * (square + float(raised.norm()))) + float(E.norm()) * 1.001
    return R if errors < delta else None
