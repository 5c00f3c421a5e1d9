"""What the coupling asks of a scalar function: supporting lines of the function plus a square."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Support:
    """Supporting lines of F(z) = e sigma(z) + kappa/2 (z - z0)^2 for e = +-1, all (B, R, n).

    slope * z + intercept <= F(z) for every z of the interval; `kappa` is the coefficient that this is true of, at most
    the one asked for.  Where it is 0, no line is meant: the plain envelope of sigma is better.
    """

    slope: Tensor
    intercept: Tensor
    kappa: Tensor
    square: Tensor
    """The mean of (z - z0)^2 over the mixture of points whose mean is z and at which the hull touches F."""


class Hulls(ABC):
    """Lower hulls of F over the intervals of n entries for each of B boxes."""

    start: ClassVar[tuple[float, float]] = (1.0, 1.0)
    """The first coefficients are at most the first factor times the usual ones, which are at most the second one times
    the full ones.  Too much at first is costly: later steps have to take it back."""

    @abstractmethod
    def full(self, below: Tensor) -> Tensor:
        """The kappa (B, R, n) from which on F is convex or nearly so; e = +1 where `below`.  0: it is without any."""

    @abstractmethod
    def support(self, point: Tensor, below: Tensor, kappa: Tensor) -> Support:
        """Lines that touch the hull at the points (B, R, n), clamped into the interval.

        Sound in float64, where the intercept carries a slack for every rounding error; a float32 copy only searches.
        """

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Hulls:
        """The same lines in another dtype."""


def mixture_square(left: Tensor, right: Tensor, distance: Tensor) -> Tensor:
    """The mean of t^2 for t in {left, right} with mean `distance`, at least its square."""
    return torch.maximum((left + right) * distance - left * right, distance * distance)
