"""Norms of linear operators and of their products, from what every operator can do: forward, adjoint and |L|.

Operators are known by their interface alone (numerics lies below them).  Schur's test on |L| is exact for everything
that only moves, scales or sums up entries: 1 for a permutation, the root of the largest multiplicity for a gather,
max|factor| for a diagonal, scale sqrt(count) for a reduction, |coefficient| for each input of a sum.  The two kinds
that carry a weight, a matrix or a kernel, have bounds of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from curvverify.numerics.norms import dense
from curvverify.numerics.norms.convolution import convolution_norm_upper, convolution_schur_upper
from curvverify.numerics.norms.geometry import Geometry
from curvverify.numerics.norms.scaling import UNDERFLOW, as_wide, enlarge, from_unit_upper, times_upper, to_unit
from curvverify.numerics.rounding import TINY, gamma, round_up

SIDE, ENTRIES = 1024, 2**24
"""A product at most this large (shorter side, entries) is made a matrix to be bounded."""

Shape = Sequence[int]


class LinearOperator(Protocol):
    """y = sum_i L_i x_i + c with one leading batch axis; see `ops.base.Linear`, which is one."""

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        """sum_i L_i x_i, plus c where `bias`."""
        ...

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        """One L_i^T y per input."""
        ...

    def absolute(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        """sum_i |L_i| x_i, plus |c| where `bias`."""
        ...

    def to(self, dtype: torch.dtype) -> Any:
        """The same operator with its constants in another dtype."""
        ...

    @property
    def terms(self) -> int:
        """Largest number of products summed for one entry, forwards or backwards."""
        ...


@runtime_checkable
class Matrix(LinearOperator, Protocol):
    """y = x W^T along the last axis, weight (m, n): what has a weight and is no kernel."""

    @property
    def weight(self) -> Tensor: ...


@runtime_checkable
class Kernel(Matrix, Protocol):
    """A convolution or its transpose, with torch's attributes and weight."""

    @property
    def stride(self) -> tuple[int, ...]: ...
    @property
    def padding(self) -> tuple[int, ...]: ...
    @property
    def dilation(self) -> tuple[int, ...]: ...
    @property
    def groups(self) -> int: ...
    @property
    def spatial_in(self) -> tuple[int, ...]: ...
    @property
    def spatial_out(self) -> tuple[int, ...]: ...
    @property
    def transposed(self) -> bool: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Scaling:
    """y = factor * x, factor broadcast to x's shape: the diagonal that weighted norms put around an operator."""

    factor: Tensor

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        return inputs[0] * self.factor

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y * self.factor,)

    def absolute(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        return inputs[0] * self.factor.abs()

    def to(self, dtype: torch.dtype) -> Scaling:
        return Scaling(self.factor.to(dtype))

    @property
    def terms(self) -> int:
        return 1


def geometry_of(op: Kernel) -> Geometry:
    """The convolution that the operator is, or is the adjoint of."""
    ends = (op.spatial_out, op.spatial_in) if op.transposed else (op.spatial_in, op.spatial_out)
    return Geometry(op.stride, op.padding, op.dilation, op.groups, *ends)


def _chain(ops: Sequence[LinearOperator], x: Tensor, absolute: bool = False) -> Tensor:
    for op in ops:
        x = op.absolute(x, bias=False) if absolute else op.forward(x, bias=False)
    return x


def _sums(function: Callable[..., Tensor], shapes: Sequence[Shape], which: int, terms: int) -> tuple[Tensor, Tensor]:
    """Row and column sums, rounded up, of the nonnegative matrix by which the function maps its input `which`."""
    inputs = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
    inputs[which] += 1.0
    with torch.enable_grad():
        inputs[which].requires_grad_()
        rows = function(*inputs)
        (columns,) = torch.autograd.grad(rows, inputs[which], torch.ones_like(rows))
    slack = gamma(terms + 4)
    return enlarge(rows.detach()[0], slack), enlarge(columns[0], slack)


def absolute_sums_upper(op: LinearOperator, *shapes_in: Shape) -> list[tuple[Tensor, Tensor]]:
    """For each input i, upper bounds on the row sums (*S_out) and the column sums (*S_i) of |L_i|."""
    wide = op.to(torch.float64)
    return [_sums(lambda *x: wide.absolute(*x, bias=False), shapes_in, i, wide.terms) for i in range(len(shapes_in))]


def _schur(rows: Tensor, columns: Tensor) -> float:
    """sqrt(max row sum * max column sum), rounded up; inf for NaN."""
    if 0 in (rows.numel(), columns.numel()):
        return 0.0
    bound = enlarge(rows.max().sqrt() * columns.max().sqrt(), gamma(6))
    return float(bound)


@torch.no_grad()
def spectral_norms_upper(op: LinearOperator, *shapes_in: Shape) -> tuple[float, ...]:
    """Upper bound on ||L_i|| for every input i, given their shapes without the batch.

    Sound because: of Schur's test ||L||^2 <= || |L| ||_1 || |L| ||_inf, or of the bounds for matrices and kernels.
    """
    if isinstance(op, Kernel):
        return (convolution_norm_upper(op.weight, geometry_of(op)),)
    if isinstance(op, Matrix):
        return (float(dense.spectral_norm_upper(op.weight)),)
    return tuple(_schur(rows, columns) for rows, columns in absolute_sums_upper(op, *shapes_in))


def spectral_norm_upper(op: LinearOperator, shape_in: Shape) -> float:
    """Upper bound on the spectral norm of an operator with one input."""
    (norm,) = spectral_norms_upper(op, shape_in)
    return norm


def materialise(ops: Sequence[LinearOperator], shape_in: Shape) -> tuple[Tensor, float] | None:
    """(M, e): the product as a matrix (outputs, inputs) and ||M - exact|| <= e; None where it would be too large.

    ops in order of application, one input each.  Rows or columns come from the identity on the shorter side.
    Sound because: the error is at most gamma(sum of terms) |L_k| ... |L_1| entry by entry, whose norm Schur's test
    bounds; what underflows in one factor is amplified by the later ones at most.
    """
    wide = [op.to(torch.float64) for op in ops]
    n, shape_out = math.prod(shape_in), _chain(wide, torch.zeros(1, *shape_in, dtype=torch.float64)).shape[1:]
    m = math.prod(shape_out)
    if min(m, n) > SIDE or m * n > ENTRIES or 0 in (m, n):
        return None
    pieces = []
    for block in torch.eye(min(m, n), dtype=torch.float64).split(256):
        if n <= m:
            pieces.append(_chain(wide, block.reshape(-1, *shape_in)).reshape(-1, m))
        else:
            y = block.reshape(-1, *shape_out)
            for op in reversed(wide):
                (y,) = op.adjoint(y)
            pieces.append(y.reshape(-1, n))
    M = torch.cat(pieces)
    terms = sum(op.terms for op in wide)
    rows, columns = _sums(lambda x: _chain(wide, x, absolute=True), [shape_in], 0, terms + 2 * len(wide))
    amplification, x = 1.0, torch.zeros(1, *shape_in, dtype=torch.float64)
    for op in wide:
        amplification *= max(1.0, _schur(*absolute_sums_upper(op, x.shape[1:])[0]))
        x = op.forward(x, bias=False)
    error = _schur(rows, columns) * gamma(terms + 2 * len(wide) + 4) + 2 * len(wide) * TINY * amplification
    return (M.T if n <= m else M), math.nextafter(error, math.inf) if error < math.inf else math.inf


@torch.no_grad()
def product_norm_upper(ops: Sequence[LinearOperator], shape_in: Shape) -> float:
    """Upper bound on ||L_k ... L_1||, ops in order of application, one input each; 1 for none.

    The least, over all ways to cut the chain, of the products of the pieces' norms, where a piece that is small is
    bounded as a matrix and a single operator by its own rule.
    """
    shapes, x = [tuple(shape_in)], torch.zeros(1, *shape_in, dtype=torch.float64)
    wide = [op.to(torch.float64) for op in ops]
    for op in wide:
        x = op.forward(x, bias=False)
        shapes.append(tuple(x.shape[1:]))
    best = {(i, i + 1): spectral_norm_upper(op, shapes[i]) for i, op in enumerate(wide)}
    for length in range(2, len(wide) + 1):
        for i in range(len(wide) - length + 1):
            j = i + length
            cuts = [times_upper(best[i, k], best[k, j]) for k in range(i + 1, j)]
            found = materialise(wide[i:j], shapes[i])
            if found is not None:
                cuts.append(float(dense.spectral_norm_upper(*found)))
            best[i, j] = min(cuts)
    return best.get((0, len(wide)), 1.0)


def _along(weight: Tensor | None, shape: Shape, axis: int) -> Tensor:
    """Largest |weight| (broadcast to the shape) for every index along the axis: (shape[axis],)."""
    if weight is None:
        return torch.ones(shape[axis], dtype=torch.float64)
    rows = weight.to(torch.float64).abs().expand(*shape).movedim(axis, 0)
    return rows.reshape(shape[axis], -1).amax(1)


def _weighted_kernel_upper(op: Kernel, left: Tensor, right: Tensor) -> float:
    """Upper bound on ||diag(left) K diag(right)|| for a kernel K, the weights one number per channel.

    Sound because: scaling the weight's entries rounds each at most twice, an error of Schur norm gamma(2) at most.
    """
    rows, columns = (right, left) if op.transposed else (left, right)
    geometry = geometry_of(op)
    weight, exponent = to_unit(as_wide(op.weight), op.weight.dim())
    (rows, e), (columns, f) = to_unit(rows, 1), to_unit(columns, 1)
    cout, cin = weight.shape[:2]
    group = torch.arange(cout) // max(cout // geometry.groups, 1)
    factor = rows[:, None] * columns[(group * cin)[:, None] + torch.arange(cin)]
    scaled = weight * factor.reshape(cout, cin, *(1 for _ in geometry.stride))
    rounding = convolution_schur_upper(scaled, geometry) * gamma(4) + UNDERFLOW
    bound = torch.tensor(convolution_norm_upper(scaled, geometry) + rounding, dtype=torch.float64)
    total = exponent.flatten()[0] + e[0] + f[0]
    half = total // 2
    return float(from_unit_upper(from_unit_upper(round_up(bound), half), total - half))


@torch.no_grad()
def weighted_norm_upper(
    op: LinearOperator, shape_in: Shape, left: Tensor | None = None, right: Tensor | None = None
) -> float:
    """Upper bound on ||diag(left) L diag(right)||, left broadcast to the output, right to the input; None means ones.

    Small operators are bounded as matrices; a weight that varies within a channel of a large convolution, or within
    what a matrix is repeated over, is replaced by its largest magnitude there.
    Sound because: ||diag(s) L|| <= ||diag(t) L|| where |s| <= t, as diag(s / t) is a contraction.
    """
    wide = op.to(torch.float64)
    shape_out = wide.forward(torch.zeros(1, *shape_in, dtype=torch.float64), bias=False).shape[1:]
    weights = [w for w in (left, right) if w is not None]
    if not all(bool(w.isfinite().all()) for w in weights):
        return math.inf
    before = [] if right is None else [Scaling(right.to(torch.float64))]
    after = [] if left is None else [Scaling(left.to(torch.float64))]
    found = materialise([*before, wide, *after], shape_in)
    bound = math.inf if found is None else float(dense.spectral_norm_upper(*found))
    if isinstance(wide, Kernel):
        if found is None and bool(wide.weight.isfinite().all()):
            axis = -len(wide.stride) - 1
            bound = _weighted_kernel_upper(wide, _along(left, shape_out, axis), _along(right, shape_in, axis))
    elif isinstance(wide, Matrix):
        folded = dense.weighted_spectral_norm_upper(
            wide.weight, _along(left, shape_out, -1), _along(right, shape_in, -1)
        )
        bound = min(bound, float(folded))
    else:
        sizes = [float(w.to(torch.float64).abs().max()) for w in weights]
        bound = min(bound, times_upper(spectral_norm_upper(wide, shape_in), *sizes))
    return bound
