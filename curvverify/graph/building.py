"""Builds a layer graph node by node, on variables and constants alike, and evaluates it on a sample as it grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from curvverify.graph.layers import Node
from curvverify.ops.base import Input, Op
from curvverify.ops.linear import Concatenate, Convolution, Dense, Diagonal, Gather, Permute, Reduce, Reshape, Sum
from curvverify.ops.product import Product
from curvverify.ops.registry import ELEMENTWISE

SMALL = 32768
"""Constants up to this many entries are compared by content, larger ones by their memory."""


@dataclass(frozen=True)
class Var:
    """A value that depends on the network's input: a node of the graph under construction."""

    node: int
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Operand = Var | Tensor | float | int


def signature(op: Op) -> tuple[object, ...]:
    """Equal for two operators only if they are the same function."""
    return (type(op), *(_fingerprint(getattr(op, f.name)) for f in fields(op)))


def as_constant(value: Operand) -> Tensor:
    """A constant operand as a float64 tensor."""
    assert not isinstance(value, Var)
    return torch.as_tensor(value, dtype=torch.float64)


def _fingerprint(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    if value.numel() <= SMALL:
        return (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())
    return (value.dtype, tuple(value.shape), value.stride(), value.data_ptr())


def normal(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dim + rank if dim < 0 else dim


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The common shape of operands (torch.broadcast_shapes imports sympy, which takes 0.3 s)."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


class Builder:
    """The graph under construction: nodes, and their values (1, *shape) at one sample input in float64.

    Methods take variables and constants alike wherever that makes sense and return variables.  Identical operators
    on identical inputs are built once.
    """

    def __init__(self, sample: Tensor):
        self.nodes: list[Node] = [Node("input", Input(), (), tuple(sample.shape))]
        self.values: list[Tensor] = [sample.unsqueeze(0)]
        self.source = ""
        self._known: dict[tuple[object, ...], Var] = {}

    @property
    def input(self) -> Var:
        return Var(0, self.nodes[0].shape)

    def label(self, x: Var, name: str) -> None:
        """The variable is a value that the user's model calls by this name."""
        node = self.nodes[x.node]
        self.nodes[x.node] = replace(node, values=(*node.values, name))

    def value(self, x: Var) -> Tensor:
        """The sample's value, without the batch dimension."""
        return self.values[x.node].squeeze(0)

    def apply(self, op: Op, *inputs: Var) -> Var:
        """The operator's value at earlier nodes."""
        places = tuple(x.node for x in inputs)
        key = (places, signature(op))
        if key not in self._known:
            value = op.forward(*(self.values[i] for i in places))
            self.nodes.append(Node("", op, places, tuple(value.shape[1:]), self.source))
            self.values.append(value)
            self._known[key] = Var(len(self.nodes) - 1, tuple(value.shape[1:]))
        return self._known[key]

    def scalar(self, name: str, x: Var, **attributes: Any) -> Var:
        """An elementwise operator by name."""
        return self.apply(ELEMENTWISE[name](**attributes), x)

    # -- moving entries about ------------------------------------------------------------------------------------

    def reshape(self, x: Var, shape: Sequence[int]) -> Var:
        shape = tuple(shape)
        return x if shape == x.shape else self.apply(Reshape(x.shape, shape), x)

    def permute(self, x: Var, dims: Sequence[int]) -> Var:
        dims = tuple(normal(d, x.ndim) for d in dims)
        if dims == tuple(range(x.ndim)):
            return x
        long = [d for d in dims if x.shape[d] != 1]
        if long == sorted(long):
            return self.reshape(x, [x.shape[d] for d in dims])
        return self.apply(Permute(dims), x)

    def swap(self, x: Var, first: int = -2, second: int = -1) -> Var:
        """Two dimensions exchanged."""
        dims = list(range(x.ndim))
        dims[first], dims[second] = dims[second], dims[first]
        return self.permute(x, dims)

    def positions(self, x: Var) -> Tensor:
        """The flat position of every entry, in float64, which every torch function accepts."""
        return torch.arange(x.size, dtype=torch.float64).reshape(x.shape)

    def gather(self, x: Var, index: Tensor) -> Var:
        """y[j] = x[index[j]] in flat positions, 0 where the index is -1."""
        index = index.round().to(torch.int64)
        if index.numel() == x.size and torch.equal(index.flatten(), torch.arange(x.size)):
            return self.reshape(x, tuple(index.shape))
        return self.apply(Gather(index.contiguous(), x.shape), x)

    def expand(self, x: Var, shape: Sequence[int]) -> Var:
        """Broadcast to a shape."""
        shape = tuple(shape)
        return x if shape == x.shape else self.gather(x, self.positions(x).expand(shape))

    def cat(self, parts: Sequence[Var | Tensor], axis: int) -> Var:
        """Concatenation of variables and constants."""
        parts = [p for p in parts if math.prod(p.shape)]
        variables = [p for p in parts if isinstance(p, Var)]
        axis = normal(axis, variables[0].ndim)
        sizes = tuple(v.shape[axis] for v in variables)
        whole = variables[0] if len(variables) == 1 else self.apply(Concatenate(axis, sizes), *variables)
        if len(variables) == len(parts):
            return whole
        places = iter(self.positions(whole).split(sizes, axis))
        index = torch.cat([next(places) if isinstance(p, Var) else torch.full(p.shape, -1.0) for p in parts], axis)
        shift = [torch.zeros(p.shape) if isinstance(p, Var) else p for p in parts]
        return self.affine(self.gather(whole, index), None, torch.cat([s.to(torch.float64) for s in shift], axis))

    # -- linear arithmetic ---------------------------------------------------------------------------------------

    def constant(self, value: Tensor) -> Var:
        """A variable that takes the same value everywhere."""
        return self.affine(self.gather(self.input, torch.full(value.shape, -1.0)), None, value)

    def affine(
        self, x: Var, factor: Tensor | float | None, shift: Tensor | float | None, size: Tensor | None = None
    ) -> Var:
        """factor * x + shift with broadcasting; `size` are the absolute terms behind a shift that was rounded."""
        f = None if factor is None else torch.as_tensor(factor, dtype=torch.float64)
        s = None if shift is None else torch.as_tensor(shift, dtype=torch.float64)
        f = None if f is None or bool((f == 1.0).all()) else f
        s = None if s is None or bool((s == 0.0).all()) else s
        x = self.expand(x, broadcast(x.shape, *(torch.as_tensor(c).shape for c in (factor, shift) if c is not None)))
        return x if f is None and s is None else self.apply(Diagonal(f, s, None if s is None else size), x)

    def sum(self, terms: Sequence[Var], coefficients: Sequence[float] | None = None) -> Var:
        """sum_i coefficient_i x_i with broadcasting."""
        weights = tuple(float(c) for c in coefficients) if coefficients is not None else (1.0,) * len(terms)
        if len(terms) == 1:
            return self.affine(terms[0], weights[0], None)
        shape = broadcast(*(t.shape for t in terms))
        return self.apply(Sum(weights), *(self.expand(t, shape) for t in terms))

    def add(self, a: Operand, b: Operand, scale: float = 1.0) -> Var:
        """a + scale * b."""
        if isinstance(a, Var) and isinstance(b, Var):
            return self.sum([a, b], [1.0, scale])
        if isinstance(a, Var):
            assert not isinstance(b, Var)
            return self.affine(a, None, b if scale == 1.0 else torch.as_tensor(b, dtype=torch.float64) * scale)
        assert isinstance(b, Var)
        return self.affine(b, scale, a)

    def sub(self, a: Operand, b: Operand) -> Var:
        return self.add(a, b, -1.0)

    def mul(self, a: Operand, b: Operand) -> Var:
        if isinstance(a, Var) and isinstance(b, Var):
            if a == b:
                return self.scalar("Power", a, exponent=2.0)
            shape = broadcast(a.shape, b.shape)
            return self.apply(Product(), self.expand(a, shape), self.expand(b, shape))
        if isinstance(a, Var):
            assert not isinstance(b, Var)
            return self.affine(a, b, None)
        assert isinstance(b, Var)
        return self.affine(b, a, None)

    def div(self, a: Operand, b: Operand) -> Var:
        if isinstance(b, Var):
            return self.mul(self.scalar("Reciprocal", b), a)
        return self.mul(a, 1.0 / torch.as_tensor(b, dtype=torch.float64))

    def dense(self, x: Var, weight: Tensor, bias: Tensor | None = None) -> Var:
        """x W^T + c along the last dimension."""
        return self.apply(Dense(weight.contiguous(), bias), x)

    def along(self, x: Var, axis: int, matrix: Tensor) -> Var:
        """A constant matrix (out, in) applied along one dimension."""
        last = self.dense(self.swap(x, axis, -1), matrix)
        return self.swap(last, axis, -1)

    def reduce(self, x: Var, axes: Sequence[int], keepdim: bool = True, scale: float = 1.0) -> Var:
        """scale times the sum over some dimensions, all of them where none is given."""
        places = tuple(sorted(normal(a, x.ndim) for a in axes)) or tuple(range(x.ndim))
        y = x
        if places and (scale != 1.0 or any(x.shape[a] != 1 for a in places)):
            y = self.apply(Reduce(places, x.shape, scale), x)
        return y if keepdim else self.reshape(y, [n for d, n in enumerate(x.shape) if d not in places])

    def mean(self, x: Var, axes: Sequence[int], keepdim: bool = True) -> Var:
        count = math.prod(x.shape[a] for a in axes) if axes else x.size
        return self.reduce(x, axes, keepdim, 1.0 / count)

    # -- products of matrices ------------------------------------------------------------------------------------

    def matmul(self, a: Operand, b: Operand) -> Var:
        """a b for (*, n, k) and (*, k, m) with the same leading dimensions, at most one of them constant."""
        if isinstance(b, Tensor):
            assert isinstance(a, Var)
            flat = b.reshape(-1, *b.shape[-2:])
            if bool((flat == flat[:1]).all()):
                return self.dense(a, flat[0].t())
            return self._grouped(a, flat)
        if isinstance(a, Tensor):
            assert isinstance(b, Var)
            return self.swap(self.matmul(self.swap(b), a.transpose(-2, -1)))
        assert isinstance(a, Var)
        assert isinstance(b, Var)
        shape = (*a.shape[:-1], b.shape[-1], a.shape[-1])
        left = self.expand(self.reshape(a, (*a.shape[:-1], 1, a.shape[-1])), shape)
        swapped = self.swap(b)
        right = self.expand(self.reshape(swapped, (*b.shape[:-2], 1, *swapped.shape[-2:])), shape)
        return self.reduce(self.mul(left, right), [-1], keepdim=False)

    def _grouped(self, a: Var, b: Tensor) -> Var:
        """Another constant matrix for every leading index: a convolution with one group each and kernel size 1."""
        groups, k, m = b.shape
        n = a.shape[-2]
        x = self.reshape(self.swap(self.reshape(a, (groups, n, k))), (1, groups * k, n))
        weight = b.transpose(1, 2).reshape(groups * m, k, 1).contiguous()
        y = self.apply(Convolution(weight, None, (1,), (0,), (1,), groups, (n,), (n,)), x)
        return self.reshape(self.swap(self.reshape(y, (groups, m, n))), (*a.shape[:-1], m))

    # -- the larger and the smaller ------------------------------------------------------------------------------

    def maximum(self, a: Operand, b: Operand) -> Var:
        """max(a, b) = b + relu(a - b)."""
        if isinstance(b, Var) and not isinstance(a, Var):
            a, b = b, a
        return self.add(self.scalar("Relu", self.sub(a, b)), b)

    def minimum(self, a: Operand, b: Operand) -> Var:
        """min(a, b) = b - relu(b - a)."""
        if isinstance(b, Var) and not isinstance(a, Var):
            a, b = b, a
        return self.add(b, self.scalar("Relu", self.sub(b, a)), -1.0)

    def extremum(self, x: Var, windows: Tensor, largest: bool = True) -> Var:
        """The largest (smallest) entry of every window, as a balanced tree of binary maxima, a level at a time.

        `windows` (k, *S_out) holds flat positions in x; -1 stands for a missing member.  At least one is present.
        """
        present = windows.max(0, keepdim=True).values
        layer = self.gather(x, torch.where(windows < 0, present, windows))
        pick = self.maximum if largest else self.minimum
        while (count := layer.shape[0]) > 1:
            half = count // 2
            places = self.positions(layer)
            paired = pick(self.gather(layer, places[:half]), self.gather(layer, places[half : 2 * half]))
            layer = self.cat([paired, self.gather(layer, places[2 * half :])], 0) if count % 2 else paired
        return self.reshape(layer, layer.shape[1:])
