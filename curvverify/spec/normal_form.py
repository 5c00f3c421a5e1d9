"""Disjunctive normal form, and from there the query's groups: one input box with the polytopes that share it.

Atoms asserted unconditionally stay outside the disjunction: they make the base box and the common rows, and a branch
only pays for what it adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from curvverify.errors import UnsupportedError
from curvverify.spec.exact import ZERO, Decimals, Numbers, decimals
from curvverify.spec.linear import Atom, Bound, Branch, Formula, Row
from curvverify.spec.query import Group, InputBox, Polytope

MAX_BRANCHES = 200_000
MAX_ATOMS = 20_000_000
"""Over all branches together; also the limit on entries of all boxes, and of all polytopes' matrices, together."""

NO_BRANCH = "the assertions contradict each other, whatever the network computes"
"""The note of a query without groups."""


class UnboundedInputError(Exception):
    """An input without a lower or an upper bound in some branch; `index` is the flat input."""

    def __init__(self, index: int, side: str, branch: int | None):
        self.index, self.side, self.branch = index, side, branch
        super().__init__(self.describe(f"input {index}"))

    def describe(self, name: str) -> str:
        where = "" if self.branch is None else f" in branch {self.branch + 1} of the disjunctive normal form"
        return f"{name} has no {self.side} bound{where}: every input must lie in a box"


def disjoin(parts: Iterable[Formula]) -> Formula:
    """The parts' branches, one after the other."""
    return tuple(branch for part in parts for branch in part)


def conjoin(parts: Sequence[Formula]) -> Formula:
    """All ways to pick a branch of every part; UnsupportedError beyond the stated limits."""
    if not all(parts):
        return ()
    prefix = tuple(atom for part in parts if len(part) == 1 for atom in part[0])
    branches: list[Branch] = [prefix]
    choices = [part for part in parts if len(part) > 1]
    _check_size(choices, len(prefix))
    for part in choices:
        branches = [(*branch, *more) for branch in branches for more in part]
    return tuple(branches)


def _check_size(choices: Sequence[Formula], prefix: int) -> None:
    count = 1
    for part in choices:
        count *= len(part)
    if count > MAX_BRANCHES:
        raise UnsupportedError(f"the disjunctive normal form has {count} branches, more than {MAX_BRANCHES}")
    atoms = count * prefix + sum(count // len(part) * sum(map(len, part)) for part in choices)
    if choices and atoms > MAX_ATOMS:
        raise UnsupportedError(f"the disjunctive normal form has {atoms} atoms, more than {MAX_ATOMS}")


def build_groups(assertions: Sequence[Formula], inputs: int, outputs: int) -> tuple[Group, ...]:
    """The groups of the conjunction of all assertions, in order of first appearance; () where it is plainly false.

    Raises UnboundedInputError.
    """
    if not all(assertions):
        return ()
    common = [atom for formula in assertions if len(formula) == 1 for atom in formula[0]]
    builder = _Builder(common, inputs, outputs)
    branches = conjoin([formula for formula in assertions if len(formula) > 1])
    for k, branch in enumerate(branches):
        builder.add(branch, k if len(branches) > 1 else None)
    return builder.groups()


class _Builder:
    """Collects branches: equal boxes once, equal rows once."""

    def __init__(self, common: Sequence[Atom], inputs: int, outputs: int):
        self.inputs, self.outputs = inputs, outputs
        self.numbers = _NumberTable()
        self.rows = tuple(atom for atom in common if isinstance(atom, Row))
        self.lower = np.full(inputs, -1, np.int32)
        self.upper = np.full(inputs, -1, np.int32)
        self._tighten(self.lower, self.upper, common)
        self.boxes: dict[bytes, int] = {}
        self.bounds: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
        self.disjuncts: list[dict[tuple[Row, ...], Polytope]] = []
        self.polytopes: dict[tuple[Row, ...], Polytope] = {}
        self.entries = 0

    def add(self, branch: Branch, number: int | None) -> None:
        """One more branch: its box joined with the base box, its rows with the common rows."""
        rows = (*self.rows, *(atom for atom in branch if isinstance(atom, Row)))
        position = self._position(branch, number)
        if rows not in self.polytopes:
            polytope = self.polytopes[rows] = _polytope(rows, self.inputs, self.outputs)
            self.entries += polytope.output.size + (0 if polytope.input is None else polytope.input.size)
            if self.entries > MAX_ATOMS:
                raise UnsupportedError(f"the polytopes have more than {MAX_ATOMS} coefficients together")
        self.disjuncts[position].setdefault(rows, self.polytopes[rows])

    def groups(self) -> tuple[Group, ...]:
        numbers = Numbers(self.numbers.values)
        return tuple(
            Group(InputBox.from_table(numbers, lower, upper), tuple(disjuncts.values()))
            for (lower, upper), disjuncts in zip(self.bounds, self.disjuncts, strict=True)
        )

    def _position(self, branch: Branch, number: int | None) -> int:
        """The position of the branch's box among the distinct boxes."""
        lower, upper = self.lower.copy(), self.upper.copy()
        self._tighten(lower, upper, branch)
        key = lower.tobytes() + upper.tobytes()
        position = self.boxes.setdefault(key, len(self.boxes))
        if position == len(self.bounds):
            for codes, side in ((lower, "lower"), (upper, "upper")):
                if (codes < 0).any():
                    raise UnboundedInputError(int((codes < 0).argmax()), side, number)
            if len(self.boxes) * self.inputs > MAX_ATOMS:
                raise UnsupportedError(f"more than {MAX_ATOMS // self.inputs} distinct boxes over {self.inputs} inputs")
            self.bounds.append((lower, upper))
            self.disjuncts.append({})
        return position

    def _tighten(self, lower: NDArray[np.int32], upper: NDArray[np.int32], atoms: Iterable[Atom]) -> None:
        """Intersect the box, in place, with the bounds among the atoms."""
        values, code_of = self.numbers.values, self.numbers.code
        for atom in atoms:
            if isinstance(atom, Bound):
                value, index = atom.value, atom.index
                codes = upper if atom.upper else lower
                held = codes[index]
                if held < 0 or (value < values[held] if atom.upper else value > values[held]):
                    codes[index] = code_of(value)


class _NumberTable:
    """Distinct decimal values in order of first appearance."""

    def __init__(self) -> None:
        self.values: list[Decimal] = []
        self._by_value: dict[Decimal, int] = {}
        self._by_object: dict[int, int] = {}

    def code(self, value: Decimal) -> int:
        """Position of the value; by identity first (hashing a Decimal is slow), which the atoms keep alive."""
        code = self._by_object.get(id(value))
        if code is None:
            code = self._by_value.setdefault(value, len(self.values))
            if code == len(self.values):
                self.values.append(value)
            self._by_object[id(value)] = code
        return code


def _polytope(rows: Sequence[Row], inputs: int, outputs: int) -> Polytope:
    mixed = any(code >= 0 for row in rows for code, _ in row.terms)
    output = np.full((len(rows), outputs), ZERO, object)
    over_input = np.full((len(rows), inputs), ZERO, object) if mixed else None
    for k, row in enumerate(rows):
        for code, coefficient in row.terms:
            if code < 0:
                output[k, -1 - code] = coefficient
            elif over_input is not None:
                over_input[k, code] = coefficient
    bound: Decimals = decimals([row.bound for row in rows])
    return Polytope(output, over_input, bound, np.array([row.strict for row in rows], np.bool_))
