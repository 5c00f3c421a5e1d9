"""Pooling and linear resizing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from curvverify.graph.building import Builder, Var
from curvverify.graph.lowering.rules import Rule
from curvverify.ops.linear import Convolution


def window_positions(
    spatial: Sequence[int],
    outputs: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Flat spatial positions of every window's members, (members, *outputs), -1 where a member is padding."""
    axes: list[list[Tensor]] = []
    for n, m, k, s, p, d in zip(spatial, outputs, kernel, stride, padding, dilation, strict=True):
        start = torch.arange(m) * s - p
        axes.append([torch.where((place >= 0) & (place < n), place, -1) for place in (start + i * d for i in range(k))])
    members = []
    for choice in itertools.product(*axes):
        flat, missing = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.bool)
        for axis, (n, place) in enumerate(zip(spatial, choice, strict=True)):
            shaped = place.reshape(*(-1 if a == axis else 1 for a in range(len(choice))))
            flat, missing = flat * n + shaped, missing | (shaped < 0)
        members.append(torch.where(missing, -1, flat))
    return torch.stack(members)


def _filled(values: Sequence[int], rank: int, default: Sequence[int]) -> tuple[int, ...]:
    values = tuple(values) or tuple(default)
    return values * rank if len(values) == 1 else values


def max_pool(rank: int, key: str) -> Rule:
    """The largest real member of every window, as a tree of binary maxima; padding never counts."""

    def rule(
        t: Builder,
        x: Var,
        kernel: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> tuple[Var, ...]:
        function = getattr(torch.ops.aten, key).default
        found = function(torch.zeros(x.shape), kernel, stride, padding, dilation, ceil_mode)
        shape = (found[0] if isinstance(found, tuple) else found).shape
        size, steps = _filled(kernel, rank, ()), _filled(stride, rank, kernel)
        ends, gaps = _filled(padding, rank, (0,)), _filled(dilation, rank, (1,))
        spatial = x.shape[-rank:]
        windows = window_positions(spatial, shape[-rank:], size, steps, ends, gaps)
        lead = torch.arange(torch.Size(x.shape[:-rank]).numel()).reshape(*x.shape[:-rank], *(1 for _ in range(rank)))
        members = windows.reshape(windows.shape[0], *(1 for _ in x.shape[:-rank]), *windows.shape[1:])
        index = torch.where(members < 0, -1, members + lead * torch.Size(spatial).numel())
        return (t.extremum(x, index.to(torch.float64)),)

    return rule


def average_pool(rank: int, key: str) -> Rule:
    """A convolution of every channel with ones, divided by the number of members."""

    def rule(
        t: Builder,
        x: Var,
        kernel: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Var:
        function = getattr(torch.ops.aten, key).default
        options = (kernel, stride, padding, ceil_mode, count_include_pad)
        options = options if rank == 1 else (*options, divisor_override)
        ones = function(torch.ones(x.shape, dtype=torch.float64), *options)
        size, steps, ends = _filled(kernel, rank, ()), _filled(stride, rank, kernel), _filled(padding, rank, (0,))
        spatial, outputs = x.shape[-rank:], ones.shape[-rank:]
        windows = window_positions(spatial, outputs, size, steps, ends, (1,) * rank)
        members = (windows >= 0).sum(0).to(torch.float64)
        factor = (ones[(0,) * (x.ndim - rank)] / members).expand(outputs)
        summed = _window_sums(t, x, size, steps, ends, outputs)
        return t.affine(summed, factor, None)

    return rule


def _window_sums(
    t: Builder, x: Var, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], outputs: Sequence[int]
) -> Var:
    """The sum of every window's members, channel by channel."""
    rank = len(kernel)
    spatial = x.shape[-rank:]
    reach = [(m - 1) * s + k for m, s, k in zip(outputs, stride, kernel, strict=True)]
    over = [max(0, r - n - 2 * p) for r, n, p in zip(reach, spatial, padding, strict=True)]
    y = t.reshape(x, (torch.Size(x.shape[:-rank]).numel(), 1, *spatial))
    if any(over):  # the last window of a pool that rounds up hangs over
        pads = [v for e in reversed(over) for v in (0, e)]
        y = t.gather(y, torch.nn.functional.pad(t.positions(y) + 1.0, pads) - 1.0)
    weight = torch.ones(1, 1, *kernel, dtype=torch.float64)
    dilation = (1,) * rank
    out = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(y.shape[-rank:], padding, kernel, stride, strict=True))
    op = Convolution(weight, None, tuple(stride), tuple(padding), dilation, 1, y.shape[-rank:], out)
    z = t.apply(op, y)
    if out != tuple(outputs):
        z = t.gather(z, t.positions(z)[(..., *(slice(0, m) for m in outputs))])
    return t.reshape(z, (*x.shape[:-rank], *outputs))


# -- operators that act on each axis by a matrix -------------------------------------------------------------------


def separable(rank: int, matrix: Callable[..., Tensor]) -> Rule:
    """The same kind of one-dimensional linear map along each of the last axes; `matrix` gives it, (in, out)."""

    def rule(t: Builder, x: Var, outputs: Sequence[int], *args: Any) -> Var:
        y = x
        for axis in range(rank):
            weight = matrix(x.shape[x.ndim - rank + axis], outputs[axis], axis, *args)
            y = t.along(y, x.ndim - rank + axis, weight.t())
        return y

    return rule


def _adaptive(n: int, m: int, axis: int) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool1d(torch.eye(n, dtype=torch.float64), m)


def _linear(n: int, m: int, axis: int, align_corners: bool, *scales: float | None) -> Tensor:
    scale = scales[axis] if axis < len(scales) else None
    return torch.ops.aten.upsample_linear1d(torch.eye(n, dtype=torch.float64).unsqueeze(0), [m], align_corners, scale)[
        0
    ]


def _cubic(n: int, m: int, axis: int, align_corners: bool, *scales: float | None) -> Tensor:
    scale = scales[axis] if axis < len(scales) else None
    columns = torch.eye(n, dtype=torch.float64).reshape(1, n, n, 1)
    return torch.ops.aten.upsample_bicubic2d(columns, [m, 1], align_corners, scale, None)[0, :, :, 0]


RULES: dict[str, Rule] = {
    "max_pool1d": max_pool(1, "max_pool1d"),
    "max_pool2d_with_indices": max_pool(2, "max_pool2d_with_indices"),
    "max_pool3d_with_indices": max_pool(3, "max_pool3d_with_indices"),
    "avg_pool1d": average_pool(1, "avg_pool1d"),
    "avg_pool2d": average_pool(2, "avg_pool2d"),
    "avg_pool3d": average_pool(3, "avg_pool3d"),
    "_adaptive_avg_pool2d": separable(2, _adaptive),
    "_adaptive_avg_pool3d": separable(3, _adaptive),
    "adaptive_avg_pool1d": separable(1, _adaptive),
    "upsample_linear1d": separable(1, _linear),
    "upsample_bilinear2d": separable(2, _linear),
    "upsample_trilinear3d": separable(3, _linear),
    "upsample_bicubic2d": separable(2, _cubic),
}
