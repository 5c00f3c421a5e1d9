"""Exact linear expressions over the flat variables, and what a comparison of two of them says.

Input i is the variable i, output j the variable -1 - j.  A comparison becomes a formula in disjunctive normal form
over two kinds of atoms: `Bound`, a closed bound on one input, and `Row`, a linear inequality.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from curvverify.errors import UnsupportedError
from curvverify.spec.exact import EXACT, ZERO

LARGEST_EXPONENT, SMALLEST_EXPONENT = 300, -1000
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?", re.ASCII)
_ONE = Decimal(1)
_CLOSED = ("<=", ">=")


def output_variable(index: int) -> int:
    return -1 - index


def variable_name(variable: int) -> str:
    """The variable's 1.0 name."""
    return f"X_{variable}" if variable >= 0 else f"Y_{-1 - variable}"


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """x_index <= value where `upper`, x_index >= value otherwise."""

    index: int
    upper: bool
    value: Decimal


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """sum of coefficient * variable <= bound, `<` where strict; no variable twice, no coefficient zero."""

    terms: tuple[tuple[int, Decimal], ...]
    bound: Decimal
    strict: bool


Atom = Bound | Row
Branch = tuple[Atom, ...]
"""A conjunction; () is true."""
Formula = tuple[Branch, ...]
"""A disjunction of conjunctions; () is false."""


@dataclass(frozen=True, slots=True)
class Linear:
    """sum of coefficient * variable + constant, exact."""

    terms: dict[int, Decimal]
    constant: Decimal


class NonlinearError(UnsupportedError):
    """A product of two variables; `factors` are one variable of either factor."""

    def __init__(self, factors: tuple[int, int]):
        self.factors = factors
        super().__init__(f"nonlinear term: product of {variable_name(factors[0])} and {variable_name(factors[1])}")


def number(text: str) -> Decimal | None:
    """The decimal, exactly, or None where the text is no number; UnsupportedError out of range."""
    return _in_range(Decimal(text), text) if _NUMBER.fullmatch(text) else None


def constant(value: Decimal) -> Linear:
    return Linear({}, value)


def variable(code: int) -> Linear:
    return Linear({code: _ONE}, ZERO)


def add(parts: Iterable[Linear]) -> Linear:
    terms: dict[int, Decimal] = {}
    total = ZERO
    for part in parts:
        total = EXACT.add(total, part.constant)
        for code, coefficient in part.terms.items():
            terms[code] = EXACT.add(terms[code], coefficient) if code in terms else coefficient
    return Linear(terms, total)


def negate(part: Linear) -> Linear:
    return Linear({code: c.copy_negate() for code, c in part.terms.items()}, part.constant.copy_negate())


def subtract(parts: Sequence[Linear]) -> Linear:
    """The first minus the others; a single one negated."""
    return negate(parts[0]) if len(parts) == 1 else add([parts[0], *map(negate, parts[1:])])


def multiply(parts: Sequence[Linear]) -> Linear:
    """The product; NonlinearError where two factors hold variables (a coefficient of zero counts as none)."""
    product = constant(_ONE)
    for part in parts:
        left, right = _first_variable(product), _first_variable(part)
        if left is not None and right is not None:
            raise NonlinearError((left, right))
        scaled, scale = (part, product.constant) if left is None else (product, part.constant)
        terms = {code: EXACT.multiply(c, scale) for code, c in scaled.terms.items()}
        product = Linear(terms, EXACT.multiply(scaled.constant, scale))
    return product


def compare(operator: str, left: Linear, right: Linear) -> Formula:
    """What `left operator right` says, for <=, <, >=, >, =, ==, !=."""
    if operator in _CLOSED and not right.terms and len(left.terms) == 1 and not left.constant:
        ((code, coefficient),) = left.terms.items()  # nearly every comparison of nearly every file
        if code >= 0 and coefficient == 1:
            return ((Bound(code, operator == "<=", _in_range(right.constant)),),)
    match operator:
        case "<=" | "<":
            return _nonpositive(subtract([left, right]), operator == "<")
        case ">=" | ">":
            return _nonpositive(subtract([right, left]), operator == ">")
        case "=" | "==":
            both = [compare(op, left, right) for op in ("<=", ">=")]
            return ((*both[0][0], *both[1][0]),) if all(both) else ()
        case "!=":
            return compare("<", left, right) + compare(">", left, right)
    raise ValueError(f"no comparison: {operator}")


def inexact_error() -> UnsupportedError:
    """What to raise where `decimal.Inexact` was."""
    return UnsupportedError(f"a constant needs more than {EXACT.prec} decimal digits")


def _nonpositive(expression: Linear, strict: bool) -> Formula:
    """expression <= 0, or < 0 where strict."""
    terms = tuple((code, _in_range(c)) for code, c in expression.terms.items() if c)
    bound = _in_range(expression.constant.copy_negate())
    if not terms:
        return ((),) if bound > 0 or (bound == 0 and not strict) else ()
    row = Row(terms, bound, strict)
    code, coefficient = terms[0]
    if len(terms) > 1 or code < 0:
        return ((row,),)
    value, exact = _quotient(bound, coefficient)
    box = Bound(code, coefficient > 0, value)
    return ((box,),) if exact and not strict else ((box, row),)


def _quotient(bound: Decimal, coefficient: Decimal) -> tuple[Decimal, bool]:
    """bound / coefficient and True, or, where it is no finite decimal, rounded outward to 60 digits and False."""
    if coefficient.copy_abs() == 1:
        return (bound if coefficient > 0 else bound.copy_negate()), True
    try:
        return _in_range(EXACT.divide(bound, coefficient)), True
    except decimal.Inexact:
        outward = decimal.ROUND_CEILING if coefficient > 0 else decimal.ROUND_FLOOR
        return decimal.Context(prec=60, rounding=outward, traps=[]).divide(bound, coefficient), False


def _in_range(value: Decimal, text: str | None = None) -> Decimal:
    """The value itself, if float64 can hold it and its exponent cannot exhaust memory."""
    if value and not SMALLEST_EXPONENT <= value.adjusted() <= LARGEST_EXPONENT:
        raise UnsupportedError(f"number out of range (1e{SMALLEST_EXPONENT} to 1e{LARGEST_EXPONENT}): {text or value}")
    return value


def _first_variable(part: Linear) -> int | None:
    return next((code for code, c in part.terms.items() if c), None)
