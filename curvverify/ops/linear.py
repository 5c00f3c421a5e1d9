"""Linear operators, each with its value, its adjoint and its absolute value |L|.

A convolution stays a convolution and a permutation a permutation: no operator here is ever made a dense matrix.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.numerics.rounding import TINY, gamma, nan_is_unbounded
from curvverify.ops.base import Linear
from curvverify.types import Interval


def _end(op: Linear, *values: Tensor) -> tuple[Tensor, Tensor]:
    """An operator's value at given inputs, and a bound on its rounding error: infinite only where the value is."""
    return op.forward(*values), gamma(op.terms + 4) * op.absolute(*(v.abs() for v in values)) + TINY


@dataclass(frozen=True, eq=False)
class _WithConstants(Linear):
    """A linear operator whose constants are its tensor fields.

    A constant c that was itself computed in float64, as folding batch normalisation does, may be off by a few roundings
    of the terms it was summed from.  `size` bounds the sum of those absolute terms (None: |c|, for an exact c), and
    takes the place of |c| in every error bound.
    """

    @property
    @abstractmethod
    def constant_size(self) -> Tensor | None:
        """Upper bound on the absolute terms behind c, broadcastable to S_out; None where c = 0."""

    def to(self, dtype: torch.dtype) -> Self:
        constants = {
            f.name: value.to(dtype)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor) and value.is_floating_point()
        }
        return replace(self, **constants)


