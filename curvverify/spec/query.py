"""A verification query: is there an input in one of the boxes whose output lies in one of the box's polytopes?

Everything is kept exactly as the file states it, in decimals.  Two floating-point readings are derived from it:

* what a proof must cover: the box and the right-hand sides rounded outward, their float32-rounded form included
  (the competition compares in float32, so that a witness may lie up to half a float32 ulp outside the real box);
* what a witness must satisfy: the exact box, intersected with the float32 numbers, and every row both exactly and as
  the competition compares it.

A box is closed.  Where the file bounds one input strictly (`X_0 < 3`), the box takes the closed bound and every
polytope of that box also carries the strict row over the input: a proof covers slightly more, a witness obeys it.  The
same goes for a bound that is no finite decimal (`3 X_0 <= 1`): rounded outward in the box, exact in the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from curvverify.spec.exact import (
    Decimals,
    Numbers,
    cover_above,
    float32_nearest,
    float_above,
    float_below,
    nearest_error,
)

__all__ = ["Decimals", "Group", "InputBox", "Polytope", "Query", "Variable", "float_above", "float_below"]


class InputBox:
    """lower <= x <= upper over the flattened input (n,), in exact decimals."""

    def __init__(self, lower: Decimals, upper: Decimals):
        size = len(lower)
        if len(upper) != size:
            raise ValueError(f"{size} lower bounds and {len(upper)} upper bounds")
        numbers = Numbers([*lower, *upper])
        self._assign(numbers, np.arange(size, dtype=np.int32), np.arange(size, 2 * size, dtype=np.int32))

    @classmethod
    def from_table(cls, numbers: Numbers, lower: NDArray[np.int32], upper: NDArray[np.int32]) -> InputBox:
        """A box whose bounds are positions (n,), (n,) in a table that many boxes share."""
        box = cls.__new__(cls)
        box._assign(numbers, lower, upper)
        return box

    def _assign(self, numbers: Numbers, lower: NDArray[np.int32], upper: NDArray[np.int32]) -> None:
        self._numbers, self._lower, self._upper = numbers, lower, upper

    @property
    def size(self) -> int:
        return len(self._lower)

    @property
    def lower(self) -> Decimals:
        return self._numbers.decimals[self._lower]

    @property
    def upper(self) -> Decimals:
        return self._numbers.decimals[self._upper]

    @cached_property
    def empty(self) -> bool:
        """True where, for some coordinate, neither the exact nor the float32-rounded interval holds any number.

        Sound because: the cover is the union of both, with r(v) the float32 form of v: min(l, r(l)) > max(u, r(u))
        exactly where l > u and r(l) > r(u) (r is monotone, and l >= r(u), r(l) >= u follow from the two).
        """
        low, high = self.cover
        return bool((low > high).any())

    @property
    def cover(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a proof must cover: float64 bounds (n,), (n,) around the exact and the float32-rounded box."""
        return self._numbers.cover_below[self._lower], self._numbers.cover_above[self._upper]

    @property
    def witness_range(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Smallest and largest float32 in the exact box, (n,), (n,).

        A coordinate whose exact interval holds no float32 number gets the nearest one to its lower bound, which the
        competition's float32 comparison accepts.  Meaningless where the box is `empty`.
        """
        low = self._numbers.float32_above[self._lower]
        high = self._numbers.float32_below[self._upper]
        none = low > high
        if none.any():
            nearest = self._numbers.float32_nearest[self._lower]
            low, high = np.where(none, nearest, low), np.where(none, nearest, high)
        return low, high

    def holds(self, x: NDArray[np.float32]) -> bool:
        """Whether the float32 input (n,) may be a witness: finite, inside `witness_range`, the box not empty."""
        low, high = self.witness_range
        return bool(((low <= x) & (x <= high) & np.isfinite(x)).all()) and not self.empty


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
    def output_error(self) -> NDArray[np.float64]:
        """Upper bounds (k, m) on |output - output_matrix|, zero where the coefficient is a float64 number."""
        return nearest_error(self.output)

    @cached_property
    def input_error(self) -> NDArray[np.float64] | None:
        """Upper bounds (k, n) on |input - input_matrix|, None where no row mentions the input."""
        return None if self.input is None else nearest_error(self.input)

    @cached_property
    def bound_cover(self) -> NDArray[np.float64]:
        """Upper bounds (k,) on the right-hand sides, their float32-rounded form included: what a proof must exceed.

        A row over a single variable with a negative coefficient, -y <= b, states y >= -b: rounding is symmetric.
        """
        return cover_above(self.bound)

    @cached_property
    def _sparse(self) -> tuple[tuple[tuple[tuple[int, Fraction], ...], tuple[tuple[int, Fraction], ...]], ...]:
        """Every row's nonzero (position, coefficient), over the input and over the output."""
        nothing = ((),) * self.rows
        return tuple(zip(nothing if self.input is None else _nonzero(self.input), _nonzero(self.output), strict=True))

    @cached_property
    def _float32_bound(self) -> NDArray[np.float32]:
        return float32_nearest(self.bound)

    def contains(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> bool:
        """Whether the exact rational values of x (n,) and y (m,) satisfy every row, with zero tolerance.

        A row that reads a NaN or an infinity is not satisfied.
        """
        return all(self._row_holds(k, x, y) for k in range(self.rows))

    def accepts(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> bool:
        """Whether every row holds exactly and, for +-v <= bound, also with the bound rounded to float32.

        Between two variables the exact and the float32 comparison are one.
        """
        return all(self._row_holds(k, x, y) and self._float32_row_holds(k, x, y) for k in range(self.rows))

    def _row_holds(self, k: int, x: NDArray[np.floating], y: NDArray[np.floating]) -> bool:
        terms = [(c, float(v[i])) for row, v in zip(self._sparse[k], (x, y), strict=True) for i, c in row]
        if not all(np.isfinite(v) for _, v in terms):
            return False
        left, right = sum((c * Fraction(v) for c, v in terms), start=Fraction(0)), Fraction(self.bound[k])
        return left < right if self.strict[k] else left <= right

    def _float32_row_holds(self, k: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> bool:
        terms = [(c, v[i]) for row, v in zip(self._sparse[k], (x, y), strict=True) for i, c in row]
        if len(terms) != 1 or abs(terms[0][0]) != 1:
            return True
        left, right = float(terms[0][0]) * float(terms[0][1]), float(self._float32_bound[k])
        return left < right if self.strict[k] else left <= right


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

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


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

    @property
    def element_types(self) -> tuple[str, ...]:
        """The distinct element types of the variables, in order of declaration; a 1.0 file knows only `real`."""
        return tuple(dict.fromkeys(v.element_type for v in self.variables)) or ("real",)

    def satisfied_by(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[int, int] | None:
        """The first (group, disjunct) for which the float32 point x (n,) with output y (m,) is a witness, or None.

        x counts as inside a box where `InputBox.holds` says so; the rows must hold exactly and in float32.
        """
        with np.errstate(over="ignore"):
            x, y = np.asarray(x).astype(np.float32).ravel(), np.asarray(y).astype(np.float32).ravel()
        if x.size != self.inputs or y.size != self.outputs:
            raise ValueError(f"a point of {x.size} and {y.size} entries for a query of {self.inputs}, {self.outputs}")
        for g, group in enumerate(self.groups):
            if group.box.holds(x):
                for d, polytope in enumerate(group.disjuncts):
                    if polytope.accepts(x, y):
                        return g, d
        return None


def _nonzero(coefficients: Decimals) -> list[tuple[tuple[int, Fraction], ...]]:
    return [tuple((int(i), Fraction(row[i])) for i in np.flatnonzero(row.astype(bool))) for row in coefficients]
