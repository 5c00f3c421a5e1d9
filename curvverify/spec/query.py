"""A verification query: is there an input in one of the boxes whose output lies in one of the box's polytopes?

Everything is kept exactly as the file states it, in decimals.  Two floating-point readings are derived from it:

* what a proof must cover: the box and the right-hand sides rounded outward, their float32-rounded form included
  (the competition compares in float32, so that a witness may lie up to half a float32 ulp outside the real box);
* what a witness must satisfy: the exact box, intersected with the float32 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Decimals = NDArray[np.object_]
"""A numpy array of `decimal.Decimal`; entries may be shared objects."""


def float_below(value: Decimal) -> float:
    """Largest float64 not above the decimal."""
    x = float(value)
    return x if Decimal(x) <= value else float(np.nextafter(x, -np.inf))


def float_above(value: Decimal) -> float:
    """Smallest float64 not below the decimal."""
    x = float(value)
    return x if Decimal(x) >= value else float(np.nextafter(x, np.inf))


@dataclass(frozen=True, eq=False)
class InputBox:
    """lower <= x <= upper over the flattened input (n,), in exact decimals."""

    lower: Decimals
    upper: Decimals

    @property
    def size(self) -> int:
        return len(self.lower)

    @cached_property
    def empty(self) -> bool:
        """True where some lower bound exceeds the upper one, float32 rounding included: no input at all."""
        low, high = self.cover
        return bool((low > high).any())

    @cached_property
    def cover(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a proof must cover: float64 bounds (n,), (n,) around the exact and the float32-rounded box."""
        low = _each(self.lower, lambda v: min(float_below(v), float(np.float32(float(v)))))
        high = _each(self.upper, lambda v: max(float_above(v), float(np.float32(float(v)))))
        return low, high

    @cached_property
    def witness_range(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Smallest and largest float32 in the exact box, (n,), (n,).

        A coordinate whose exact interval holds no float32 number gets the nearest one to its lower bound, which the
        competition's float32 comparison accepts.
        """
        low = _each(self.lower, _float32_not_below, np.float32)
        high = _each(self.upper, _float32_not_above, np.float32)
        nearest = _each(self.lower, lambda v: np.float32(float(v)), np.float32)
        none = low > high
        return np.where(none, nearest, low), np.where(none, nearest, high)


@dataclass(frozen=True, eq=False)
class Polytope:
    """{(x, y): output y + input x <= bound}, row by row, with `<` where strict: the unsafe set of one disjunct.

    output (k, m), input (k, n) or None where no row mentions the input, bound (k,), strict (k,), all exact.
    No rows at all means every output is unsafe.
    """

    output: Decimals
    input: Decimals | None
    bound: Decimals
    strict: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        return len(self.bound)

    @cached_property
    def output_matrix(self) -> NDArray[np.float64]:
        """The output coefficients (k, m) in float64, nearest."""
        return self.output.astype(np.float64)

    @cached_property
    def input_matrix(self) -> NDArray[np.float64] | None:
        """The input coefficients (k, n) in float64, nearest."""
        return None if self.input is None else self.input.astype(np.float64)

    @cached_property
    def bound_cover(self) -> NDArray[np.float64]:
        """Upper bounds (k,) on the right-hand sides, their float32-rounded form included: what a proof must exceed."""
        return _each(self.bound, lambda v: max(float_above(v), float(np.float32(float(v)))))

    def contains(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> bool:
        """Whether the exact rational values of x (n,) and y (m,) satisfy every row, with zero tolerance."""
        for k in range(self.rows):
            left = _dot(self.output[k], y) + (_dot(self.input[k], x) if self.input is not None else 0)
            right = _fraction(self.bound[k])
            if not (left < right if self.strict[k] else left <= right):
                return False
        return True


@dataclass(frozen=True, eq=False)
class Group:
    """One input box with the polytopes any of which makes it unsafe."""

    box: InputBox
    disjuncts: tuple[Polytope, ...]


@dataclass(frozen=True)
class Variable:
    """A declared network variable of the file, in order: its name, element type, shape, and whether it is an output."""

    name: str
    element_type: str
    shape: tuple[int, ...]
    output: bool


@dataclass(frozen=True, eq=False)
class Query:
    """sat where, for some group, some x in its box has (x, f(x)) in one of its polytopes; unsat otherwise."""

    groups: tuple[Group, ...]
    inputs: int
    """Flat number of input entries."""
    outputs: int
    """Flat number of output entries."""
    version: str
    """VNN-LIB version of the source, "1.0" or "2.0"."""
    path: str = ""
    network: str = ""
    """Name of the declared network (VNN-LIB 2.0), empty for 1.0."""
    variables: tuple[Variable, ...] = ()
    """The declared variables of a 2.0 file; a 1.0 file has X_i and Y_i only."""
    notes: tuple[str, ...] = ()


def _each(values: Decimals, function, dtype: type = np.float64) -> NDArray:  # noqa: ANN001
    """The function of every entry, computed once per distinct object."""
    memo: dict[int, object] = {}
    flat = values.ravel()
    out = np.empty(flat.shape, dtype)
    for i, value in enumerate(flat):
        key = id(value)
        if key not in memo:
            memo[key] = function(value)
        out[i] = memo[key]
    return out.reshape(values.shape)


def _float32_not_below(value: Decimal) -> np.float32:
    x = np.float32(float(value))
    return x if Decimal(float(x)) >= value else np.nextafter(x, np.float32(np.inf))


def _float32_not_above(value: Decimal) -> np.float32:
    x = np.float32(float(value))
    return x if Decimal(float(x)) <= value else np.nextafter(x, np.float32(-np.inf))


def _fraction(value: Decimal):  # noqa: ANN202
    from fractions import Fraction

    return Fraction(value)


def _dot(coefficients: Decimals, values: NDArray[np.floating]):  # noqa: ANN202
    """Exact sum of products of decimals with binary floats."""
    used = np.flatnonzero(coefficients.astype(bool))
    return sum((_fraction(coefficients[i]) * _fraction(Decimal(float(values[i]))) for i in used), start=_fraction(Decimal(0)))
