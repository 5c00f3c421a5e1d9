"""Random small networks for `truth.py`: every activation, residual joins, products, convolutions, attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

HINGES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": lambda x: nn.functional.leaky_relu(x, 0.1),
    "hardtanh": nn.functional.hardtanh,
    "abs": torch.abs,
}
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": nn.functional.softplus,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "mish": nn.functional.mish,
    "elu": nn.functional.elu,
    "hardswish": nn.functional.hardswish,
    "atan": torch.atan,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "exp": lambda x: torch.exp(0.5 * x),
    "square": torch.square,
    "sqrt": lambda x: torch.sqrt(nn.functional.softplus(x) + 0.2),
    "reciprocal": lambda x: 1.0 / (nn.functional.softplus(x) + 0.2),
    "log": lambda x: torch.log(nn.functional.softplus(x) + 0.2),
}
"""Some with pieces of other formulas (elu, hardswish), none with a kink at 0."""

ACTIVATIONS = HINGES | SMOOTH


def dense(fan_in: int, fan_out: int, gain: float) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.normal_(layer.weight, std=gain / fan_in**0.5)
    nn.init.normal_(layer.bias, std=0.3)
    return layer


class Mlp(nn.Module):
    """Dense layers; the activations of the layers may differ."""

    def __init__(self, sizes: list[int], activations: list[str], gain: float):
        super().__init__()
        self.layers = nn.ModuleList(dense(a, b, gain) for a, b in pairwise(sizes))
        self.functions = [ACTIVATIONS[name] for name in activations]

    def forward(self, x: Tensor) -> Tensor:
        for layer, function in zip(self.layers[:-1], self.functions, strict=True):
            x = function(layer(x))
        return self.layers[-1](x)


class Residual(nn.Module):
    """sigma(A x), a residual join around a second layer, a product of two branches, and a long residual."""

    def __init__(self, inputs: int, outputs: int, activation: str, gain: float, product: bool):
        super().__init__()
        self.first, self.second, self.gate = (dense(n, 6, gain) for n in (inputs, 6, 6))
        self.last, self.past = dense(6, outputs, gain), dense(inputs, outputs, 0.5)
        self.function, self.product = ACTIVATIONS[activation], product

    def forward(self, x: Tensor) -> Tensor:
        a = self.function(self.first(x))
        b = self.function(self.second(a) + a)
        if self.product:
            b = b * self.gate(a)
        return self.last(b + 0.5 * a) + self.past(x)


class Convolutional(nn.Module):
    """Two convolutions on a 4 x 4 image with a residual join, a pooling and a dense head."""

    def __init__(self, outputs: int, activation: str, gain: float):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=gain / (9 * layer.in_channels) ** 0.5)
        self.head, self.function = dense(12, outputs, gain), ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        a = self.function(self.first(x.reshape(-1, 1, 4, 4)))
        b = self.function(self.second(a) + a)
        return self.head(nn.functional.avg_pool2d(b, 2).flatten(1))


class Attention(nn.Module):
    """One head over three tokens of two features, a residual join around it, and a nonlinear head."""

    def __init__(self, outputs: int, activation: str, gain: float):
        super().__init__()
        self.query, self.key, self.value = dense(2, 3, gain), dense(2, 3, gain), dense(2, 2, gain)
        self.hidden, self.head, self.function = dense(6, 5, gain), dense(5, outputs, gain), ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 3, 2)
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2)
        mixed = tokens + torch.softmax(scores, dim=-1) @ self.value(tokens)
        return self.head(self.function(self.hidden(mixed.reshape(-1, 6))))


class Normalised(nn.Module):
    """A layer normalisation between two dense layers."""

    def __init__(self, inputs: int, outputs: int, activation: str, gain: float):
        super().__init__()
        self.first, self.norm, self.last = dense(inputs, 6, gain), nn.LayerNorm(6), dense(6, outputs, gain)
        self.function = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.norm(self.first(x))))


@dataclass(frozen=True, eq=False)
class Network:
    """A module in float32 on (1, inputs)."""

    module: nn.Module
    inputs: int
    outputs: int


def random_network(kind: str, inputs: int, generator: torch.Generator) -> Network:
    """A network of the kind; seeds torch's own generator from the given one."""

    def pick(names: list[str]) -> str:
        return names[int(torch.randint(len(names), (1,), generator=generator))]

    torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    outputs = 2 + int(torch.randint(2, (1,), generator=generator))
    gain = 1.0 + float(torch.rand(1, generator=generator))
    name = pick(list(ACTIVATIONS))
    widths = [6 + int(torch.randint(5, (1,), generator=generator)) for _ in range(2)]
    modules: dict[str, Callable[[], nn.Module]] = {
        "relu": lambda: Mlp([inputs, *widths, outputs], ["relu"] * 2, gain),
        "dense": lambda: Mlp([inputs, *widths, outputs], [name] * 2, gain),
        "mixed": lambda: Mlp([inputs, *widths, 5, outputs], [name, "relu", pick(list(SMOOTH))], gain),
        "residual": lambda: Residual(inputs, outputs, name, gain, product=False),
        "product": lambda: Residual(inputs, outputs, name, gain, product=True),
        "conv": lambda: Convolutional(outputs, name, gain),
        "attention": lambda: Attention(outputs, name, gain),
        "norm": lambda: Normalised(inputs, outputs, name, gain),
    }
    return Network(modules[kind](), {"conv": 16, "attention": 6}.get(kind, inputs), outputs)
