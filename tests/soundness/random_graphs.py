"""Random layer graphs with residual joins, shared subexpressions, convolutions and products."""

from __future__ import annotations

import torch

from curvverify.graph.layers import Graph, Node
from curvverify.ops.base import Input, Op
from curvverify.ops.linear import Convolution, Dense, Diagonal, Gather, Reshape, Sum
from curvverify.ops.product import Product
from tests.soundness.operators import POSITIVE, SAMPLES


class Builder:
    """Appends nodes and keeps track of shapes."""

    def __init__(self, shape: tuple[int, ...], seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.nodes = [Node("x", Input(), (), shape)]

    def add(self, op: Op, *inputs: int, shape: tuple[int, ...] | None = None) -> int:
        shape = self.nodes[inputs[0]].shape if shape is None else shape
        self.nodes.append(Node(f"{op.name}_{len(self.nodes)}", op, inputs, shape))
        return len(self.nodes) - 1

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def dense(self, i: int, width: int) -> int:
        n = self.nodes[i].shape[-1]
        return self.add(Dense(self.randn(width, n) / n**0.5, 0.3 * self.randn(width)), i, shape=(1, width))

    def activate(self, op: Op, i: int) -> int:
        """sigma(x), or sigma(softplus(x) + 0.2) for a function that needs positive arguments."""
        if op.name in POSITIVE:
            shift = Diagonal(None, torch.tensor(0.2, dtype=torch.float64))
            i = self.add(shift, self.add(SAMPLES["Softplus"], i))
        return self.add(op, i)

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes))


def residual_mlp(op: Op, seed: int, width: int = 8) -> Graph:
    """x -> dense -> sigma -> dense (+ residual) -> sigma -> a product of two branches -> dense (+ long residual)."""
    b = Builder((1, 4), seed)
    first = b.dense(0, width)
    a1 = b.activate(op, first)
    joined = b.add(Sum((1.0, 1.0)), b.dense(a1, width), a1)
    a2 = b.activate(op, joined)
    product = b.add(Product(), a2, b.dense(a1, width))
    back = b.add(Sum((1.0, -0.5)), b.dense(product, width), first)
    shifted = b.add(Diagonal(b.randn(width), b.randn(width)), back)
    a3 = b.activate(op, shifted)
    b.dense(a3, 3)
    return b.graph()


def residual_convnet(op: Op, seed: int) -> Graph:
    """Convolutions with stride, padding and groups around a residual join, a slice, and a dense head."""
    b = Builder((1, 2, 5, 5), seed)

    def conv(i: int, shape_in: tuple[int, ...], out: int, stride: int, groups: int) -> int:
        spatial = tuple((n + 2 - 3) // stride + 1 for n in shape_in[2:])
        weight = b.randn(out, shape_in[1] // groups, 3, 3) / (9 * shape_in[1] // groups) ** 0.5
        op = Convolution(weight, 0.2 * b.randn(out), (stride,) * 2, (1, 1), (1, 1), groups, shape_in[2:], spatial)
        return b.add(op, i, shape=(1, out, *spatial))

    a1 = b.activate(op, conv(0, (1, 2, 5, 5), 4, 1, 1))
    joined = b.add(Sum((1.0, 1.0)), conv(a1, (1, 4, 5, 5), 4, 1, 2), a1)
    a2 = b.activate(op, joined)
    down = conv(a2, (1, 4, 5, 5), 4, 2, 1)
    flat = b.add(Reshape((1, 4, 3, 3), (1, 36)), down, shape=(1, 36))
    part = b.add(Gather(torch.arange(0, 36, 2).reshape(1, 18), (1, 36)), flat, shape=(1, 18))
    b.dense(part, 3)
    return b.graph()
