"""Small networks in float64 for the tests of training."""

from __future__ import annotations

import torch
from torch import nn

from curvverify.train.architectures import ResidualBlock
from curvverify.train.layers import (
    CentredSoftplus,
    LipschitzBatchNorm,
    LowCurvatureBlock,
    SpectralConv2d,
    SpectralLinear,
)
from curvverify.train.sll import SLLConv2d, SLLLinear


def mlp(layers: int = 2, width: int = 6, inputs: int = 5, classes: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    size = inputs
    for _ in range(layers - 1):
        parts += [nn.Linear(size, width), CentredSoftplus(3.0)]
        size = width
    model = nn.Sequential(*parts, nn.Linear(size, classes)).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(2.0)
    return model


def residual(seed: int = 0) -> nn.Sequential:
    """Convolutions, batch normalisation, a residual join, pooling."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, 1, 1),
        nn.Tanh(),
        ResidualBlock(2, 3, 2, lambda: CentredSoftplus(2.0)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    ).double()
    return _lived_in(model, (1, 4, 4))


def low_curvature(seed: int = 0) -> nn.Sequential:
    """Every layer of this package that works on images."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        SpectralConv2d(1, 2, 3, 1, 1),
        LipschitzBatchNorm(2),
        CentredSoftplus(2.0),
        LowCurvatureBlock(2, 3, 2, 2.0),
        SLLConv2d(3, 4, 3, 2.0),
        nn.Flatten(),
        SpectralLinear(12, 4),
        SLLLinear(4, 5, 2.0),
        nn.Linear(4, 3),
    ).double()
    return _lived_in(model, (1, 4, 4))


def _lived_in(model: nn.Sequential, shape: tuple[int, ...]) -> nn.Sequential:
    """After a few batches, so that statistics are not their defaults; in evaluation mode."""
    model.train()
    for _ in range(5):
        model(torch.rand(16, *shape, dtype=torch.float64))
    return model.eval()
