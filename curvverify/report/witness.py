"""Counterexamples and verdicts as the competition and the VNN-LIB 2.0 standard print them.

Values are plain decimals without exponent (2.0 knows none), the shortest that give back the same float64, hence the
same float32.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curvverify.errors import ParseError
from curvverify.spec.query import Query, Variable
from curvverify.types import Verdict
from curvverify.verification.result import Result, Witness

_FIRST_LINE = {
    Verdict.VERIFIED: "unsat",
    Verdict.FALSIFIED: "sat",
    Verdict.UNKNOWN: "unknown",
    Verdict.TIMEOUT: "timeout",
}
_PAIR = re.compile(r"\(\s*([XY])_([0-9]+)\s+([^\s()]+)\s*\)", re.ASCII)
_HEADER = re.compile(r"([A-Za-z_]\S*)\s+[a-z]\w*\s+\[\s*([0-9,\s]*)\]", re.ASCII)
_VERDICT_LINES = ("sat", "unsat", "unknown", "timeout", "timed-out", "error")


def result_file_text(query: Query, result: Result) -> str:
    """The competition's result file: the verdict's line, then the witness in the query's own version after `sat`."""
    first = _FIRST_LINE[result.verdict]
    if result.verdict != Verdict.FALSIFIED:
        return first + "\n"
    if result.witness is None or not result.witness.replayed:
        raise ValueError("sat rests on a replayed witness only, and there is none")
    return f"{first}\n{witness_text(query, result.witness)}\n"


def witness_text(query: Query, witness: Witness) -> str:
    """The witness as the query's VNN-LIB version writes it."""
    return witness_v1(witness) if query.version == "1.0" else witness_v2(query, witness)


def witness_v1(witness: Witness) -> str:
    """`((X_0 v)`, one pair a line, inputs then outputs, `)` at the end."""
    named = [(f"X_{i}", v) for i, v in enumerate(witness.x)] + [(f"Y_{i}", v) for i, v in enumerate(witness.y)]
    return "(" + "\n".join(f"({name} {_real(v)})" for name, v in named) + ")"


def witness_v2(query: Query, witness: Witness) -> str:
    """For every declared variable in order the line `name type [shape]` and then one value a line, row-major."""
    lines: list[str] = []
    left = {False: list(witness.x), True: list(witness.y)}
    for variable in query.variables:
        values, left[variable.output] = left[variable.output][: variable.size], left[variable.output][variable.size :]
        if len(values) != variable.size:
            raise ValueError(f"{variable.name} has {variable.size} entries, the witness {len(values)}")
        lines.append(_header(variable))
        lines.extend(_value(variable, v) for v in values)
    if left[False] or left[True]:
        raise ValueError("the witness has more values than the query has entries")
    return "\n".join(lines)


def parse_witness(
    text: str, query: Query | None = None, path: str = "<witness>"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The flat input and output of a witness in either form, in float32; a verdict's line before it is skipped.

    The 2.0 form does not say what is an output: the query does, and without it all variables but the last are inputs.
    """
    lines = text.strip().splitlines()
    if lines and lines[0].strip() in _VERDICT_LINES:
        lines = lines[1:]
    body = "\n".join(lines).strip()
    return _parse_v1(body, path) if body.startswith("(") else _parse_v2(lines, query, path)


def _parse_v1(text: str, path: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    inner = re.fullmatch(r"\s*\((.*)\)\s*", text, re.DOTALL)
    if inner is None or _PAIR.sub("", inner[1]).strip():
        raise ParseError(path, None, "expected ((X_0 value) ... (Y_0 value) ...)")
    values: dict[str, dict[int, float]] = {"X": {}, "Y": {}}
    for name, index, value in _PAIR.findall(inner[1]):
        if int(index) in values[name]:
            raise ParseError(path, None, f"{name}_{index} is given twice")
        values[name][int(index)] = _number(value, path, None)
    for name, given in values.items():
        if sorted(given) != list(range(len(given))):
            raise ParseError(path, None, f"indices of {name} skip: found {len(given)} values up to {name}_{max(given)}")
    x, y = ([given[i] for i in range(len(given))] for given in values.values())
    return np.array(x, np.float32), np.array(y, np.float32)


def _parse_v2(lines: Sequence[str], query: Query | None, path: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    blocks: dict[str, tuple[int, list[float]]] = {}
    values: list[float] | None = None
    for n, line in enumerate(map(str.strip, lines), 1):
        header = _HEADER.fullmatch(line)
        if header is not None:
            shape = [int(extent) for extent in header[2].split(",") if extent.strip()]
            values = []
            blocks[header[1]] = int(np.prod(shape, dtype=np.int64)), values
        elif line and values is None:
            raise ParseError(path, n, f"expected a header such as X float32 [1,5], found {line!r}")
        elif line and values is not None:
            values.append(_number(line, path, n))
    for name, (size, found) in blocks.items():
        if len(found) != size:
            raise ParseError(path, None, f"{name} has {size} entries, found {len(found)} values")
    outputs = list(blocks)[-1:] if query is None else [v.name for v in query.variables if v.output]
    sides: tuple[list[float], list[float]] = ([], [])
    for name, (_, found) in blocks.items():
        sides[name in outputs].extend(found)
    return np.array(sides[0], np.float32), np.array(sides[1], np.float32)


def _number(text: str, path: str, line: int | None) -> float:
    try:
        return float(text)
    except ValueError:
        raise ParseError(path, line, f"expected a number, found {text!r}") from None


def _header(variable: Variable) -> str:
    return f"{variable.name} {variable.element_type} [{','.join(map(str, variable.shape))}]"


def _value(variable: Variable, value: float) -> str:
    if not variable.element_type.startswith(("int", "uint")):
        return _real(value)
    if value != int(value):
        raise ValueError(f"{variable.name} is of type {variable.element_type}, the witness holds {value}")
    return str(int(value))


def _real(value: float) -> str:
    if not np.isfinite(value):
        raise ValueError(f"a witness holds {value}")
    return np.format_float_positional(np.float64(value), trim="0")
