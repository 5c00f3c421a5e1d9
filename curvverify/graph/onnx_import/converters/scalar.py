"""Functions applied entry by entry."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.graph.onnx_import.converters.attributes import Attributes, Converter, plain


def clip(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        lower = a.get("min") if low is None else low.item()
        upper = a.get("max") if high is None else high.item()
        return x if lower is None and upper is None else torch.clamp(x, lower, upper)

    return apply


def selu(a: Attributes) -> Callable[..., Tensor]:
    alpha, gamma = a.get("alpha", 1.67326319217681884765625), a.get("gamma", 1.05070102214813232421875)
    return lambda x: torch.ops.aten.elu(x, alpha, gamma)


def celu(a: Attributes) -> Callable[..., Tensor]:
    return lambda x: F.celu(x, a.get("alpha", 1.0))


def elu(a: Attributes) -> Callable[..., Tensor]:
    return lambda x: F.elu(x, a.get("alpha", 1.0))


def swish(a: Attributes) -> Callable[..., Tensor]:
    return lambda x: x * torch.sigmoid(a.get("alpha", 1.0) * x)


def gelu(a: Attributes) -> Callable[..., Tensor]:
    return lambda x: F.gelu(x, approximate=a.get("approximate", "none"))


def shrink(a: Attributes) -> Callable[..., Tensor]:
    lambd, bias = a.get("lambd", 0.5), a.get("bias", 0.0)
    return lambda x: F.softshrink(x, lambd) if bias == lambd else torch.where(x.abs() > lambd, x - bias * x.sign(), 0.0)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.ops.aten._prelu_kernel(x, slope)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Converter:
    return plain(lambda *inputs: functools.reduce(function, inputs))


SCALAR: dict[str, Converter] = {
    "Celu": celu,
    "Clip": clip,
    "Cosh": plain(torch.cosh),
    "Elu": elu,
    "Gelu": gelu,
    "Max": _folded(torch.maximum),
    "Mean": plain(lambda *inputs: functools.reduce(torch.add, inputs) / len(inputs)),
    "Min": _folded(torch.minimum),
    "Mish": plain(F.mish),
    "PRelu": plain(prelu),
    "Selu": selu,
    "Shrink": shrink,
    "Sinh": plain(torch.sinh),
    "Softplus": plain(lambda x: F.softplus(x, threshold=500.0)),
    "Sum": _folded(torch.add),
    "Swish": swish,
    "ThresholdedRelu": lambda a: lambda x: F.threshold(x, a.get("alpha", 1.0), 0.0),
}

MICROSOFT: dict[str, Converter] = {
    "Gelu": plain(F.gelu),
    "FastGelu": plain(lambda x, bias=None: F.gelu(x if bias is None else x + bias, approximate="tanh")),
    "BiasGelu": plain(lambda x, bias: F.gelu(x + bias)),
    "QuickGelu": lambda a: lambda x: x * torch.sigmoid(a.get("alpha", 1.702) * x),
}
"""Of ONNX Runtime's own domain, com.microsoft."""
