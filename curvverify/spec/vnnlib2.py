"""VNN-LIB 2.0, through the parser and typed syntax tree of the PyPI package `vnnlib`.

Only its tree is used: the package's own normal form (`vnnlib.compat`) joins several disjunctive assertions by `or`
and drops strictness.  Constants are read from the tree's decimal text.
"""

from __future__ import annotations

import decimal
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from curvverify.errors import ParseError, UnsupportedError
from curvverify.spec.linear import (
    Formula,
    Linear,
    NonlinearError,
    add,
    compare,
    constant,
    inexact_error,
    multiply,
    negate,
    number,
    output_variable,
    subtract,
    variable,
)
from curvverify.spec.normal_form import NO_BRANCH, UnboundedInputError, build_groups, conjoin, disjoin
from curvverify.spec.query import Query, Variable
from curvverify.spec.text import line_of, strip_comments

MAX_DEPTH = 200
"""Nested parentheses; the package itself crashes somewhere beyond 20,000."""

_ELEMENT_TYPES = {
    "Real": "real",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": "bfloat16",
    "F8E4M3FN": "float8e4m3fn",
    "F8E5M2": "float8e5m2",
    "F8E4M3FNUZ": "float8e4m3fnuz",
    "F8E5M2FNUZ": "float8e5m2fnuz",
    "F4E2M1": "float4e2m1",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "C64": "complex64",
    "C128": "complex128",
    "Bool": "bool",
}
_MISTAKES = (
    (r"\(\s*vnnlib-version\s+[^<\s]", "the version lacks its angle brackets: write (vnnlib-version <2.0>)"),
    (
        r"\(\s+(?:assert|vnnlib-version|declare-[a-z]+|isomorphic-to|equal-to)\b",
        "a space between '(' and the keyword: write (assert ...), not ( assert ...)",
    ),
    (
        r"\(declare-(?:input|hidden|output)\s+\S+\s+Real\b",
        "unknown type Real: VNN-LIB 2.0 spells it in lower case, real",
    ),
)
"""What the package rejects (or, for Real, half accepts) without saying why, and what to write instead."""
_VERSION = re.compile(r"\(vnnlib-version\s+<\s*([0-9]+)\.([0-9]+)\s*>")
_EXPONENT = re.compile(r"(?<![\w.])[+-]?[0-9]*\.?[0-9]+[eE][+-]?[0-9]+")
_SYNTAX_ERROR = re.compile(r"syntax error at line (\d+), column (\d+)(?:: '(.*)')?", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def parse(text: str, path: str = "<string>") -> Query:
    """The query that a VNN-LIB 2.0 text states.

    Raises ParseError where it is malformed; UnsupportedError for several networks, hidden nodes and products of
    variables, by name.
    """
    tree = _tree(text, path)
    walker = _Walker(tree, text, path)
    assertions = [walker.assertion(item.expr) for item in tree.assertions]
    try:
        groups = build_groups(assertions, walker.inputs, walker.outputs)
    except UnboundedInputError as error:
        raise ParseError(path, None, error.describe(walker.name_of(error.index))) from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}") from error
    return Query(
        groups,
        walker.inputs,
        walker.outputs,
        "2.0",
        path,
        network=tree.networks[0].name,
        variables=walker.variables,
        notes=() if groups else (NO_BRANCH,),
    )


def _tree(text: str, path: str) -> Any:
    """The package's syntax tree, its complaints as ParseError."""
    import vnnlib  # costs start-up time, and 1.0 files do without it

    bare = strip_comments(text)
    version = _VERSION.search(bare)
    if version is not None and version[1] != "2":
        raise UnsupportedError(f"{path}: VNN-LIB version {version[1]}.{version[2]}: 1.0 and 2.0 are read")
    for pattern, advice in _MISTAKES:
        mistake = re.search(pattern, bare)
        if mistake is not None:
            raise ParseError(path, line_of(bare, mistake.start()), advice)
    if version is None:
        raise ParseError(path, None, "no version: expected (vnnlib-version <2.0>) first")
    depth = _depth(bare)
    if depth > MAX_DEPTH:
        raise UnsupportedError(f"{path}: {depth} nested parentheses, more than {MAX_DEPTH}")
    try:
        return vnnlib.parse_query_string(text)
    except (IndexError, OverflowError) as error:  # std::out_of_range from the package's own conversion
        raise UnsupportedError(f"{path}: a number is out of range of its type: {error}") from error
    except vnnlib.VNNLibException as error:
        raise _parse_error(_COLOUR.sub("", str(error)), bare, path, version[2]) from error


