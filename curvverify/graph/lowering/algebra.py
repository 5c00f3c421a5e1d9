"""Sums, products, matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvverify.graph.building import Builder, Operand, Var, as_constant
from curvverify.graph.lowering.rules import CannotLower, Rule
from curvverify.ops.linear import Convolution, Dense


def add(t: Builder, a: Operand, b: Operand, *, alpha: float = 1.0) -> Var:
    return t.add(a, b, alpha)


def sub(t: Builder, a: Operand, b: Operand, *, alpha: float = 1.0) -> Var:
    return t.add(a, b, -alpha)


def rsub(t: Builder, a: Operand, b: Operand, alpha: float = 1.0) -> Var:
    return t.add(b, a, -alpha)


def mul(t: Builder, a: Operand, b: Operand) -> Var:
    return t.mul(a, b)


def div(t: Builder, a: Operand, b: Operand) -> Var:
    return t.div(a, b)


def div_mode(t: Builder, a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Var:
    quotient = t.div(a, b)
    if rounding_mode is None:
        return quotient
    if rounding_mode == "floor":
        return t.scalar("Floor", quotient)
    raise CannotLower(f"rounding mode {rounding_mode!r} of a quotient is discontinuous; only 'floor' is implemented")


def addcmul(t: Builder, a: Operand, b: Operand, c: Operand, *, value: float = 1.0) -> Var:
    return t.add(a, _product(t, b, c), value)


def addcdiv(t: Builder, a: Operand, b: Operand, c: Operand, *, value: float = 1.0) -> Var:
    both = not isinstance(b, Var) and not isinstance(c, Var)
    return t.add(a, as_constant(b) / as_constant(c) if both else t.div(b, c), value)


def _product(t: Builder, b: Operand, c: Operand) -> Operand:
    both = not isinstance(b, Var) and not isinstance(c, Var)
    return as_constant(b) * as_constant(c) if both else t.mul(b, c)


def lerp(t: Builder, a: Operand, b: Operand, weight: Operand) -> Var:
    both = not isinstance(b, Var) and not isinstance(a, Var)
    difference = as_constant(b) - as_constant(a) if both else t.sub(b, a)
    return t.add(a, _product(t, difference, weight))


def matmul(t: Builder, a: Operand, b: Operand) -> Var:
    return t.matmul(a, b)


def mv(t: Builder, matrix: Operand, vector: Operand) -> Var:
    if isinstance(vector, Var) and isinstance(matrix, Tensor):
        return t.dense(vector, matrix)
    column = t.reshape(vector, (*vector.shape, 1)) if isinstance(vector, Var) else torch.as_tensor(vector).unsqueeze(-1)
    product = t.matmul(matrix, column)
    return t.reshape(product, product.shape[:-1])


def dot(t: Builder, a: Operand, b: Operand) -> Var:
    return t.reduce(t.mul(a, b), [0], keepdim=False)


def addmm(t: Builder, c: Operand, a: Operand, b: Operand, *, beta: float = 1.0, alpha: float = 1.0) -> Var:
    """beta c + alpha a b, for a matrix a and a matrix or a vector b."""
    if not isinstance(a, Var) and not isinstance(b, Var):
        return t.add(alpha * (as_constant(a) @ as_constant(b)), c, beta)
    if isinstance(a, Var) and isinstance(b, Tensor) and isinstance(c, Tensor) and c.ndim == 1 and alpha == beta == 1.0:
        return t.apply(Dense(b.t().contiguous(), c.expand(b.shape[1]).contiguous()), a)
    product = mv(t, a, b) if isinstance(b, Var | Tensor) and b.ndim == 1 else t.matmul(a, b)
    return t.add(t.affine(product, alpha, None), c, beta)


def convolution(
    t: Builder,
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Var:
    if not isinstance(x, Var) or not isinstance(weight, Tensor):
        raise CannotLower("a convolution whose kernel depends on the input; make the kernel a constant")
    rank = weight.ndim - 2
    stride, padding, dilation = (tuple(v) * (rank // len(v)) for v in (stride, padding, dilation))
    kernel, spatial_in = weight.shape[2:], x.shape[-rank:]
    extra = tuple(output_padding) * (rank // len(output_padding))
    if transposed:
        spatial_out = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1 + e
            for n, s, p, d, k, e in zip(spatial_in, stride, padding, dilation, kernel, extra, strict=True)
        ]
    else:
        spatial_out = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, s, p, d, k in zip(spatial_in, stride, padding, dilation, kernel, strict=True)
        ]
    constant = bias if isinstance(bias, Tensor) else None
    op = Convolution(
        weight.contiguous(), constant, stride, padding, dilation, groups, spatial_in, tuple(spatial_out), transposed
    )
    y = t.apply(op, x)
    return t.add(y, t.reshape(bias, (bias.size, *(1 for _ in range(rank))))) if isinstance(bias, Var) else y


RULES: dict[str, Rule] = {
    "add.Tensor": add,
    "add.Scalar": add,
    "sub.Tensor": sub,
    "sub.Scalar": sub,
    "rsub.Tensor": rsub,
    "rsub.Scalar": rsub,
    "mul.Tensor": mul,
    "mul.Scalar": mul,
    "div.Tensor": div,
    "div.Scalar": div,
    "div.Tensor_mode": div_mode,
    "div.Scalar_mode": div_mode,
    "floor_divide": lambda t, a, b: div_mode(t, a, b, rounding_mode="floor"),
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "lerp.Scalar": lerp,
    "lerp.Tensor": lerp,
    "mm": matmul,
    "bmm": matmul,
    "mv": mv,
    "dot": dot,
    "vdot": dot,
    "addmm": addmm,
    "addmv": addmm,
    "baddbmm": addmm,
    "convolution": convolution,
    "_convolution": lambda t, *args: convolution(t, *args[:9]),
}
