"""Random formulas with three readings: VNN-LIB 1.0 text, VNN-LIB 2.0 text, and direct exact evaluation."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from curvverify.spec import Query

INPUTS, OUTPUTS = 2, 2
COMPARE = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "=": operator.eq,
    "!=": operator.ne,
}
CONSTANTS = ["0.0", "1.0", "-1.0", "0.5", "-0.5", "2.0", "3.0", "-1.5", "0.25"]
POINTS = [-2.0, -1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 0.33333334, 0.3333333]


@dataclass(frozen=True)
class Node:
    """An operator with its operands, or a leaf without: a variable or a decimal text."""

    head: str
    parts: tuple[Node, ...] = ()

    def text(self, version: str) -> str:
        if self.parts:
            head = "==" if version == "2.0" and self.head == "=" else self.head
            return f"({head} {' '.join(part.text(version) for part in self.parts)})"
        if version == "2.0" and self.head[0] in "XY":
            return f"{self.head[0]}[0,{self.head[2:]}]"
        return self.head

    def value(self, point: dict[str, Fraction]) -> Fraction:
        if not self.parts:
            return point[self.head] if self.head in point else Fraction(Decimal(self.head))
        values = [part.value(point) for part in self.parts]
        if self.head == "*":
            return Fraction(np.prod(np.array(values, object)))
        if self.head == "-":
            return -values[0] if len(values) == 1 else values[0] - sum(values[1:])
        return Fraction(sum(values))

    def holds(self, point: dict[str, Fraction]) -> bool:
        if self.head in COMPARE:
            return COMPARE[self.head](*(part.value(point) for part in self.parts))
        return (all if self.head == "and" else any)(part.holds(point) for part in self.parts)


def node(head: str, *parts: Node) -> Node:
    return Node(head, parts)


variables = st.sampled_from([Node(f"X_{i}") for i in range(INPUTS)] + [Node(f"Y_{i}") for i in range(OUTPUTS)])
constants = st.sampled_from([Node(text) for text in CONSTANTS])
numeric = st.one_of(constants, st.builds(lambda a, b: node("*", a, b), constants, constants))
terms = st.recursive(
    st.one_of(variables, constants),
    lambda inner: st.one_of(
        st.builds(lambda parts: node("+", *parts), st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda parts: node("-", *parts), st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda c, t: node("*", c, t), numeric, inner),
        st.builds(lambda t, c: node("*", t, c), inner, numeric),
    ),
    max_leaves=4,
)
simple = st.tuples(variables, st.one_of(constants, variables))
sides = st.one_of(simple, st.tuples(terms, terms))


def formulas(operators: list[str]) -> st.SearchStrategy[Node]:
    comparisons = st.builds(lambda op, pair: node(op, *pair), st.sampled_from(operators), sides)
    return st.recursive(
        comparisons,
        lambda inner: st.builds(
            lambda head, parts: node(head, *parts),
            st.sampled_from(["and", "or"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        max_leaves=8,
    )


def bounded(formula: Node) -> list[Node]:
    """The formula with a box [-2, 2] around every input, as separate assertions."""
    box = [
        node(op, Node(f"X_{i}"), Node(bound)) for i in range(INPUTS) for op, bound in ((">=", "-2.0"), ("<=", "2.0"))
    ]
    return [*box, formula]


def print_1(assertions: list[Node]) -> str:
    names = [f"X_{i}" for i in range(INPUTS)] + [f"Y_{i}" for i in range(OUTPUTS)]
    lines = [f"(declare-const {name} Real)" for name in names]
    return "\n".join(lines + [f"(assert {a.text('1.0')})" for a in assertions])


def print_2(assertions: list[Node]) -> str:
    head = (
        "(vnnlib-version <2.0>)\n(declare-network f\n"
        f"  (declare-input X float32 [1,{INPUTS}])\n  (declare-output Y float32 [1,{OUTPUTS}]))"
    )
    return "\n".join([head] + [f"(assert {a.text('2.0')})" for a in assertions])


def direct(assertions: list[Node], x: np.ndarray, y: np.ndarray) -> bool:
    """Whether every assertion holds at the point, in exact arithmetic on the formula itself."""
    point = {f"X_{i}": Fraction(float(v)) for i, v in enumerate(x)}
    point |= {f"Y_{i}": Fraction(float(v)) for i, v in enumerate(y)}
    return all(a.holds(point) for a in assertions)


def exactly(query: Query, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the point is in some exact box and one of its polytopes."""
    for group in query.groups:
        inside = all(low <= float(v) <= high for low, v, high in zip(group.box.lower, x, group.box.upper, strict=True))
        if inside and any(p.contains(x, y) for p in group.disjuncts):
            return True
    return False
