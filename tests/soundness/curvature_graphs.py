"""Random smooth graphs by seed for the curvature attacks: seven families, six activations, weights of all sizes.

`composite` adds what only torch modules give: softmax, log-softmax, log-sum-exp, normalisation and attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvverify.graph import load
from curvverify.graph.layers import Graph
from curvverify.ops.linear import Concatenate, Convolution, Dense, Diagonal, Gather, Reduce, Reshape, Sum
from curvverify.ops.product import Product
from tests.soundness.operators import SAMPLES
from tests.soundness.random_graphs import Builder

T = TypeVar("T")

ACTIVATIONS = ("Sigmoid", "Tanh", "Softplus", "Gelu", "Silu", "Sin")

BOUNDED_VALUES = ("Sigmoid", "Tanh", "Sin")
"""Activations whose values are bounded: products of them have finite global constants."""

GAINS = (0.3, 1.0, 1.0, 2.0, 5.0)
"""Spectral size of a layer's weights, about: at 5 most neurons saturate somewhere near the origin."""


@dataclass(frozen=True)
class Sample:
    """A graph, how it came about, and the points around which regions are put."""

    seed: int
    family: str
    graph: Graph

    @property
    def name(self) -> str:
        return f"{self.family}-{self.seed}"


class Maker(Builder):
    """A builder that draws activations, widths and gains as it goes."""

    def __init__(self, shape: tuple[int, ...], seed: int, mixed: bool = False):
        super().__init__(shape, seed)
        self.activation = self.pick(ACTIVATIONS)
        self.mixed = mixed

    def below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def scaled(self, i: int, width: int, gain: float | None = None) -> int:
        """A dense layer of random gain."""
        end = self.dense(i, width)
        node = self.nodes[end]
        assert isinstance(node.op, Dense)
        weight = node.op.weight * (self.pick(GAINS) if gain is None else gain)
        self.nodes[end] = replace(node, op=replace(node.op, weight=weight))
        return end

    def sigma(self, i: int, only: Sequence[str] = ACTIVATIONS) -> int:
        name = self.pick(only) if self.mixed or self.activation not in only else self.activation
        return self.add(SAMPLES[name], i)

    def block(self, i: int, width: int) -> int:
        return self.sigma(self.scaled(i, width))

    def join(self, *inputs: int) -> int:
        """A residual join with coefficients that are 1 most of the time."""
        coefficients = tuple(self.pick((1.0, 1.0, 1.0, -1.0, 0.5)) for _ in inputs)
        return self.add(Sum(coefficients), *inputs)

    def conv(self, i: int, out: int, stride: int = 1, groups: int = 1) -> int:
        """A 3x3 convolution of random gain, its kernel no larger than the image."""
        _, channels, *spatial = self.nodes[i].shape
        kernel = tuple(min(3, n) for n in spatial)
        padding = tuple((k - 1) // 2 for k in kernel)
        reach = tuple((n + 2 * p - k) // stride + 1 for n, p, k in zip(spatial, padding, kernel, strict=True))
        fan = channels // groups * kernel[0] * kernel[1]
        weight = self.pick(GAINS) * self.randn(out, channels // groups, *kernel) / fan**0.5
        op = Convolution(weight, 0.3 * self.randn(out), (stride,) * 2, padding, (1, 1), groups, tuple(spatial), reach)
        return self.add(op, i, shape=(1, out, *reach))

    def flat(self, i: int) -> int:
        shape = self.nodes[i].shape
        size = self.nodes[i].size
        return self.add(Reshape(shape, (1, size)), i, shape=(1, size))


def mlp(b: Maker) -> None:
    i, width = 0, 3 + b.below(8)
    for _ in range(1 + b.below(4)):
        i = b.block(i, width)
        width = 3 + b.below(8)
    b.scaled(i, 1 + b.below(3))


def residual_mlp(b: Maker) -> None:
    """H x + G sigma(W x), one to three times; sometimes with a projection in place of the identity."""
    width = 3 + b.below(6)
    i = b.scaled(0, width)
    for _ in range(b.pick((1, 1, 2, 3))):
        branch = b.scaled(b.block(i, 3 + b.below(8)), width)
        i = b.join(b.scaled(i, width) if b.below(4) == 0 else i, branch)
        if b.below(2):
            i = b.sigma(i)
    b.scaled(i, 1 + b.below(3))


def nested_residual(b: Maker) -> None:
    """x + G sigma(y + F sigma(y)) with y = W x: a join inside a join, then a third over everything."""
    width = 3 + b.below(5)
    start = b.scaled(0, width)
    i = start
    for _ in range(b.pick((1, 1, 2))):
        y = b.scaled(i, width)
        inner = b.join(y, b.scaled(b.sigma(y), width))
        outer = b.scaled(b.sigma(inner), width)
        i = b.join(i, outer)
    i = b.join(i, start, b.scaled(b.sigma(i), width))
    b.scaled(i, 1 + b.below(3))


def shared(b: Maker) -> None:
    """One hidden value feeds several joins, with opposite signs too, and sometimes a concatenation."""
    width = 3 + b.below(5)
    h = b.block(0, width)
    first = b.join(b.scaled(h, width), h)
    second = b.join(b.sigma(first), h, first)
    third = b.add(Sum((1.0, -1.0)), b.block(second, width), h)
    if b.below(2):
        axis = len(b.nodes[third].shape) - 1
        third = b.add(Concatenate(axis, (width, width)), third, first, shape=(1, 2 * width))
    b.scaled(b.sigma(third) if b.below(2) else third, 1 + b.below(3))


def convolutional(b: Maker) -> None:
    """Convolutions with stride, padding and groups, a residual join, then a pool, a slice or all entries."""
    a = b.sigma(b.conv(0, 4))
    i = b.join(b.conv(a, 4, groups=b.pick((1, 2))), a)
    if b.below(2):
        i = b.conv(b.sigma(i), 2, stride=2)
    i = b.sigma(i)
    if b.below(3) == 0:
        shape = b.nodes[i].shape
        axes = (2, 3)
        pooled = (*shape[:2], 1, 1)
        i = b.add(Reduce(axes, shape, 1.0 / (shape[2] * shape[3])), i, shape=pooled)
    i = b.flat(i)
    n = b.nodes[i].size
    if b.below(2) and n > 3:
        index = torch.arange(0, n, 2).reshape(1, -1)
        i = b.add(Gather(index, (1, n)), i, shape=tuple(index.shape))
    b.scaled(i, 1 + b.below(3))


def gated(b: Maker) -> None:
    """sigma(W x) * tau(V x), once or twice; globally finite for bounded sigma and tau only."""
    i = 0
    only = BOUNDED_VALUES if b.below(4) else ACTIVATIONS
    for _ in range(b.pick((1, 1, 2))):
        width = 3 + b.below(6)
        u = b.sigma(b.scaled(i, width), only)
        v = b.sigma(b.scaled(i, width), only) if b.below(6) else b.scaled(i, width)
        i = b.add(Product(), u, v)
        if b.below(2):
            i = b.join(i, u)
    b.scaled(i, 1 + b.below(3))


def mixed(b: Maker) -> None:
    """Blocks of all kinds one after the other."""
    b.mixed = True
    width = 3 + b.below(5)
    i = b.block(0, width)
    seen = [i]
    for _ in range(1 + b.below(3)):
        kind = b.below(4)
        if kind == 0:
            i = b.block(i, width)
        elif kind == 1:
            i = b.join(i, b.scaled(b.block(i, 3 + b.below(6)), width), b.pick(seen))
        elif kind == 2:
            i = b.add(Product(), b.sigma(i, BOUNDED_VALUES), b.sigma(b.scaled(b.pick(seen), width), BOUNDED_VALUES))
        else:
            i = b.add(Diagonal(b.randn(width), b.randn(width)), b.join(i, b.pick(seen)))
        seen.append(i)
    b.scaled(i, 1 + b.below(3))


FAMILIES: dict[str, Callable[[Maker], None]] = {
    "mlp": mlp,
    "residual": residual_mlp,
    "nested": nested_residual,
    "shared": shared,
    "convolution": convolutional,
    "gated": gated,
    "mixed": mixed,
}


def sample(seed: int) -> Sample:
    """The graph of one seed; the family is seed mod 7, so that any run of seeds covers all of them."""
    family = list(FAMILIES)[seed % len(FAMILIES)]
    if family == "convolution":
        shapes = ((1, 1, 2, 3), (1, 2, 2, 2), (1, 1, 2, 4), (1, 1, 3, 2), (1, 2, 1, 4))
        builder = Maker(shapes[seed // len(FAMILIES) % len(shapes)], seed)
    else:
        builder = Maker((1, 2 + seed // len(FAMILIES) % 7), seed)
    FAMILIES[family](builder)
    return Sample(seed, family, builder.graph())


class Composite(nn.Module):
    """One block between dense layers, with a residual join where shapes allow; weights drawn by a seed."""

    def __init__(self, kind: str, seed: int, size: int = 4, width: int = 4):
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Linear(size, width), nn.Linear(width, 2)
        self.query, self.key, self.mixed = (nn.Linear(size, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        generator = torch.Generator().manual_seed(seed)
        gain = GAINS[seed % len(GAINS)]
        with torch.no_grad():
            for parameter in self.parameters():
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(gain * drawn / parameter.shape[-1] ** 0.5)

        self.before = (nn.Tanh(), nn.Identity(), nn.SiLU())[seed % 3]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(getattr(self, self.kind)(x, self.before(self.first(x))))

    def softmax(self, x: Tensor, z: Tensor) -> Tensor:
        return F.softmax(z, -1)

    def log_softmax(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.sin(F.log_softmax(z, -1))

    def logsumexp(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z) + torch.logsumexp(z, -1, keepdim=True)

    def weighted(self, x: Tensor, z: Tensor) -> Tensor:
        return F.softmax(z, -1) * torch.sin(self.mixed(x)) + self.query(x)

    def normalised(self, x: Tensor, z: Tensor) -> Tensor:
        return z + F.silu(self.norm(z))

    def attention(self, x: Tensor, z: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        return z + F.softmax(scores, -1) @ torch.tanh(self.mixed(x))


COMPOSITES = ("softmax", "log_softmax", "logsumexp", "weighted", "normalised", "attention")


def composite(seed: int) -> Sample:
    """The graph of one seed; runs of 6 seeds cover all blocks."""
    kind = COMPOSITES[seed % len(COMPOSITES)]
    drawn = seed // len(COMPOSITES)
    rows, size = (3, 2) if kind == "attention" else (1, 2 + drawn % 4)
    module = Composite(kind, drawn, size, 2 if kind == "attention" else 4)
    return Sample(seed, kind, load(module, shapes=(1, rows, size), check=False).graph)
