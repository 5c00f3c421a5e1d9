"""Matrix products, normalisation and reductions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.graph.onnx_import.converters.attributes import Attributes, Converter, ints


def gemm(a: Attributes) -> Callable[..., Tensor]:
    """alpha A' B' + beta C, with the constants scaled in float64."""
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)

    def apply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        left = left.t() if a.get("transA", 0) else left
        right = right.t() if a.get("transB", 0) else right
        right = right if alpha == 1.0 else alpha * right
        if bias is None:
            return left @ right
        return torch.addmm(bias if beta == 1.0 else beta * bias, left, right)

    return apply


def batch_normalization(a: Attributes) -> Callable[..., Tensor]:
    if a.get("training_mode", 0):
        raise NotImplementedError("batch normalisation in training mode; export the model for inference")
    if a.get("spatial", 1) != 1:
        raise NotImplementedError("batch normalisation with spatial = 0")
    return lambda x, scale, bias, mean, var, *_: F.batch_norm(x, mean, var, scale, bias, eps=a.get("epsilon", 1e-5))


def instance_normalization(a: Attributes) -> Callable[..., Tensor]:
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


def layer_normalization(a: Attributes) -> Callable[..., Tensor]:
    axis, eps = a.get("axis", -1), a.get("epsilon", 1e-5)

    def apply(x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        y = F.layer_norm(x, x.shape[axis:], eps=eps)
        y = y if scale is None else y * scale
        return y if bias is None else y + bias

    return apply


def group_normalization(a: Attributes) -> Callable[..., Tensor]:
    groups = a["num_groups"]

    def apply(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if scale.numel() == groups:  # opset 18: one per group
            scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
        return F.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))

    return apply


def rms_normalization(a: Attributes) -> Callable[..., Tensor]:
    axis, eps = a.get("axis", -1), a.get("epsilon", 1e-5)

    def apply(x: Tensor, scale: Tensor) -> Tensor:
        axes = list(range(axis % x.ndim, x.ndim))
        return x * (x.square().mean(axes, keepdim=True) + eps).rsqrt() * scale

    return apply


def mean_variance_normalization(a: Attributes) -> Callable[..., Tensor]:
    axes = a.get("axes", [0, 2, 3])

    def apply(x: Tensor) -> Tensor:
        middle = x - x.mean(axes, keepdim=True)
        return middle / (middle.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return apply


def lp_normalization(a: Attributes) -> Callable[..., Tensor]:
    axis, p = a.get("axis", -1), a.get("p", 2)
    return lambda x: x / torch.linalg.vector_norm(x, p, dim=[axis], keepdim=True)


# -- reductions ---


def reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Converter:
    """A reduction whose axes are an attribute or an input."""

    def convert(a: Attributes) -> Callable[..., Tensor]:
        keep = bool(a.get("keepdims", 1))

        def apply(x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = ints(a.get("axes") if axes is None else axes)
            if not chosen and a.get("noop_with_empty_axes", 0):
                return x
            return function(x, [c % x.ndim for c in chosen] if chosen else list(range(x.ndim)), keep)

        return apply

    return convert


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


REDUCTIONS: dict[str, Converter] = {
    "ReduceSum": reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceMean": reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMax": reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMin": reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": reduction(_product),
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceSumSquare": reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: x.logsumexp(axes, keep)),
}


def cumulative_sum(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor, axis: Tensor) -> Tensor:
        dim = int(axis.item())
        y = x.flip(dim) if a.get("reverse", 0) else x
        y = y.cumsum(dim) - y if a.get("exclusive", 0) else y.cumsum(dim)
        return y.flip(dim) if a.get("reverse", 0) else y

    return apply


NORMALISATION: dict[str, Converter] = {
    **REDUCTIONS,
    "BatchNormalization": batch_normalization,
    "CumSum": cumulative_sum,
    "Gemm": gemm,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