@dataclass(frozen=True, eq=False)
class Dense(_WithConstants):
    """y = x W^T + c along the last axis: x (..., n), weight (m, n), bias and size (m)."""

    weight: Tensor
    bias: Tensor | None = None
    size: Tensor | None = None

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        return F.linear(x, self.weight, self.bias if bias else None)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        rows = y.reshape(-1, y.shape[-1])
        used = rows.count_nonzero(0) if rows.shape[0] >= 64 and y.shape[-1] >= 64 else None
        if used is not None and (keep := used.nonzero().squeeze(1)).numel() < 0.7 * y.shape[-1]:
            product = rows[:, keep] @ self.weight[keep]  # stable and saturated neurons have left zero columns
        else:
            product = rows @ self.weight
        return (product.reshape(*y.shape[:-1], self.weight.shape[1]),)

    def absolute(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        return F.linear(x, self.weight.abs(), self.constant_size if bias else None)

    @property
    def constant_size(self) -> Tensor | None:
        return self.size if self.size is not None or self.bias is None else self.bias.abs()

    @property
    def offset(self) -> Tensor | None:
        return self.bias

    @property
    def terms(self) -> int:
        return max(self.weight.shape) + 1


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class Convolution(_WithConstants):
    """Convolution (or its transpose) with zero padding: x (N, C, *spatial), weight and bias as in torch.

    `spatial_in` and `spatial_out` are the spatial shapes; a transposed convolution is the adjoint of the
    convolution with the same weight, so each direction is the other's adjoint.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    spatial_in: tuple[int, ...]
    spatial_out: tuple[int, ...]
    transposed: bool = False
    size: Tensor | None = None

    def _map(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, spatial: tuple[int, ...]
    ) -> Tensor:
        rank = len(self.stride)
        batch = x.reshape(-1, *x.shape[-rank - 1 :])
        if transposed:
            reach = [
                (n - 1) * s - 2 * p + d * (k - 1) + 1
                for n, s, p, d, k in zip(
                    batch.shape[2:], self.stride, self.padding, self.dilation, weight.shape[2:], strict=True
                )
            ]
            extra = tuple(m - r for m, r in zip(spatial, reach, strict=True))
            y = _TRANSPOSED[rank](batch, weight, bias, self.stride, self.padding, extra, self.groups, self.dilation)
        else:
            y = _CONVOLUTIONS[rank](batch, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y.reshape(*x.shape[: -rank - 1], *y.shape[1:])

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        return self._map(x, self.weight, self.bias if bias else None, self.transposed, self.spatial_out)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (self._map(y, self.weight, None, not self.transposed, self.spatial_in),)

    def absolute(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        c = self.channel_size if bias else None
        return self._map(x, self.weight.abs(), c, self.transposed, self.spatial_out)

    @property
    def channel_size(self) -> Tensor | None:
        """`constant_size` with one entry per output channel."""
        return self.size if self.size is not None or self.bias is None else self.bias.abs()

    @property
    def constant_size(self) -> Tensor | None:
        size = self.channel_size
        return None if size is None else size.reshape(-1, *(1 for _ in self.stride))

    @property
    def offset(self) -> Tensor | None:
        return None if self.bias is None else self.bias.reshape(-1, *(1 for _ in self.stride))

    @property
    def terms(self) -> int:
        return max(self.weight.shape[:2]) * math.prod(self.weight.shape[2:]) + 1


@dataclass(frozen=True, eq=False)
class Diagonal(_WithConstants):
    """y = factor * x + shift, entry by entry; both broadcast to x's shape, None means 1 and 0."""

    factor: Tensor | None = None
    shift: Tensor | None = None
    size: Tensor | None = None

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        y = x if self.factor is None else x * self.factor
        return y + self.shift if bias and self.shift is not None else y

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y if self.factor is None else y * self.factor,)

    def interval(self, *inputs: Interval) -> Interval:
        """Both ends by one product and one sum each, rounded outward; an infinite end concerns its own entry only."""
        (x,) = inputs
        lower, upper = x.lower, x.upper
        if self.factor is not None:
            falls = self.factor < 0
            lower, upper = torch.where(falls, upper, lower), torch.where(falls, lower, upper)
        (low, low_slack), (high, high_slack) = _end(self, lower), _end(self, upper)
        return nan_is_unbounded(Interval(low - low_slack, high + high_slack))

    def absolute(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        y = x if self.factor is None else x * self.factor.abs()
        size = self.constant_size
        return y + size if bias and size is not None else y

    @property
    def constant_size(self) -> Tensor | None:
        return self.size if self.size is not None or self.shift is None else self.shift.abs()

    @property
    def offset(self) -> Tensor | None:
        return self.shift

    @property
    def terms(self) -> int:
        return 2


@dataclass(frozen=True, eq=False)
class Sum(Linear):
    """y = sum_i coefficient_i x_i over inputs of one shape: additions, subtractions, residual joins."""

    coefficients: tuple[float, ...]

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        y = inputs[0] if self.coefficients[0] == 1.0 else self.coefficients[0] * inputs[0]
        for c, x in zip(self.coefficients[1:], inputs[1:], strict=True):
            y = y + x if c == 1.0 else y - x if c == -1.0 else y + c * x
        return y

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(y if c == 1.0 else c * y for c in self.coefficients)

    def absolute(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        return replace(self, coefficients=tuple(abs(c) for c in self.coefficients)).forward(*inputs)

    def interval(self, *inputs: Interval) -> Interval:
        """The sums of the lower and of the upper ends, rounded outward."""
        signed = list(zip(self.coefficients, inputs, strict=True))
        low, low_slack = _end(self, *(x.lower if c >= 0 else x.upper for c, x in signed))
        high, high_slack = _end(self, *(x.upper if c >= 0 else x.lower for c, x in signed))
        return nan_is_unbounded(Interval(low - low_slack, high + high_slack))

    @property
    def terms(self) -> int:
        return len(self.coefficients) + 1


@dataclass(frozen=True, eq=False)
class _Structural(Linear):
    """A linear operator that moves entries about and adds some up: every coefficient is nonnegative."""

    nonnegative: ClassVar[bool] = True

    def interval(self, *inputs: Interval) -> Interval:
        """The images of the lower and of the upper ends; exact where entries are only moved."""
        lowers, uppers = [x.lower for x in inputs], [x.upper for x in inputs]
        if self.moves_only:
            return Interval(self.forward(*lowers), self.forward(*uppers))
        (low, low_slack), (high, high_slack) = _end(self, *lowers), _end(self, *uppers)
        return nan_is_unbounded(Interval(low - low_slack, high + high_slack))

    @property
    def moves_only(self) -> bool:
        """True where every entry of the output is one entry of the input, or 0."""
        return True

    @property
    def terms(self) -> int:
        return 1


@dataclass(frozen=True, eq=False)
class Reshape(_Structural):
    """The same entries in row-major order under another shape."""

    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        return x.reshape(x.shape[0], *self.shape_out)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y.reshape(y.shape[0], *self.shape_in),)


@dataclass(frozen=True, eq=False)
class Permute(_Structural):
    """Axes in another order: axis i of y is axis dims[i] of x."""

    dims: tuple[int, ...]

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        return x.permute(0, *(d + 1 for d in self.dims))

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        inverse = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return (y.permute(0, *(d + 1 for d in inverse)),)


@dataclass(frozen=True, eq=False)
class Gather(_Structural):
    """y[j] = x[index[j]] in flat positions, 0 where index[j] = -1.

    Slices, splits, expansions, zero padding, repetition and nearest-neighbour resizing are all of this form.
    `index` has the output's shape.
    """

    index: Tensor
    shape_in: tuple[int, ...]

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        index = self.index.flatten()
        y = x.reshape(x.shape[0], -1).index_select(1, index.clamp(min=0))
        if bool((index < 0).any()):
            y = torch.where(index >= 0, y, 0.0)
        return y.reshape(x.shape[0], *self.index.shape)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        index = self.index.flatten()
        rows = y.reshape(y.shape[0], -1)
        keep = (index >= 0).nonzero().squeeze(1)
        if keep.numel() < index.numel():
            rows, index = rows.index_select(1, keep), index[keep]
        x = torch.zeros(y.shape[0], math.prod(self.shape_in), dtype=y.dtype, device=y.device)
        x.index_add_(1, index, rows)
        return (x.reshape(y.shape[0], *self.shape_in),)

    @property
    def terms(self) -> int:
        index = self.index.flatten()
        index = index[index >= 0]
        return max(int(torch.bincount(index).max()) if index.numel() else 1, 1)


@dataclass(frozen=True, eq=False)
class Concatenate(_Structural):
    """The inputs one after the other along an axis (counted without the batch)."""

    axis: int
    sizes: tuple[int, ...]

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        return torch.cat(inputs, dim=self.axis + 1)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return y.split(self.sizes, dim=self.axis + 1)


@dataclass(frozen=True, eq=False)
class Reduce(_Structural):
    """y = scale * the sum of x over some axes, kept with length 1; scale > 0 (1/count for a mean)."""

    axes: tuple[int, ...]
    shape_in: tuple[int, ...]
    scale: float = 1.0

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        return self.scale * x.sum(dim=[a + 1 for a in self.axes], keepdim=True)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return ((self.scale * y).expand(y.shape[0], *self.shape_in),)

    @property
    def moves_only(self) -> bool:
        return False

    @property
    def terms(self) -> int:
        return math.prod(self.shape_in[a] for a in self.axes) + 1


@dataclass(frozen=True, eq=False)
class TorchLinear(_Structural):
    """Any torch function that is linear with nonnegative coefficients: average pooling, bilinear resizing.

    `function` maps (B, *shape_in) to (B, *S_out); its adjoint comes from autograd.  `fan` bounds the number of
    entries that meet in one entry, in either direction.
    """

    function: Callable[[Tensor], Tensor]
    shape_in: tuple[int, ...]
    fan: int
    label: str

    @property
    def name(self) -> str:
        return self.label

    def forward(self, *inputs: Tensor, bias: bool = True) -> Tensor:
        (x,) = inputs
        return self.function(x)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x = torch.zeros(y.shape[0], *self.shape_in, dtype=y.dtype, device=y.device, requires_grad=True)
            (g,) = torch.autograd.grad(self.function(x), x, y)
        return (g,)

    @property
    def moves_only(self) -> bool:
        return False

    @property
    def terms(self) -> int:
        return self.fan + 1
