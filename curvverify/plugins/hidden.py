"""A query in VNN-LIB 2.0 that states proved bounds on hidden nodes: lemmas that another tool may use.

The assertions hold for every input of the query's boxes, so that the query with them is satisfiable exactly where the
one without them is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from curvverify.errors import UnsupportedError
from curvverify.spec.query import Decimals, Group, InputBox, Polytope, Query, Variable

if TYPE_CHECKING:
    from curvverify.graph import LoadedModel
    from curvverify.plugins.exchange import BoundsFile


def hidden_query(query: Query, bounds: BoundsFile, loaded: LoadedModel) -> str:
    """The query with `declare-hidden` and two assertions per entry for every value that is neither input nor output.

    A query of either version comes out in disjunctive form, with its own exact decimals.  UnsupportedError for a model
    with several inputs or outputs where the query is of version 1.0, which does not say which is which.
    """
    variables = query.variables
    if not variables:
        if len(loaded.inputs) != 1 or len(loaded.outputs) != 1:
            raise UnsupportedError(f"{query.path}: a 1.0 query cannot name the inputs and outputs of {loaded.name}")
        variables = (
            Variable("X", "real", loaded.inputs[0].shape, False),
            Variable("Y", "real", loaded.outputs[0].shape, True),
        )
    ends = {port.name for port in (*loaded.inputs, *loaded.outputs)}
    shapes = {name: node.shape for node in loaded.graph for name in node.values}
    hidden = [(f"H_{k}", name) for k, name in enumerate(n for n in bounds.values if n in shapes and n not in ends)]
    kind = variables[0].element_type
    lines = ["(vnnlib-version <2.0>)", f"(declare-network {query.network or 'f'}"]
    lines += [_declared("input", v.name, v.element_type, v.shape) for v in variables if not v.output]
    lines += [_declared("hidden", name, kind, shapes[value], value) for name, value in hidden]
    lines += [_declared("output", v.name, v.element_type, v.shape) for v in variables if v.output]
    lines[-1] += ")"
    inputs = [e for v in variables if not v.output for e in _entries(v.name, v.shape)]
    outputs = [e for v in variables if v.output for e in _entries(v.name, v.shape)]
    groups = [_group(group, inputs, outputs) for group in query.groups if not group.box.empty]
    lines.append(f"(assert {_either(groups)})")
    for name, value in hidden:
        known = bounds.values[value]
        for entry, low, high in zip(
            _entries(name, shapes[value]), known.lower.ravel(), known.upper.ravel(), strict=True
        ):
            lines += [f"(assert (>= {entry} {_below(low)}))"] if np.isfinite(low) else []
            lines += [f"(assert (<= {entry} {_above(high)}))"] if np.isfinite(high) else []
    return "\n".join(lines) + "\n"


def _declared(what: str, name: str, kind: str, shape: tuple[int, ...], value: str | None = None) -> str:
    quoted = "" if value is None else f' "{value}"'
    return f"  (declare-{what} {name} {kind} [{','.join(map(str, shape))}]{quoted})"


def _entries(name: str, shape: tuple[int, ...]) -> list[str]:
    """The entries of a variable in row-major order, as the standard writes them."""
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def _group(group: Group, inputs: list[str], outputs: list[str]) -> str:
    parts = list(_boxed(group.box, inputs))
    parts.append(_either([_polytope(p, inputs, outputs) for p in group.disjuncts]))
    return _all(parts)


def _boxed(box: InputBox, inputs: list[str]) -> Iterator[str]:
    for entry, low, high in zip(inputs, box.lower, box.upper, strict=True):
        yield f"(>= {entry} {_exact(low)})"
        yield f"(<= {entry} {_exact(high)})"


def _polytope(polytope: Polytope, inputs: list[str], outputs: list[str]) -> str:
    rows = []
    for k in range(polytope.rows):
        terms = list(_terms(polytope.output[k], outputs))
        if polytope.input is not None:
            terms += _terms(polytope.input[k], inputs)
        left = "0.0" if not terms else terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"
        rows.append(f"({'<' if polytope.strict[k] else '<='} {left} {_exact(polytope.bound[k])})")
    return _all(rows or ["(<= 0.0 0.0)"])


def _terms(coefficients: Decimals, entries: list[str]) -> Iterator[str]:
    for k in np.flatnonzero(coefficients.astype(bool)):
        yield entries[k] if coefficients[k] == 1 else f"(* {_exact(coefficients[k])} {entries[k]})"


def _all(parts: Iterable[str]) -> str:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else f"(and {' '.join(parts)})"


def _either(parts: list[str]) -> str:
    if not parts:
        return "(< 0.0 0.0)"
    return parts[0] if len(parts) == 1 else f"(or {' '.join(parts)})"


def _exact(value: Decimal) -> str:
    """The decimal itself, without exponent and with a point."""
    text = format(value, "f")
    return text if "." in text else text + ".0"


def _below(value: float) -> str:
    """A decimal not above the number: the shortest one of its lower neighbour may be off by half a unit, no more."""
    return np.format_float_positional(np.nextafter(value, -np.inf), trim="0")


def _above(value: float) -> str:
    """A decimal not below the number."""
    return np.format_float_positional(np.nextafter(value, np.inf), trim="0")