def _depth(text: str) -> int:
    marks = np.frombuffer(text.encode(), np.uint8)
    marks = marks[(marks == ord("(")) | (marks == ord(")"))]
    return int(np.cumsum(np.where(marks == ord("("), 1, -1)).max(initial=0))


def _parse_error(message: str, text: str, path: str, minor: str) -> ParseError:
    """The package's message with its line, in our words."""
    syntax = _SYNTAX_ERROR.search(message)
    if syntax is not None:
        line = int(syntax[1])
        found = repr(syntax[3]) if syntax[3] else "the end of the file"
        said = f"syntax error at {found}, column {syntax[2]}"
        written = text.splitlines()[line - 1 : line] or [""]
        exponent = _EXPONENT.search(written[0])
        if exponent is not None:
            said += f"; numbers have no exponent in VNN-LIB 2.0: write {exponent[0]} as a plain decimal"
        if minor != "0":
            said += f"; the file says version 2.{minor}, 2.0 is read"
        return ParseError(path, line, said)
    try:
        first = json.loads(message)["errors"][0]
        line, said = first.get("line"), f"{first['message']}: {first['offendingSymbol']}. {first['hint']}"
    except (ValueError, LookupError, TypeError):
        return ParseError(path, None, message)
    if "IntConstant" in said and "ype mismatch" in said:
        said += " Write floating-point constants with a decimal point, integers without."
    return ParseError(path, line, said)


class _Walker:
    """From the syntax tree of one single-network query to formulas over flat variables."""

    def __init__(self, tree: Any, text: str, path: str):
        import vnnlib

        self.path = path
        self.variables = _declared(tree, text, path)
        self.inputs = sum(v.size for v in self.variables if not v.output)
        self.outputs = sum(v.size for v in self.variables if v.output)
        self.places = _places(self.variables)
        self.product: Any = None  # the one multiplied last, for the line of an error
        self.known: dict[tuple[str, object, object], Formula] = {}
        self.connectives = {vnnlib.And: conjoin, vnnlib.Or: disjoin}
        self.comparisons = {
            vnnlib.LessEqual: "<=",
            vnnlib.LessThan: "<",
            vnnlib.GreaterEqual: ">=",
            vnnlib.GreaterThan: ">",
            vnnlib.Equal: "==",
            vnnlib.NotEqual: "!=",
        }
        self.keys: dict[type, Callable[[Any], object]] = {
            vnnlib.Var: lambda e: (e.name, *e.indices),
            vnnlib.Float: lambda e: e.lexeme,
            vnnlib.Int: lambda e: e.lexeme,
        }
        self.terms: dict[type, Callable[[Any], Linear]] = {
            vnnlib.Var: self._variable,
            vnnlib.Float: self._literal,
            vnnlib.Int: self._literal,
            vnnlib.Negate: lambda e: negate(self._linear(e.expr)),
            vnnlib.Plus: lambda e: add(map(self._linear, e.args)),
            vnnlib.Minus: lambda e: subtract([self._linear(e.head), *map(self._linear, e.rest)]),
            vnnlib.Multiply: self._product,
        }

    def assertion(self, expression: Any) -> Formula:
        """The assertion's normal form; UnsupportedError names the line."""
        try:
            return self._formula(expression)
        except NonlinearError as error:
            names = " and ".join(map(self.name_of, error.factors))
            raise self._unsupported(self.product, f"nonlinear arithmetic: product of {names}") from error
        except decimal.Inexact as error:
            raise self._unsupported(expression, inexact_error()) from error
        except UnsupportedError as error:
            raise self._unsupported(expression, error) from error

    def name_of(self, code: int) -> str:
        """The entry's name in the file, as X[0,3]."""
        flat = code if code >= 0 else -1 - code
        for v in self.variables:
            if v.output == (code < 0):
                if flat < v.size:
                    place = ",".join(str(int(i)) for i in np.unravel_index(flat, v.shape)) if v.shape else ""
                    return f"{v.name}[{place}]" if place else v.name
                flat -= v.size
        raise IndexError(code)

    def _formula(self, expression: Any) -> Formula:
        kind = type(expression)
        join = self.connectives.get(kind)
        if join is not None:
            return join([self._formula(part) for part in expression.args])
        if kind not in self.comparisons:
            raise UnsupportedError(f"{kind.__name__} where a comparison was expected")
        operator, left, right = self.comparisons[kind], expression.lhs, expression.rhs
        if type(left) not in self.keys or type(right) not in self.keys:
            return compare(operator, self._linear(left), self._linear(right))
        key = operator, self.keys[type(left)](left), self.keys[type(right)](right)
        formula = self.known.get(key)
        if formula is None:
            formula = self.known[key] = compare(operator, self._linear(left), self._linear(right))
        return formula

    def _linear(self, expression: Any) -> Linear:
        rule = self.terms.get(type(expression))
        if rule is None:
            raise UnsupportedError(f"{type(expression).__name__} where a linear term was expected")
        return rule(expression)

    def _variable(self, expression: Any) -> Linear:
        """The entry's flat position among the inputs or the outputs, row-major."""
        offset, shape, output = self.places[expression.name]
        flat = 0
        for index, extent in zip(expression.indices, shape, strict=True):
            flat = flat * extent + index
        return variable(output_variable(offset + flat) if output else offset + flat)

    def _literal(self, expression: Any) -> Linear:
        value = number(expression.lexeme)
        if value is None:
            raise UnsupportedError(f"not a number: {expression.lexeme!r}")
        return constant(value)

    def _product(self, expression: Any) -> Linear:
        factors = [self._linear(part) for part in expression.args]
        self.product = expression
        return multiply(factors)

    def _unsupported(self, expression: Any, message: object) -> UnsupportedError:
        line = next(_lines(expression), None)
        return UnsupportedError(f"{self.path}{'' if line is None else f':{line}'}: {message}")


