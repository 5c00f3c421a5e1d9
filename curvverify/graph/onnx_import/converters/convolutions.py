"""Convolutions and pooling, with all that ONNX allows: unequal and automatic padding, dilation, rounding up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.graph.lowering.pooling import window_positions
from curvverify.graph.onnx_import.converters.attributes import Attributes, Converter

_FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _windows(a: Attributes, spatial: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], ...]:
    """Stride, dilation, and padding before and after, per axis."""
    rank = len(kernel)
    stride, dilation = list(a.get("strides") or [1] * rank), list(a.get("dilations") or [1] * rank)
    auto = a.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = list(a.get("pads") or [0] * 2 * rank)
        return stride, dilation, pads[:rank], pads[rank:]
    if auto == "VALID":
        return stride, dilation, [0] * rank, [0] * rank
    reach = zip(spatial, stride, dilation, kernel, strict=True)
    total = [max(0, (math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n) for n, s, d, k in reach]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (stride, dilation, small, large) if auto == "SAME_UPPER" else (stride, dilation, large, small)


def _torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    return [v for pair in zip(reversed(before), reversed(after), strict=True) for v in pair]


def convolution(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.ndim - 2
        stride, dilation, before, after = _windows(a, x.shape[2:], weight.shape[2:])
        if before != after:
            x, before = F.pad(x, _torch_pads(before, after)), [0] * rank
        return _FORWARD[rank](x, weight, bias, stride, before, dilation, a.get("group", 1))

    return apply


def transposed_convolution(a: Attributes) -> Callable[..., Tensor]:
    """Without padding first, then cropped: y has s (n - 1) + d (k - 1) + 1 + extra - pads entries per axis."""

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        kernel, spatial = weight.shape[2:], x.shape[2:]
        rank = len(kernel)
        stride, dilation = a.get("strides") or [1] * rank, a.get("dilations") or [1] * rank
        extra = a.get("output_padding") or [0] * rank
        reach = zip(spatial, stride, dilation, kernel, strict=True)
        full = [s * (n - 1) + d * (k - 1) + 1 for n, s, d, k in reach]
        before, after = _transposed_pads(a, spatial, stride, [f + e for f, e in zip(full, extra, strict=True)])
        group = a.get("group", 1)
        if before == after:
            return _TRANSPOSED[rank](x, weight, bias, stride, before, extra, group, dilation)
        y = _TRANSPOSED[rank](x, weight, bias, stride, 0, 0, group, dilation)
        over = [e - p for e, p in zip(extra, after, strict=True)]
        if bias is not None and any(o > 0 for o in over):
            raise NotImplementedError("a transposed convolution with bias, output padding and unequal padding")
        return F.pad(y, _torch_pads([-p for p in before], over))

    return apply


def _transposed_pads(
    a: Attributes, spatial: Sequence[int], stride: Sequence[int], full: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank = len(full)
    auto, shape = a.get("auto_pad", "NOTSET"), a.get("output_shape")
    if shape is None and auto in ("NOTSET", ""):
        pads = list(a.get("pads") or [0] * 2 * rank)
        return pads[:rank], pads[rank:]
    if shape is None and auto == "VALID":
        return [0] * rank, [0] * rank
    target = shape[-rank:] if shape is not None else [n * s for n, s in zip(spatial, stride, strict=True)]
    total = [max(0, f - m) for f, m in zip(full, target, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


# -- pooling -------------------------------------------------------------------------------------------------------


def _outputs(
    a: Attributes, spatial: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Output lengths, stride, dilation and padding of a pool; rounding up never adds a window of padding only."""
    stride, dilation, before, after = _windows(a, spatial, kernel)
    lengths = []
    for n, k, s, d, p, q in zip(spatial, kernel, stride, dilation, before, after, strict=True):
        room = n + p + q - d * (k - 1) - 1
        m = -(-room // s) + 1 if a.get("ceil_mode", 0) else room // s + 1
        lengths.append(m - 1 if a.get("ceil_mode", 0) and (m - 1) * s >= n + p else m)
    return lengths, stride, dilation, before, after


def max_pool(a: Attributes) -> Callable[..., Tensor]:
    """The largest real member of every window; missing members are replaced by a present one."""

    def apply(x: Tensor) -> Tensor:
        kernel = a["kernel_shape"]
        outputs, stride, dilation, before, _ = _outputs(a, x.shape[2:], kernel)
        windows = window_positions(x.shape[2:], outputs, kernel, stride, before, dilation)
        windows = torch.where(windows < 0, windows.max(0, keepdim=True).values, windows)
        return x.flatten(2)[:, :, windows.flatten()].reshape(*x.shape[:2], *windows.shape).amax(2)

    return apply


def average_pool(a: Attributes) -> Callable[..., Tensor]:
    """Window sums by a convolution of every channel with ones, over the number of members that count."""

    def apply(x: Tensor) -> Tensor:
        kernel, rank = a["kernel_shape"], x.ndim - 2
        outputs, stride, dilation, before, after = _outputs(a, x.shape[2:], kernel)
        ends = zip(outputs, stride, dilation, kernel, x.shape[2:], before, strict=True)
        needed = [max(0, (m - 1) * s + d * (k - 1) + 1 - n - p) for m, s, d, k, n, p in ends]
        counted = F.pad(torch.ones(x.shape[2:], dtype=x.dtype), _torch_pads(before, after), value=1.0)
        if not a.get("count_include_pad", 0):
            counted = F.pad(torch.ones(x.shape[2:], dtype=x.dtype), _torch_pads(before, after))
        counted = F.pad(counted, _torch_pads([0] * rank, [q - r for q, r in zip(needed, after, strict=True)]))
        ones = torch.ones(1, 1, *kernel, dtype=x.dtype)
        members = _FORWARD[rank](counted[None, None], ones, None, stride, 0, dilation)
        each = x.reshape(-1, 1, *x.shape[2:])
        if before == needed:
            sums = _FORWARD[rank](each, ones, None, stride, before, dilation)
        else:
            sums = _FORWARD[rank](F.pad(each, _torch_pads(before, needed)), ones, None, stride, 0, dilation)
        return (sums / members).reshape(*x.shape[:2], *outputs)

    return apply


def _over_space(function: Callable[[Tensor, list[int]], Tensor]) -> Converter:
    return lambda attributes: lambda x: function(x, list(range(2, x.ndim)))


CONVOLUTIONS: dict[str, Converter] = {
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": _over_space(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": _over_space(lambda x, axes: x.amax(axes, keepdim=True)),
}
