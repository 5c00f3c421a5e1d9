"""Every linear operator of the layer graph through one function, against its matrix."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.numerics.norms import (
    absolute_sums_upper,
    hadamard_norm_upper,
    induced_norm_upper,
    product_norm_upper,
    row_weighted_norm_upper,
    spectral_norm_upper,
    spectral_norms_upper,
    vector_norms_upper,
    weighted_norm_upper,
)
from curvverify.numerics.norms import operators as module
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
from tests.numerics.matrices import gaussian


def conv(cin: int, cout: int, n: int, stride: int = 1, groups: int = 1, transposed: bool = False) -> Convolution:
    m = (n - 1) // stride + 1
    ends = ((m, m), (n, n)) if transposed else ((n, n), (m, m))
    weight = gaussian(cout, cin // groups, 3, 3, seed=cin + cout)
    return Convolution(weight, gaussian(cout), (stride, stride), (1, 1), (1, 1), groups, *ends, transposed)


INDEX = torch.tensor([[0, 3, 3], [-1, 3, 5]])
OPERATORS: dict[str, tuple[Linear, tuple[int, ...], float]] = {
    "dense": (Dense(gaussian(5, 7), gaussian(5)), (7,), 1 + 1e-11),
    "dense along the last axis": (Dense(gaussian(5, 7)), (3, 7), 1 + 1e-11),
    "float32": (Dense(gaussian(5, 7).float()), (7,), 1 + 1e-11),
    "convolution": (conv(2, 3, 6), (2, 6, 6), 1 + 1e-11),
    "strided": (conv(2, 4, 6, 2, 2), (2, 6, 6), 1 + 1e-11),
    "transposed": (conv(4, 6, 6, 2, 2, transposed=True), (6, 3, 3), 1 + 1e-11),
    "diagonal": (Diagonal(gaussian(4, 1), gaussian(1)), (4, 5), 1 + 1e-13),
    "shift": (Diagonal(None, gaussian(4)), (4,), 1 + 1e-13),
    "reshape": (Reshape((2, 6), (3, 4)), (2, 6), 1 + 1e-13),
    "permute": (Permute((2, 0, 1)), (2, 3, 4), 1 + 1e-13),
    "gather": (Gather(INDEX, (2, 3)), (2, 3), 1 + 1e-13),
    "mean": (Reduce((1,), (3, 5), 0.2), (3, 5), 1 + 1e-13),
    "sum over all": (Reduce((0, 1), (3, 5)), (3, 5), 1 + 1e-13),
    "average pooling": (TorchLinear(lambda x: F.avg_pool2d(x, 3, 2, 1), (2, 7, 7), 9, "AveragePool"), (2, 7, 7), 1.5),
    "negation": (Sum((-2.0,)), (3,), 1 + 1e-13),
}


def matrix(op: Linear, shape: tuple[int, ...]) -> Tensor:
    """(outputs, inputs), from the identity."""
    n = math.prod(shape)
    wide = op.to(torch.float64)
    assert isinstance(wide, Linear)
    identity = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return wide.forward(identity, bias=False).reshape(n, -1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_spectral_norm(name: str) -> None:
    op, shape, ratio = OPERATORS[name]
    exact = float(torch.linalg.svdvals(matrix(op, shape))[0])
    assert exact * (1 - 1e-14) <= spectral_norm_upper(op, shape) <= exact * ratio


@pytest.mark.parametrize("name", OPERATORS)
def test_sums_rows_and_columns(name: str) -> None:
    op, shape, _ = OPERATORS[name]
    L = matrix(op, shape)
    rows, columns = absolute_sums_upper(op, shape)[0]
    assert columns.shape == shape
    for found, exact in ((rows, L.abs().sum(1)), (columns, L.abs().sum(0))):
        assert torch.allclose(found.flatten(), exact, rtol=1e-12)
        assert bool((found.flatten() >= exact * (1 - 1e-15)).all())
    rows, columns = vector_norms_upper(op, shape)
    for found, exact in ((rows, L.norm(dim=1)), (columns, L.norm(dim=0))):
        assert torch.allclose(found.flatten(), exact, rtol=1e-11, atol=1e-100)
        assert bool((found.flatten() >= exact * (1 - 1e-15)).all())


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("q", [1, 2, math.inf])
def test_induced_norms(name: str, p: float, q: float) -> None:
    op, shape, _ = OPERATORS[name]
    L = matrix(op, shape)
    n = L.shape[1]
    points = {1: torch.eye(n).double(), 2: torch.linalg.svd(L).Vh, math.inf: L.sign()}[p]
    points = points[points.abs().sum(1) > 0]
    points = points / torch.linalg.vector_norm(points, ord=p, dim=1, keepdim=True)
    attained = float(torch.linalg.vector_norm(points @ L.T, ord=q, dim=1).max())
    upper = induced_norm_upper(op, shape, p, q)
    assert upper >= attained * (1 - 1e-14)
    if p == 1 or p == q == math.inf:
        assert upper <= attained * (1 + 1e-11)


def test_several_inputs() -> None:
    assert spectral_norms_upper(Sum((1.0, -2.5)), (3, 4), (3, 4)) == pytest.approx((1.0, 2.5), rel=1e-13)
    assert spectral_norms_upper(Concatenate(0, (2, 3)), (2, 4), (3, 4)) == pytest.approx((1.0, 1.0), rel=1e-13)


def test_what_is_not_finite_is_unbounded() -> None:
    broken = gaussian(4, 4)
    broken[1, 2] = math.nan
    kernel = conv(2, 2, 5)
    kernel = Convolution(kernel.weight * math.inf, None, (1, 1), (1, 1), (1, 1), 1, (5, 5), (5, 5))
    for op, shape in ((Dense(broken), (4,)), (Diagonal(broken), (4, 4)), (kernel, (2, 5, 5))):
        assert spectral_norm_upper(op, shape) == math.inf
        assert product_norm_upper([op, op], shape) == math.inf
        assert weighted_norm_upper(op, shape) == math.inf
        assert row_weighted_norm_upper(op, shape) == math.inf
        for p, q in ((1, 1), (1, 2), (2, 2), (2, math.inf), (1, math.inf), (math.inf, 1), (math.inf, 2), (2, 1)):
            assert induced_norm_upper(op, shape, p, q) == math.inf
    assert hadamard_norm_upper(Dense(broken), Dense(gaussian(4, 3)), (3,)) == math.inf
    assert weighted_norm_upper(Dense(gaussian(4, 3)), (3,), right=torch.tensor([1.0, math.nan, 1.0])) == math.inf


def chain() -> tuple[list[Linear], tuple[int, ...]]:
    """A convolution, a batch norm, a flattening and a dense layer."""
    return [conv(2, 3, 6), Diagonal(gaussian(3, 1, 1)), Reshape((3, 6, 6), (108,)), Dense(gaussian(5, 108))], (2, 6, 6)


def test_products_kept_as_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    ops, shape = chain()
    product = matrix(ops[0], shape).T
    for op, at in zip(ops[1:], ((3, 6, 6), (3, 6, 6), (108,)), strict=True):
        product = product @ matrix(op, at).T
    exact = float(torch.linalg.svdvals(product)[0])
    assert exact * (1 - 1e-14) <= product_norm_upper(ops, shape) <= exact * (1 + 1e-10)
    assert product_norm_upper([], shape) == 1.0
    for entries in (0, 108 * 72, 108 * 6):  # nothing, only the convolution and the batch norm, only the last layers
        monkeypatch.setattr(module, "ENTRIES", entries)
        assert product_norm_upper(ops, shape) >= exact
    zero: list[Linear] = [Dense(torch.zeros(3, 3)), Dense(gaussian(3, 3))]
    assert product_norm_upper(zero, (3,)) < 1e-290


def test_products_at_extreme_scales() -> None:
    tiny, huge = Dense(gaussian(4, 4) * 1e-250), Dense(gaussian(4, 4, seed=1) * 1e250)
    exact = float(torch.linalg.svdvals(gaussian(4, 4, seed=1) @ gaussian(4, 4))[0])
    assert exact * (1 - 1e-13) <= product_norm_upper([tiny, huge], (4,)) <= exact * (1 + 1e-10)
    assert product_norm_upper([tiny, tiny, huge, huge], (4,)) >= exact**2 * 1e-3
    assert product_norm_upper([huge, huge], (4,)) == math.inf


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("small", [True, False])
def test_weighted_norms(name: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of every entry and of every channel; exact where a matrix is made of them."""
    if not small:
        monkeypatch.setattr(module, "ENTRIES", 0)
    op, shape, _ = OPERATORS[name]
    L = matrix(op, shape)
    wide = op.to(torch.float64)
    assert isinstance(wide, Linear)
    shape_out = wide.forward(torch.zeros(1, *shape).double(), bias=False).shape[1:]
    for left, right in (
        (gaussian(*shape_out), gaussian(*shape, seed=1)),
        (gaussian(*shape_out[:1], *(1 for _ in shape_out[1:])), None),
        (None, gaussian(*shape[:1], *(1 for _ in shape[1:]))),
    ):
        s = torch.ones(shape_out).double() if left is None else left.expand(shape_out)
        t = torch.ones(shape).double() if right is None else right.expand(shape)
        exact = float(torch.linalg.svdvals(s.flatten()[:, None] * L * t.flatten())[0])
        upper = weighted_norm_upper(op, shape, left, right)
        assert upper >= exact * (1 - 1e-13)
        if small:
            assert upper <= exact * (1 + 1e-10)


@pytest.mark.parametrize("small", [True, False])
def test_curvature_norms(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr(module, "ENTRIES", 0)
    pairs: list[tuple[Linear, tuple[int, ...], Linear, tuple[int, ...]]] = [
        (Dense(gaussian(3, 6)), (6,), Dense(gaussian(6, 4)), (4,)),
        (conv(3, 2, 4), (3, 4, 4), conv(2, 3, 4), (2, 4, 4)),
        (conv(4, 3, 6, 2, transposed=True), (3, 3, 3), conv(2, 3, 6, 2), (2, 6, 6)),
    ]
    for outer, hidden, inner, shape in pairs:
        G, W = matrix(outer, hidden), matrix(inner, shape)
        exact = float(torch.linalg.eigvalsh((G.T @ G) * (W @ W.T))[-1].sqrt())
        upper = hadamard_norm_upper(outer, inner, shape)
        assert exact * (1 - 1e-13) <= upper <= exact * (1 + 1e-10 if small else 1.6)
        exact = float(torch.linalg.svdvals(W.norm(dim=1, keepdim=True) * W)[0])
        upper = row_weighted_norm_upper(inner, shape)
        assert exact * (1 - 1e-13) <= upper <= exact * (1 + 1e-10 if small else 1.3)
