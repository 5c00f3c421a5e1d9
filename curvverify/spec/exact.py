"""Exact decimals, and the floating-point numbers around them.

A file's numbers are decimals; almost none is a float64 or a float32.  Every rounding here is directed: the result is
on the stated side of the decimal, compared exactly.  `float(Decimal)` rounds to nearest, so that a directed result is
that or its neighbour.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Decimals = NDArray[np.object_]
"""A numpy array of `decimal.Decimal`; entries may be shared objects."""

ZERO = Decimal(0)

EXACT = decimal.Context(
    prec=2000, Emin=-100_000, Emax=100_000, traps=[decimal.Inexact, decimal.InvalidOperation, decimal.Overflow]
)
"""The arithmetic of constants: raises `decimal.Inexact` rather than round.  (Plain `-a` or `a + b` would round.)"""


def decimals(values: Sequence[Decimal]) -> Decimals:
    """The values as an object array (n,)."""
    out = np.empty(len(values), object)
    out[:] = values
    return out


def below(values: Decimals) -> NDArray[np.float64]:
    """Largest float64 not above each decimal."""
    nearest = values.astype(np.float64)
    return np.where(_greater(nearest, values), _next(nearest, -np.inf), nearest)


def above(values: Decimals) -> NDArray[np.float64]:
    """Smallest float64 not below each decimal."""
    nearest = values.astype(np.float64)
    return np.where(_less(nearest, values), _next(nearest, np.inf), nearest)


def float32_nearest(values: Decimals | NDArray[np.float64]) -> NDArray[np.float32]:
    """Each number as float32 through float64, both to nearest: how the competition's scorer reads a constant."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float64).astype(np.float32)


def float32_below(values: Decimals) -> NDArray[np.float32]:
    """Largest float32 not above each decimal."""
    nearest = float32_nearest(values)
    return np.where(_greater(nearest, values), _next(nearest, -np.inf), nearest)


def float32_above(values: Decimals) -> NDArray[np.float32]:
    """Smallest float32 not below each decimal."""
    nearest = float32_nearest(values)
    return np.where(_less(nearest, values), _next(nearest, np.inf), nearest)


def cover_below(values: Decimals) -> NDArray[np.float64]:
    """A float64 not above the decimal, nor above its float32-rounded form, rounded directly or through float64.

    Sound because: rounding is monotone and b = below(v) <= v, so float32(b) is at most either float32 form of v.
    """
    low = below(values)
    return np.minimum(low, float32_nearest(low))


def cover_above(values: Decimals) -> NDArray[np.float64]:
    """A float64 not below the decimal, nor below its float32-rounded form.  Sound because: as `cover_below`."""
    high = above(values)
    return np.maximum(high, float32_nearest(high))


def nearest_error(values: Decimals) -> NDArray[np.float64]:
    """Upper bound on |v - float64(v)|: zero exactly where the decimal is a float64 number."""
    nearest = values.astype(np.float64)
    error = np.zeros(values.size)
    exact: list[Decimal] = values.ravel().tolist()
    for i in np.flatnonzero(_greater(nearest, values) | _less(nearest, values)):
        error[i] = fraction_above(abs(Fraction(exact[i]) - Fraction(float(nearest.flat[i]))))
    return error.reshape(values.shape)


def fraction_above(value: Fraction) -> float:
    """A float64 not below the fraction."""
    x = float(value)
    return x if Fraction(x) >= value else math.nextafter(x, math.inf)


def float_below(value: Decimal) -> float:
    """Largest float64 not above the decimal."""
    return float(below(decimals([value]))[0])


def float_above(value: Decimal) -> float:
    """Smallest float64 not below the decimal."""
    return float(above(decimals([value]))[0])


class Numbers:
    """A table of decimals, with every rounding computed at most once; boxes refer to its rows by position."""

    def __init__(self, values: Sequence[Decimal]):
        self.decimals = decimals(values)

    @cached_property
    def cover_below(self) -> NDArray[np.float64]:
        return cover_below(self.decimals)

    @cached_property
    def cover_above(self) -> NDArray[np.float64]:
        return cover_above(self.decimals)

    @cached_property
    def float32_below(self) -> NDArray[np.float32]:
        return float32_below(self.decimals)

    @cached_property
    def float32_above(self) -> NDArray[np.float32]:
        return float32_above(self.decimals)

    @cached_property
    def float32_nearest(self) -> NDArray[np.float32]:
        return float32_nearest(self.decimals)


def _next(x: NDArray[Any], towards: float) -> NDArray[Any]:
    """The neighbouring number of the same precision; beyond the largest one lies infinity."""
    with np.errstate(over="ignore", under="ignore"):
        return np.nextafter(x, x.dtype.type(towards))


def _greater(floats: NDArray[np.floating], values: Decimals) -> NDArray[np.bool_]:
    """floats > values, exactly (Python compares a float with a Decimal exactly)."""
    return np.greater(floats.astype(object), values).astype(bool)


def _less(floats: NDArray[np.floating], values: Decimals) -> NDArray[np.bool_]:
    return np.less(floats.astype(object), values).astype(bool)
