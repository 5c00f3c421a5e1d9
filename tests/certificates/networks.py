"""Small classifiers with random weights, and what dense sampling says of them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from curvverify.bounding.constants.setting import Structure
from curvverify.certificates.evaluate import Evaluator
from curvverify.graph import load


def two_layers(activation: type[nn.Module] = nn.Softplus, n: int = 2, hidden: int = 10, seed: int = 0) -> nn.Sequential:
    return network([n, hidden, 3], activation, seed)


def network(sizes: list[int], activation: type[nn.Module] = nn.Tanh, seed: int = 0, gain: float = 2.0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        linear = nn.Linear(a, b)
        nn.init.normal_(linear.weight, std=gain / a**0.5)
        nn.init.normal_(linear.bias, std=0.5)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1]).double()


def evaluator_of(module: nn.Module, n: int) -> Evaluator:
    return Evaluator(Structure(load(module, shapes=(1, n)).graph.to(torch.float64)))


def disc(count: int, n: int, radius: float, seed: int = 0) -> Tensor:
    """Points of the ball, many of them on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    d = torch.randn(count, n, generator=generator, dtype=torch.float64)
    length = torch.rand(count, 1, generator=generator, dtype=torch.float64).sqrt().clamp(max=1.0)
    length[: count // 2] = 1.0
    return radius * length * d / d.norm(dim=1, keepdim=True)
