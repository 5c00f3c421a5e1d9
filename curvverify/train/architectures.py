"""Networks by name, for the training command.  All are smooth: centred softplus in the place of ReLU."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from torch import Tensor, nn

from curvverify.errors import UsageError
from curvverify.train.layers import CentredSoftplus, LowCurvatureBlock, SpectralConv2d, SpectralLinear

MLP = re.compile(r"mlp-([1-9][0-9]*)x([1-9][0-9]*)")

NAMES = "mlp-LxN (layers counted with the output: mlp-2x1024 is n-1024-classes), convnet, resnet8, resnet18, lcnn8"


def build(name: str, shape: tuple[int, ...], classes: int, beta: float, learnable: bool) -> nn.Module:
    """The network for inputs of `shape` (C, H, W) or (n,); UsageError for an unknown name or unsuitable inputs."""
    if match := MLP.fullmatch(name):
        return _mlp(int(match[1]), int(match[2]), math.prod(shape), classes, beta, learnable)
    if name not in IMAGES:
        raise UsageError(f"unknown architecture {name!r}: choose {NAMES}")
    if len(shape) != 3:
        raise UsageError(f"{name} takes images (C, H, W); these inputs have shape {shape}: choose mlp-LxN")
    return IMAGES[name](shape, classes, beta, learnable)


def _mlp(layers: int, width: int, inputs: int, classes: int, beta: float, learnable: bool) -> nn.Module:
    if layers < 2:
        raise UsageError("mlp-LxN needs at least 2 layers, one of them the output")
    parts: list[nn.Module] = [nn.Flatten()]
    for size in (inputs, *(width for _ in range(layers - 2))):
        parts += [nn.Linear(size, width), CentredSoftplus(beta, learnable)]
    return nn.Sequential(*parts, nn.Linear(width, classes))


def _convnet(shape: tuple[int, ...], classes: int, beta: float, learnable: bool) -> nn.Module:
    channels, height, width = shape
    size = -(-height // 4) * -(-width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1 + height % 2),
        CentredSoftplus(beta, learnable),
        nn.Conv2d(16, 32, 3, 2, 1),
        CentredSoftplus(beta, learnable),
        nn.Flatten(),
        nn.Linear(32 * size, 100),
        CentredSoftplus(beta, learnable),
        nn.Linear(100, classes),
    )


class ResidualBlock(nn.Module):
    """act(shortcut(x) + norm(conv(act(norm(conv(x))))))."""

    def __init__(self, inputs: int, channels: int, stride: int, act: Callable[[], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act1 = act()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        plain = stride == 1 and inputs == channels
        self.shortcut = nn.Identity() if plain else nn.Conv2d(inputs, channels, 1, stride, bias=False)
        self.act2 = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.shortcut(x) + self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x))))))


def _resnet(widths: tuple[int, ...], repeats: int) -> Callable[[tuple[int, ...], int, float, bool], nn.Module]:
    def make(shape: tuple[int, ...], classes: int, beta: float, learnable: bool) -> nn.Module:
        def act() -> nn.Module:
            return CentredSoftplus(beta, learnable)

        parts: list[nn.Module] = [nn.Conv2d(shape[0], widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), act()]
        before = widths[0]
        for level, width in enumerate(widths):
            for k in range(repeats):
                parts.append(ResidualBlock(before, width, 2 if level and k == 0 else 1, act))
                before = width
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    return make


def _lcnn(widths: tuple[int, ...]) -> Callable[[tuple[int, ...], int, float, bool], nn.Module]:
    def make(shape: tuple[int, ...], classes: int, beta: float, learnable: bool) -> nn.Module:
        parts: list[nn.Module] = [SpectralConv2d(shape[0], widths[0], 3, 1, 1), CentredSoftplus(beta, learnable)]
        before = widths[0]
        for level, width in enumerate(widths):
            parts.append(LowCurvatureBlock(before, width, 2 if level else 1, beta))
            before = width
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), SpectralLinear(before, classes, bound=20.0))

    return make


IMAGES: dict[str, Callable[[tuple[int, ...], int, float, bool], nn.Module]] = {
    "convnet": _convnet,
    "resnet8": _resnet((8, 16, 32), 1),
    "resnet18": _resnet((64, 128, 256, 512), 2),
    "lcnn8": _lcnn((8, 16, 32)),
}
