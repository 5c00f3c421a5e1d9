"""Convolutions at their exact size: against the singular values of the matrix that torch's own convolution applies."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.numerics.norms import Geometry, convolution_norm_upper, convolution_schur_upper, spectral_norm_upper
from curvverify.numerics.norms.convolution import Grid, grids, torus_norm_upper
from curvverify.numerics.norms.scaling import to_unit
from curvverify.ops.linear import Convolution
from tests.numerics.matrices import gaussian

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolution(
    channels: tuple[int, int],
    kernel: tuple[int, ...],
    size: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    padding: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    transposed: bool = False,
    seed: int = 0,
) -> Convolution:
    """A convolution (or, `transposed`, the adjoint of it) with Gaussian weights; `size` is the convolution's input."""
    ones = tuple(1 for _ in kernel)
    stride, padding, dilation = stride or ones, padding or tuple(0 for _ in kernel), dilation or ones
    out = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    )
    weight = gaussian(channels[1], channels[0] // groups, *kernel, seed=seed)
    ends = (out, size) if transposed else (size, out)
    return Convolution(weight, None, stride, padding, dilation, groups, *ends, transposed)


def exact_norm(op: Convolution) -> float:
    """The largest singular value of the operator's matrix, columns from the identity."""
    cin = op.weight.shape[0] if op.transposed else op.weight.shape[1] * op.groups
    n = cin * math.prod(op.spatial_in)
    identity = torch.eye(n, dtype=torch.float64).reshape(n, cin, *op.spatial_in)
    matrix = op.forward(identity).reshape(n, -1)
    return float(torch.linalg.svdvals(matrix)[0]) if bool(matrix.any()) else 0.0


def geometry(op: Convolution) -> Geometry:
    ends = (op.spatial_out, op.spatial_in) if op.transposed else (op.spatial_in, op.spatial_out)
    return Geometry(op.stride, op.padding, op.dilation, op.groups, *ends)


def random_convolutions(count: int) -> list[Convolution]:
    """Strides 1-3, padding 0-2, dilation 1-2, groups 1-3, one to three axes, plain and transposed, odd sizes."""
    draw, found = random.Random(5), []
    while len(found) < count:
        rank = draw.choice([1, 1, 2, 2, 2, 3])
        groups = draw.choice([1, 1, 1, 2, 3])
        largest = {1: 24, 2: 8, 3: 4}[rank]
        kernel = tuple(draw.randint(1, 2 if rank == 3 else 4) for _ in range(rank))
        size = tuple(draw.randint(1, largest) for _ in range(rank))
        stride = tuple(draw.randint(1, 3) for _ in range(rank))
        padding = tuple(draw.randint(0, 2) for _ in range(rank))
        dilation = tuple(draw.randint(1, 2) for _ in range(rank))
        if any(n + 2 * p < d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
            continue
        channels = (groups * draw.randint(1, 3), groups * draw.randint(1, 3))
        flip = draw.random() < 0.4
        found.append(convolution(channels, kernel, size, stride, padding, dilation, groups, flip, len(found)))
    return found


RANDOM = random_convolutions(160)


def test_random_convolutions() -> None:
    """As matrices exact, on the torus never below; the ratios are those of tiny images, where borders count most."""
    ratios = []
    for op in RANDOM:
        exact = exact_norm(op)
        as_matrix = spectral_norm_upper(op, (op.weight.shape[1], *op.spatial_in))
        assert exact * (1 - 1e-14) <= as_matrix <= exact * (1 + 1e-11) + 1e-140
        on_torus = convolution_norm_upper(op.weight, geometry(op), dense=False)
        assert on_torus >= exact * (1 - 1e-13), op
        if exact:
            ratios.append(on_torus / exact)
    ordered = sorted(ratios)
    assert ordered[len(ordered) // 2] < 1.01
    assert ordered[len(ordered) * 3 // 4] < 1.1


def test_every_single_torus_is_an_upper_bound() -> None:
    """Each twist and every larger torus, not only the best: the claim behind all of them."""
    for op in RANDOM[::4]:
        exact = exact_norm(op)
        weight, exponent = to_unit(op.weight, op.weight.dim())
        where = geometry(op)
        axes = where.axes(tuple(weight.shape[2:]))
        if any(not a.taps for a in axes):
            continue
        scale = 2.0 ** int(exponent)
        for more, twists in itertools.product((0, 1), itertools.product((0, 1), repeat=len(axes))):
            grid = Grid(tuple(a.torus + more for a in axes), twists)
            assert torus_norm_upper(where.blocks(weight), axes, grid).upper * scale >= exact * (1 - 1e-13), (op, grid)


def test_realistic_layers_are_within_a_few_per_cent() -> None:
    """Ratios to the exact norm, torus alone."""
    layers = {
        "3x3": convolution((6, 8), (3, 3), (9, 9), padding=(1, 1)),
        "3x3 stride 2": convolution((6, 8), (3, 3), (12, 12), (2, 2), (1, 1)),
        "5x5 valid": convolution((3, 6), (5, 5), (14, 14)),
        "depthwise": convolution((8, 8), (3, 3), (10, 10), padding=(1, 1), groups=8),
        "dilated": convolution((4, 4), (3, 3), (12, 12), padding=(2, 2), dilation=(2, 2)),
        "transposed": convolution((6, 4), (4, 4), (12, 12), (2, 2), (1, 1), transposed=True),
        "1d": convolution((8, 8), (9,), (64,), padding=(4,)),
    }
    for name, op in layers.items():
        exact = exact_norm(op)
        ratio = convolution_norm_upper(op.weight, geometry(op), dense=False) / exact
        assert 1 - 1e-13 <= ratio <= 1.06, (name, ratio)


def test_smoothing_kernels_are_nearly_exact() -> None:
    """The half twist gives sum cos(pi / (n + 1)): the tridiagonal matrix's own norm, where zero twist gives the sum."""
    weight = torch.tensor([[[0.7, 2.0, 0.7]]], dtype=torch.float64)
    for n in (3, 8, 21):
        where = Geometry((1,), (1,), (1,), 1, (n,), (n,))
        exact = 2.0 + 1.4 * math.cos(math.pi / (n + 1))
        found = convolution_norm_upper(weight, where, dense=False)
        assert exact * (1 - 1e-14) <= found <= exact * (1 + 1e-11)
    box = gaussian(4, 4, 3, 3).abs()
    op = Convolution(box, None, (1, 1), (1, 1), (1, 1), 1, (8, 8), (8, 8))
    assert convolution_norm_upper(box, geometry(op), dense=False) <= 1.01 * exact_norm(op)


def test_long_axes_use_a_coarse_grid() -> None:
    op = convolution((2, 3), (3,), (400,), padding=(1,))
    axes = geometry(op).axes((3,))
    assert [g.sizes for g in grids(axes)] == [(140,)]
    assert 1.0 < grids(axes)[0].excess(axes) < 1.0011
    exact = exact_norm(op)
    found = convolution_norm_upper(op.weight, geometry(op), dense=False)
    assert exact * (1 - 1e-14) <= found <= exact * 1.002


@pytest.mark.parametrize("seed", range(20))
def test_the_excess_of_a_coarse_grid(seed: int) -> None:
    """Ehlich and Zeller on grids so coarse that the maximum between the points counts."""
    op = convolution((1, 1), (3,), (400,), padding=(1,), seed=seed)
    weight, exponent = to_unit(op.weight, 3)
    where = geometry(op)
    axes = where.axes((3,))
    angles = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)
    k = torch.arange(3, dtype=torch.float64)
    waves = torch.polar(torch.ones(4001, 3, dtype=torch.float64), angles[:, None] * k)
    exact = float((waves @ op.weight[0, 0].to(waves.dtype)).abs().max())
    for size, twist in itertools.product((5, 6, 9), (0, 1)):
        bound = torus_norm_upper(where.blocks(weight), axes, Grid((size,), (twist,))).upper
        assert bound * 2.0 ** int(exponent) >= exact * (1 - 1e-13)


def test_special_weights() -> None:
    op = convolution((3, 4), (3, 3), (6, 6), padding=(1, 1))
    where = geometry(op)
    for bad in (math.nan, math.inf):
        weight = op.weight.clone()
        weight[1, 1, 1, 1] = bad
        assert convolution_norm_upper(weight, where) == math.inf
        assert convolution_norm_upper(weight, where, dense=False) == math.inf
        assert convolution_schur_upper(weight, where) == math.inf
    assert convolution_norm_upper(torch.zeros_like(op.weight), where) == 0.0
    for dense in (True, False):
        plain = convolution_norm_upper(op.weight, where, dense)
        for scale in (2.0**900, 2.0**-900):
            assert convolution_norm_upper(op.weight * scale, where, dense) == pytest.approx(plain * scale, rel=1e-12)
        assert convolution_norm_upper(op.weight * 2.0**1022, where, dense) == math.inf
        assert 0.0 < convolution_norm_upper(op.weight * 2.0**-1070, where, dense) < 1e-320
    assert convolution_schur_upper(op.weight, where) >= exact_norm(op)


def test_kernels_that_miss_the_input() -> None:
    """Taps that only meet padding do not count."""
    weight = torch.zeros(1, 1, 5, dtype=torch.float64)
    weight[0, 0, 2], weight[0, 0, 0] = 0.5, 100.0
    where = Geometry((1,), (2,), (1,), 1, (1,), (1,))
    assert convolution_norm_upper(weight, where, dense=False) == pytest.approx(0.5, rel=1e-12)
    outside = Geometry((4,), (4,), (1,), 1, (2,), (1,))
    assert convolution_norm_upper(weight[..., :3], outside) == 0.0


def test_the_dense_matrix_is_the_operator() -> None:
    for op in [o for o in RANDOM if not o.transposed][:20]:
        g, rows, columns = geometry(op).dense_shape(op.weight)
        blocks = geometry(op).dense(op.weight)
        assert blocks.shape == (g, rows, columns)
        x = gaussian(1, g * op.weight.shape[1], *op.spatial_in)
        y = (blocks @ x.reshape(g, columns, 1)).flatten()
        expected: Tensor = CONV[len(op.stride)](x, op.weight, None, op.stride, op.padding, op.dilation, op.groups)
        assert torch.allclose(y, expected.flatten(), atol=1e-12)
