"""Derivatives of s(z) = 1 / (1 + exp(-z)) without cancellation: e = exp(-|z|), s' = e / (1 + e)^2."""

from __future__ import annotations

from torch import Tensor


def first(z: Tensor) -> Tensor:
    """s'; relatively accurate."""
    e = z.abs().neg().exp()
    return e / (1.0 + e).square()


def second(z: Tensor) -> Tensor:
    """s'' = s' (1 - 2 s) = -s' tanh(z / 2); relatively accurate."""
    return first(z) * (-0.5 * z).tanh()


def third(z: Tensor) -> Tensor:
    """s''' = s' (1 - 6 s') = s' (1 - 4 e + e^2) / (1 + e)^2."""
    e = z.abs().neg().exp()
    r = (1.0 + e).square().reciprocal()
    return e * r * (1.0 + e * (e - 4.0)) * r
