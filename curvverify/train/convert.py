"""An existing model's layers replaced by low-curvature ones."""

from __future__ import annotations

import copy

import torch
from torch import nn

from curvverify.errors import UnsupportedModelError, UnsupportedNode, UsageError
from curvverify.train.layers import CentredSoftplus, LipschitzBatchNorm, SpectralConv2d

KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Softplus, nn.ELU, nn.CELU, nn.SELU, nn.Hardswish)


def convert_to_low_curvature(model: nn.Module, beta: float = 5.0, gain: float = 10.0) -> nn.Module:
    """A copy of the model with ReLU and its like as centred softplus of learnable beta, batch normalisation as
    `LipschitzBatchNorm`, convolutions spectrally normalised at their images' size, max-pooling as average pooling.

    Convolutions keep their weights up to scale and normalisations their statistics and biases; train it afterwards.
    Raises UnsupportedModelError for convolutions that have no normalised form (groups, dilation, other padding),
    UsageError where there is nothing to convert.
    """
    model = copy.deepcopy(model)
    problems: list[UnsupportedNode] = []
    done = _convert(model, "", beta, gain, problems)
    if problems:
        raise UnsupportedModelError(f"convert_to_low_curvature({type(model).__name__})", problems)
    if not done and not any(isinstance(m, CentredSoftplus) for m in model.modules()):
        raise UsageError("the model has no activation modules: functions called in forward() cannot be replaced")
    return model


def _convert(parent: nn.Module, path: str, beta: float, gain: float, problems: list[UnsupportedNode]) -> int:
    done = 0
    for name, child in parent.named_children():
        where = f"{path}.{name}" if path else name
        new = _replacement(child, where, beta, gain, problems)
        if new is None:
            done += _convert(child, where, beta, gain, problems)
        else:
            setattr(parent, name, new)
            done += 1
    return done


def _replacement(
    part: nn.Module, where: str, beta: float, gain: float, problems: list[UnsupportedNode]
) -> nn.Module | None:
    if isinstance(part, KINKED):
        return CentredSoftplus(beta)
    if isinstance(part, CentredSoftplus):
        return CentredSoftplus(float(part.beta.detach()))
    if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
        return _normalisation(part, gain)
    if isinstance(part, nn.MaxPool2d):
        return nn.AvgPool2d(part.kernel_size, part.stride, part.padding)
    if isinstance(part, nn.Conv2d):
        return _convolution(part, where, problems)
    return None


def _normalisation(part: nn.BatchNorm1d | nn.BatchNorm2d, gain: float) -> LipschitzBatchNorm:
    new = LipschitzBatchNorm(part.num_features, gain, part.eps, 0.1 if part.momentum is None else part.momentum)
    with torch.no_grad():
        for mine, theirs in ((new.mean, part.running_mean), (new.variance, part.running_var), (new.bias, part.bias)):
            if theirs is not None:
                mine.copy_(theirs)
    return new


def _convolution(part: nn.Conv2d, where: str, problems: list[UnsupportedNode]) -> nn.Module:
    square = len({*part.kernel_size}) == len({*part.stride}) == len({*map(str, part.padding)}) == 1
    plain = part.groups == 1 and part.dilation == (1, 1) and part.padding_mode == "zeros"
    if not (square and plain) or isinstance(part.padding, str):
        help = "only square convolutions without groups and dilation, padded by a number of zeros, can be normalised"
        problems.append(UnsupportedNode(where, str(part), None, None, help))
        return part
    new = SpectralConv2d(
        *(part.in_channels, part.out_channels, part.kernel_size[0], part.stride[0], part.padding[0]),
        bias=part.bias is not None,
    )
    with torch.no_grad():
        new.weight.copy_(part.weight)
        if part.bias is not None and new.bias is not None:
            new.bias.copy_(part.bias)
    return new
