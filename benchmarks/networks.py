"""Networks of the size of published ones, with random weights, for measuring speed and memory.

    .venv/bin/python benchmarks/networks.py

loads each of them and prints parameters, nodes, seconds and the largest resident memory.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from curvverify.graph import load

Activation = Callable[[], nn.Module]


class BasicBlock(nn.Module):
    """y = act(bn(conv(act(bn(conv x)))) + shortcut x), the shortcut a strided 1x1 convolution where shapes differ."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, activation: Activation):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            activation(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        same = stride == 1 and channels_in == channels_out
        convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        self.shortcut = nn.Identity() if same else nn.Sequential(convolution, nn.BatchNorm2d(channels_out))
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.branch(x) + self.shortcut(x))


def smooth_resnet18(activation: Activation = nn.Softplus, classes: int = 10, seed: int = 0) -> nn.Module:
    """ResNet-18 for 3x32x32 images (the CIFAR variant: first convolution 3x3, no max-pooling), in eval mode.

    Kaiming's initialisation, random weights and biases of the batch normalisations; their running statistics are those
    of 32 random images, so that activations keep their size through the depth.
    """
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), activation()]
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [
            BasicBlock(channels, width, stride, activation),
            BasicBlock(width, width, 1, activation),
        ]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    network = nn.Sequential(*layers)
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    for part in norms:
        nn.init.uniform_(part.weight, 0.5, 1.5)
        nn.init.normal_(part.bias, std=0.2)
        part.momentum = None  # the running statistics become those of the batch
    with torch.no_grad():
        network.train()(torch.rand(32, 3, 32, 32))
    for part in norms:
        part.momentum = 0.1
    return network.eval()


def main() -> None:
    torch.set_num_threads(1)
    for activation in (nn.Softplus, nn.SiLU, nn.GELU):
        network = smooth_resnet18(activation)
        parameters = sum(p.numel() for p in network.parameters())
        started = time.monotonic()
        graph = load(network, shapes=(1, 3, 32, 32)).graph
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        joins = sum(len(node.inputs) > 1 for node in graph)
        line = f"ResNet-18 {activation.__name__}: {parameters:,} parameters, {len(graph)} nodes, {joins} joins, "
        sys.stdout.write(f"{line}{sum(node.size for node in graph):,} entries, {seconds:.1f} s, {peak:.2f} GiB\n")


if __name__ == "__main__":
    main()
