"""The laws of linear operators: adjoint, absolute value, number of terms, against the dense matrix of each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvverify.ops.base import Linear
from curvverify.ops.linear import (
    Concatenate,
    Convolution,
    Dense,
    Diagonal,
    Gather,
    Permute,
    Reduce,
    Reshape,
    Sum,
    TorchLinear,
)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape) + len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def convolution(
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
    extra: tuple[int, ...] | None = None,
    bias: bool = True,
) -> tuple[Linear, list[tuple[int, ...]]]:
    """4 channels to 6; transposed where `extra` output padding is given."""
    sizes = list(zip(spatial, kernel, stride, padding, dilation, strict=True))
    if extra is None:
        out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        weight = random(6, 4 // groups, *kernel)
    else:
        out = tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 + e for (n, k, s, p, d), e in zip(sizes, extra, strict=True))
        weight = random(4, 6 // groups, *kernel)
    shift = random(6) if bias else None
    op = Convolution(weight, shift, stride, padding, dilation, groups, spatial, out, extra is not None)
    return op, [(1, 4, *spatial)]


INDEX = torch.tensor([[3, -1, 3], [0, 5, -1]])

OPERATORS: dict[str, tuple[Linear, list[tuple[int, ...]]]] = {
    "dense": (Dense(random(3, 5), random(3)), [(1, 5)]),
    "dense rows": (Dense(random(3, 5)), [(2, 4, 5)]),
    "dense vector": (Dense(random(2, 5), random(2)), [(5,)]),
    "conv1d": convolution((9,), (3,), (2,), (1,), (1,)),
    "conv2d": convolution((6, 5), (3, 2), (1, 1), (0, 0), (1, 1)),
    "conv2d padded": convolution((6, 5), (3, 3), (2, 3), (1, 2), (1, 1)),
    "conv2d dilated": convolution((8, 7), (3, 2), (2, 1), (1, 0), (2, 3), bias=False),
    "conv2d grouped": convolution((6, 5), (3, 3), (1, 2), (1, 1), (1, 1), groups=2),
    "conv2d remainder": convolution((6, 6), (2, 2), (4, 3), (0, 0), (1, 1)),
    "conv3d": convolution((4, 3, 5), (2, 2, 3), (1, 1, 2), (0, 1, 1), (1, 1, 1)),
    "transposed 1d": convolution((4,), (3,), (2,), (0,), (1,), extra=(0,)),
    "transposed": convolution((4, 3), (3, 2), (2, 3), (1, 0), (1, 1), extra=(1, 2)),
    "transposed grouped": convolution((4, 3), (3, 3), (2, 2), (1, 1), (2, 1), groups=2, extra=(0, 1)),
    "transposed 3d": convolution((2, 3, 2), (2, 2, 3), (2, 1, 2), (0, 1, 1), (1, 1, 1), extra=(0, 0, 1), bias=False),
    "diagonal": (Diagonal(random(4, 1), random(3)), [(1, 4, 3)]),
    "shift": (Diagonal(None, random(4, 3)), [(1, 4, 3)]),
    "scale": (Diagonal(torch.tensor(-2.0).double()), [(1, 4, 3)]),
    "sum": (Sum((1.0, -1.0, 0.3)), [(2, 3)] * 3),
    "reshape": (Reshape((2, 6), (3, 4)), [(2, 6)]),
    "permute": (Permute((2, 0, 1)), [(2, 3, 4)]),
    "gather": (Gather(INDEX, (2, 3)), [(2, 3)]),
    "gather nothing": (Gather(torch.full((2,), -1), (3,)), [(3,)]),
    "concatenate": (Concatenate(1, (2, 1, 3)), [(2, 2), (2, 1), (2, 3)]),
    "reduce": (Reduce((0, 2), (2, 3, 4), 0.25), [(2, 3, 4)]),
    "torch": (
        TorchLinear(lambda x: torch.nn.functional.avg_pool1d(x, 3, 2), (2, 7), 3, "average"),
        [(2, 7)],
    ),
}


def matrix(op: Linear, shapes: list[tuple[int, ...]]) -> tuple[list[Tensor], Tensor]:
    """The dense matrices L_i (outputs, inputs), and the constant c, from values alone."""
    zeros = [torch.zeros(1, *s, dtype=torch.float64) for s in shapes]
    constant = op.forward(*zeros).flatten()
    found = []
    for place, shape in enumerate(shapes):
        n = math.prod(shape)
        inputs = [torch.zeros(n, *s, dtype=torch.float64) for s in shapes]
        inputs[place] = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
        found.append(op.forward(*inputs, bias=False).reshape(n, -1).t())
    return found, constant


@pytest.fixture(params=OPERATORS, ids=lambda name: name.replace(" ", "_"))
def case(request: pytest.FixtureRequest) -> tuple[Linear, list[tuple[int, ...]]]:
    return OPERATORS[request.param]


def test_linear(case: tuple[Linear, list[tuple[int, ...]]]) -> None:
    op, shapes = case
    matrices, constant = matrix(op, shapes)
    inputs = [random(3, *s) for s in shapes]
    expected = sum((x.flatten(1) @ m.t() for x, m in zip(inputs, matrices, strict=True)), constant)
    torch.testing.assert_close(op.forward(*inputs).flatten(1), expected)
    offset = op.offset
    flat = torch.zeros_like(constant) if offset is None else offset.expand(op.forward(*inputs).shape[1:]).flatten()
    torch.testing.assert_close(flat, constant)


def test_adjoint(case: tuple[Linear, list[tuple[int, ...]]]) -> None:
    """<L x, y> = <x, L^T y>, input by input, and its shape is the input's."""
    op, shapes = case
    matrices, _ = matrix(op, shapes)
    y = random(4, *op.forward(*(random(1, *s) for s in shapes)).shape[1:])
    for back, m, shape in zip(op.adjoint(y), matrices, shapes, strict=True):
        assert back.shape == (4, *shape)
        torch.testing.assert_close(back.flatten(1), y.flatten(1) @ m)


def test_absolute(case: tuple[Linear, list[tuple[int, ...]]]) -> None:
    """|L| x + |c| with the dense |L|, and without |c|."""
    op, shapes = case
    matrices, constant = matrix(op, shapes)
    inputs = [random(3, *s).abs() for s in shapes]
    expected = sum(x.flatten(1) @ m.abs().t() for x, m in zip(inputs, matrices, strict=True))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(op.absolute(*inputs, bias=False).flatten(1), expected)
    torch.testing.assert_close(op.absolute(*inputs).flatten(1), expected + constant.abs())
    if op.nonnegative:
        assert all(bool((m >= 0).all()) for m in matrices)
        assert not bool(constant.any())


def test_terms(case: tuple[Linear, list[tuple[int, ...]]]) -> None:
    """No entry of the value or of the adjoint is a sum of more products."""
    op, shapes = case
    matrices, constant = matrix(op, shapes)
    forward = sum((m != 0).sum(1) for m in matrices) + (constant != 0).long()
    assert isinstance(forward, Tensor)
    backward = [int((m != 0).sum(0).max()) for m in matrices]
    assert op.terms >= max(int(forward.max()), *backward)


def test_other_dtype(case: tuple[Linear, list[tuple[int, ...]]]) -> None:
    op, shapes = case
    inputs = [random(2, *s) for s in shapes]
    single = op.to(torch.float32).forward(*(x.float() for x in inputs))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), op.forward(*inputs), rtol=1e-4, atol=1e-5)