def _declared(tree: Any, text: str, path: str) -> tuple[Variable, ...]:
    """The variables of the query's only network, in order of declaration; refuses what this version cannot verify."""
    if len(tree.networks) != 1:
        names = ", ".join(network.name for network in tree.networks)
        raise UnsupportedError(f"{path}: {len(tree.networks)} networks ({names}): only one is supported")
    network = tree.networks[0]
    if network.hidden:
        nodes = ", ".join(f"{node.name} = {node.onnx_name}" for node in network.hidden)
        raise UnsupportedError(f"{path}: hidden nodes ({nodes}) of network {network.name}: not supported")
    variables = []
    for output, definitions in ((False, network.inputs), (True, network.outputs)):
        if not definitions:
            raise ParseError(path, None, f"network {network.name} declares no {'output' if output else 'input'}")
        for item in definitions:
            element_type = _ELEMENT_TYPES.get(item.dtype.name)
            if element_type is None:
                raise _unknown_type(item.name, text, path)
            variables.append(Variable(item.name, element_type, tuple(item.shape), output))
    return tuple(variables)


def _unknown_type(name: str, text: str, path: str) -> ParseError:
    bare = strip_comments(text)
    found = re.search(rf"\(declare-[a-z]+\s+{re.escape(name)}\s+(\S+)", bare)
    line, kind = (None, "?") if found is None else (line_of(bare, found.start()), found[1])
    return ParseError(
        path, line, f"unknown element type {kind} of {name}: known are {', '.join(_ELEMENT_TYPES.values())}"
    )


def _places(variables: tuple[Variable, ...]) -> dict[str, tuple[int, tuple[int, ...], bool]]:
    """Of every variable: the flat position of its first entry, its shape, whether it is an output."""
    places, used = {}, {False: 0, True: 0}
    for v in variables:
        places[v.name] = used[v.output], v.shape, v.output
        used[v.output] += v.size
    return places


def _lines(expression: Any) -> Iterator[int]:
    """The line numbers that the expression's leaves know."""
    if hasattr(expression, "line"):
        yield expression.line
    for child in expression.children():
        yield from _lines(child)
