"""For every registered elementwise operator: instances, the exact function, and where it is interesting.

A new operator needs an entry here; everything in test_laws.py is then checked for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import mpmath as mp
import torch
from torch import Tensor

from curvverify.ops.base import Elementwise
from curvverify.ops.elementwise.branches import Branched
from curvverify.ops.elementwise.facts import Facts
from curvverify.ops.elementwise.ramps import Ramps
from curvverify.ops.elementwise.smooth import Smooth
from curvverify.ops.registry import ELEMENTWISE

Exact = Callable[[mp.mpf], mp.mpf]


@cache
def derivatives(exact: Exact, z: float) -> tuple[mp.mpf, ...]:
    """f and its first four derivatives at z, by central differences: relative to the one two orders up, 1e-80 wrong."""
    size = math.log10(abs(z)) if z else 0.0
    with mp.workdps(int(425 + max(5.0 * size, -4.0 * size))):  # powers up to the fifth cancel to below 1e-300
        h = mp.mpf(10) ** -40 * min(1.0, abs(z) or 1.0)
        a, b, c, d, e = (exact(mp.mpf(z) + j * h) for j in (-2, -1, 0, 1, 2))
        return (
            c,
            (d - b) / (2 * h),
            (d - 2 * c + b) / h**2,
            (e - 2 * d + 2 * b - a) / (2 * h**3),
            (e - 4 * d + 6 * c - 4 * b + a) / h**4,
        )


@dataclass(frozen=True)
class Case:
    """An operator and its exact function on [low, high]; corners are kinks, inflections, extrema and ends."""

    op: Elementwise
    exact: Exact
    low: float = -8.0
    high: float = 8.0
    corners: tuple[float, ...] = (0.0,)

    @property
    def name(self) -> str:
        attributes = {k: v for k, v in vars(self.op).items() if not isinstance(v, Tensor)}
        return self.op.name + "".join(f",{v:g}" for v in attributes.values())

    @property
    def facts(self) -> Facts | None:
        return self.op.facts if isinstance(self.op, Smooth) else None

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where some derivative jumps or the domain ends."""
        if isinstance(self.op, Branched):
            return tuple(b.left for b in self.op.branches if b.left > float("-inf"))
        return self.corners

    def derivative(self, order: int, z: float) -> mp.mpf:
        """The exact derivative inside the domain, up to the fourth, not at kinks."""
        return derivatives(self.exact, z)[order]

    def values(self, points: Tensor) -> list[mp.mpf]:
        return [self.exact(mp.mpf(z)) for z in points.flatten().tolist()]


def elu(rate: float, amplitude: float, width: float) -> Exact:
    return lambda z: rate * z if z >= 0 else amplitude * mp.expm1(z / width)


def mish(z: mp.mpf) -> mp.mpf:
    e = mp.exp(z)
    return z * e * (e + 2) / (e * (e + 2) + 2)


def gelu(z: mp.mpf) -> mp.mpf:
    return z * mp.erfc(-z / mp.sqrt(2)) / 2 if abs(z) < 1e4 else max(z, mp.mpf(0))  # mpmath's erfc overflows


def gelu_tanh(z: mp.mpf) -> mp.mpf:
    if abs(z) > 1e4:
        return max(z, mp.mpf(0))  # the exponential would take mpmath minutes
    return z / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (z + mp.mpf(0.044715) * z**3)))


def real_power(exponent: float) -> Exact:
    return lambda z: z ** (int(exponent) if exponent == int(exponent) else mp.mpf(exponent))


def power(exponent: float, low: float, high: float) -> Case:
    corner = min(max(0.0, low), high)
    return Case(ELEMENTWISE["Power"](exponent=exponent), real_power(exponent), low, high, (corner, low))


def hinge(name: str, p: float, **attributes: object) -> Case:
    return Case(ELEMENTWISE[name](**attributes), lambda z: z if z >= 0 else p * z)


def ramps(weight: list[float], knots: list[float]) -> Case:
    op = Ramps(torch.tensor(weight, dtype=torch.float64), torch.tensor(knots, dtype=torch.float64))
    pairs = list(zip(weight, knots, strict=True))
    return Case(op, lambda z: sum((w * max(z - k, mp.mpf(0)) for w, k in pairs), mp.mpf(0)), corners=tuple(knots))


def clip(lower: float, upper: float) -> Case:
    return Case(
        ELEMENTWISE["Clip"](lower=lower, upper=upper),
        lambda z: min(max(z, mp.mpf(lower)), mp.mpf(upper)),
        corners=(max(lower, -8.0), min(upper, 8.0)),
    )


