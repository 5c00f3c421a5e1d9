"""Which input meets which output in a convolution with zero padding, axis by axis.

Along one axis, output i reads input s i + o_a with tap a, where o_a = a d - p (stride s, dilation d, padding p), if
that lies in [0, n).  Taps that never do are dropped.  Writing o_a = s q_a + phi_a with 0 <= phi_a < s, the
strided convolution of x is the convolution with stride 1 of its s phases x[s j + phi], with offsets q_a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution; all of it in whole numbers."""

    taps: tuple[int, ...]
    """Positions in the kernel that meet the input somewhere."""
    offsets: tuple[int, ...]
    """o_a of those taps."""
    stride: int
    length_in: int
    length_out: int

    @classmethod
    def of(cls, kernel: int, stride: int, padding: int, dilation: int, length_in: int, length_out: int) -> Axis:
        """The axis with the taps in use; a tap is used if s i + o_a is in [0, n) for some output i."""
        used = [
            a
            for a in range(kernel)
            if any(0 <= stride * i + a * dilation - padding < length_in for i in range(length_out))
        ]
        offsets = tuple(a * dilation - padding for a in used)
        return cls(tuple(used), offsets, stride, length_in, length_out)

    @property
    def shifts(self) -> tuple[int, ...]:
        """q_a, less their minimum: a common shift along a torus is an isometry."""
        least = min((o // self.stride for o in self.offsets), default=0)
        return tuple(o // self.stride - least for o in self.offsets)

    @property
    def phases(self) -> tuple[int, ...]:
        """phi_a."""
        return tuple(o % self.stride for o in self.offsets)

    @property
    def span(self) -> int:
        """Degree of the symbol: the largest shift."""
        return max(self.shifts, default=0)

    @property
    def torus(self) -> int:
        """The least number of outputs M of a torus with s M inputs that holds the axis (see `symbol`).

        No input outside [0, n) that an output in [0, m) reads may wrap into [0, n): those below 0, down to min o_a,
        need s M >= n - min o_a; those above, up to s (m - 1) + max o_a, need s M > that.
        """
        if self.span == 0:
            return 1
        reach = max(
            self.length_in,
            self.length_in - min(self.offsets),
            self.stride * (self.length_out - 1) + max(self.offsets) + 1,
            self.stride * self.length_out,
        )
        return -(-reach // self.stride)

    def pairs(self, tap: int) -> tuple[Tensor, Tensor]:
        """(outputs, inputs) that the tap (an index into `taps`) joins."""
        i = torch.arange(self.length_out)
        j = self.stride * i + self.offsets[tap]
        keep = (j >= 0) & (j < self.length_in)
        return i[keep], j[keep]


@dataclass(frozen=True)
class Geometry:
    """A convolution's attributes as in torch, with the spatial shapes of its input and output.

    A transposed convolution is the adjoint of the convolution with the same weight, with the two shapes exchanged:
    describe that one, its norm is the same.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    spatial_in: tuple[int, ...]
    spatial_out: tuple[int, ...]

    def axes(self, kernel: tuple[int, ...]) -> tuple[Axis, ...]:
        """The axes, for a kernel of this spatial shape."""
        return tuple(
            Axis.of(*attributes)
            for attributes in zip(
                kernel, self.stride, self.padding, self.dilation, self.spatial_in, self.spatial_out, strict=True
            )
        )

    def blocks(self, weight: Tensor) -> Tensor:
        """The weight (c_out, c_in / groups, *kernel) as (groups, c_out / groups, c_in / groups, *kernel)."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])

    def dense_shape(self, weight: Tensor) -> tuple[int, int, int]:
        """(groups, outputs, inputs) of the operator as a block-diagonal matrix."""
        rows = weight.shape[0] // self.groups * math.prod(self.spatial_out)
        return self.groups, rows, weight.shape[1] * math.prod(self.spatial_in)

    def dense(self, weight: Tensor) -> Tensor:
        """The diagonal blocks (groups, outputs, inputs) of the operator's matrix; exact, entries are only moved.

        Sound because: two taps of one output read different inputs, so no two entries fall together.
        """
        blocks = self.blocks(weight)
        g, co, ci, *kernel = blocks.shape
        axes = self.axes(tuple(kernel))
        n_out, n_in = math.prod(self.spatial_out), math.prod(self.spatial_in)
        matrix = torch.zeros(g, n_out, n_in, co, ci, dtype=weight.dtype)
        for which in torch.cartesian_prod(*(torch.arange(len(a.taps)) for a in axes)).reshape(-1, len(axes)).tolist():
            out, into = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
            entry = blocks
            for axis, tap in reversed(list(zip(axes, which, strict=True))):
                entry = entry[..., axis.taps[tap]]
            for axis, tap in zip(axes, which, strict=True):
                i, j = axis.pairs(tap)
                out = (out[:, None] * axis.length_out + i).flatten()
                into = (into[:, None] * axis.length_in + j).flatten()
            matrix[:, out, into] = entry[:, None]
        return matrix.permute(0, 3, 1, 4, 2).reshape(g, co * n_out, ci * n_in)