_ROOT2 = 1.4142135623730951
_PI = 3.141592653589793
_SELU = ELEMENTWISE["Selu"]().parameters  # type: ignore[attr-defined]

CASES: list[Case] = [
    hinge("Relu", 0.0),
    hinge("LeakyRelu", 0.1, negative_slope=0.1),
    hinge("LeakyRelu", 1.75, negative_slope=1.75),
    hinge("LeakyRelu", -0.3, negative_slope=-0.3),
    hinge("PRelu", 0.3, negative_slope=torch.tensor(0.3, dtype=torch.float64)),
    hinge("Abs", -1.0),
    ramps([1.5, -2.25, -0.5, 3.1, -1.85], [-5.5, -3.0, -0.25, 0.7, 4.0]),
    ramps([-0.7, 0.2, 0.5], [-1.0, -1.0, 2.0]),
    clip(-0.4, 0.7),
    clip(0.0, 6.0),
    clip(1.5, float("inf")),
    clip(float("-inf"), 0.0),
    Case(ELEMENTWISE["Sigmoid"](), lambda z: 1 / (1 + mp.exp(-z))),
    Case(ELEMENTWISE["Tanh"](), mp.tanh),
    Case(ELEMENTWISE["Erf"](), mp.erf),
    Case(ELEMENTWISE["Atan"](), mp.atan),
    Case(ELEMENTWISE["Exp"](), mp.exp),
    Case(ELEMENTWISE["Softplus"](), lambda z: mp.log1p(mp.exp(z))),
    Case(ELEMENTWISE["Softplus"](beta=7.3), lambda z: mp.log1p(mp.exp(mp.mpf(7.3) * z)) / mp.mpf(7.3)),
    Case(ELEMENTWISE["Elu"](), elu(1.0, 1.0, 1.0)),
    Case(ELEMENTWISE["Elu"](alpha=0.3), elu(1.0, 0.3, 1.0)),
    Case(ELEMENTWISE["Elu"](alpha=2.5), elu(1.0, 2.5, 1.0)),
    Case(ELEMENTWISE["Celu"](alpha=1.7), elu(1.0, 1.7, 1.7)),
    Case(ELEMENTWISE["Selu"](), elu(*_SELU)),
    Case(ELEMENTWISE["Gelu"](), gelu, corners=(-_ROOT2, -0.75179, 0.0, _ROOT2)),
    Case(ELEMENTWISE["GeluTanh"](), gelu_tanh, corners=(-1.4185, -0.75246, 0.0, 1.4185)),
    Case(ELEMENTWISE["Silu"](), lambda z: z / (1 + mp.exp(-z)), corners=(-2.39936, -1.27846, 0.0, 2.39936)),
    Case(ELEMENTWISE["Mish"](), mish, corners=(-2.25638, -1.19243, 0.0, 1.49057)),
    Case(ELEMENTWISE["HardSwish"](), lambda z: z * min(max(z + 3, 0), 6) / 6, corners=(-3.0, -1.5, 0.0, 3.0)),
    Case(ELEMENTWISE["Sin"](), mp.sin, -9.0, 9.0, corners=(-_PI, -_PI / 2, 0.0, _PI / 2, _PI, 1.5 * _PI)),
    Case(ELEMENTWISE["Cos"](), mp.cos, -9.0, 9.0, corners=(-_PI, -_PI / 2, 0.0, _PI / 2, _PI, 1.5 * _PI)),
    Case(ELEMENTWISE["Log"](), mp.log, 1e-3, 20.0, corners=(1.0, 1e-3)),
    Case(ELEMENTWISE["Sqrt"](), mp.sqrt, 0.0, 20.0),
    Case(ELEMENTWISE["Reciprocal"](), lambda z: 1 / z, 0.05, 20.0, corners=(0.05, 1.0)),
    Case(ELEMENTWISE["Reciprocal"](), lambda z: 1 / z, -20.0, -0.05, corners=(-0.05, -1.0)),
    power(2.0, -8.0, 8.0),
    power(3.0, -8.0, 8.0),
    power(4.0, -8.0, 8.0),
    power(5.0, -8.0, 8.0),
    power(1.0, -8.0, 8.0),
    power(0.0, -8.0, 8.0),
    power(0.5, 0.0, 8.0),
    power(1.5, 0.0, 8.0),
    power(-0.5, 0.01, 8.0),
    power(-2.0, 0.05, 8.0),
    power(-2.0, -8.0, -0.05),
    power(-3.0, -8.0, -0.05),
    Case(ELEMENTWISE["Floor"](), mp.floor, corners=tuple(float(n) for n in range(-8, 9))),
    Case(ELEMENTWISE["Sign"](), mp.sign),
]
