"""VNN-LIB 1.0: `(declare-const X_0 Real)` and `(assert ...)` over and, or, comparisons and linear terms.

One regular expression cuts the text; a whole declaration, and a whole comparison of a variable with a constant or
another variable, is a single token, and every distinct text of the latter is understood once.  Formulas are in
disjunctive normal form as soon as their parenthesis closes, so that nesting costs no recursion.
"""

from __future__ import annotations

import decimal
import re
from dataclasses import dataclass, field
from typing import NoReturn

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
    number,
    output_variable,
    subtract,
    variable,
    variable_name,
)
from curvverify.spec.normal_form import NO_BRANCH, UnboundedInputError, build_groups, conjoin, disjoin
from curvverify.spec.query import Query
from curvverify.spec.text import line_of, strip_comments

_TOKEN = re.compile(
    r"""
      (?P<atom>\(\s*(<=|>=|<|>)\s+([XY]_[0-9]+)\s+([^\s()]+)\s*\))
    | (?P<declare>\(\s*declare-const\s+([^\s()]+)\s+([^\s()]+)\s*\))
    | (?P<open>\(\s*([^\s()]*))
    | (?P<close>\))
    | (?P<word>[^\s()]+)
    """,
    re.VERBOSE | re.ASCII,
)
_VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})", re.ASCII)
_CONNECTIVES = {"and": conjoin, "or": disjoin}
_COMPARISONS = ("<=", ">=", "<", ">", "=")
_ARITHMETIC = {"+": add, "-": subtract, "*": multiply}
_TERM_HEADS = frozenset([*_COMPARISONS, *_ARITHMETIC])
_HEADS = frozenset([*_TERM_HEADS, *_CONNECTIVES, "assert"])
_TERM = "a number, a variable, or a term of + - *"
_FORMULA = "a comparison (<= >= < > =), and, or or"
_COMMAND = "(declare-const ...) or (assert ...)"


@dataclass(slots=True)
class _Frame:
    """An open parenthesis: its operator, its place in the text, and the operands read so far."""

    head: str
    start: int
    takes_terms: bool
    formulas: list[Formula] = field(default_factory=list)
    terms: list[Linear] = field(default_factory=list)


def parse(text: str, path: str = "<string>") -> Query:
    """The query that a VNN-LIB 1.0 text states; ParseError where it is malformed, UnsupportedError beyond limits."""
    return _Parser(strip_comments(text), path).query()


class _Parser:
    """One pass over the tokens; an open parenthesis is a frame on the stack, a closed one is reduced to its meaning."""

    def __init__(self, text: str, path: str):
        self.text, self.path = text, path
        self.codes: dict[str, int] = {}
        self.known: dict[str, Formula] = {}
        self.stack: list[_Frame] = []
        self.assertions: list[Formula] = []
        self.place = 0

    def query(self) -> Query:
        self._read()
        inputs, outputs = self._count("X"), self._count("Y")
        if not self.assertions:
            self._fail(None, "no assertion: expected (assert ...)")
        try:
            groups = build_groups(self.assertions, inputs, outputs)
        except UnboundedInputError as error:
            self._fail(None, error.describe(variable_name(error.index)))
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.path}: {error}") from error
        return Query(groups, inputs, outputs, "1.0", self.path, notes=() if groups else (NO_BRANCH,))

    def _read(self) -> None:
        actions = {"atom": self._atom, "declare": self._declare, "open": self._open, "close": self._close}
        try:
            for match in _TOKEN.finditer(self.text):
                self.place = match.start()
                actions.get(match.lastgroup or "", self._word)(match)
        except NonlinearError as error:
            self._fail(self.place, str(error))
        except decimal.Inexact as error:
            raise UnsupportedError(f"{self._here()}: {inexact_error()}") from error
        except UnsupportedError as error:
            raise UnsupportedError(f"{self._here()}: {error}") from error
        if self.stack:
            frame = self.stack[-1]
            self._fail(frame.start, f"'({frame.head}' is never closed: expected ')', found the end of the file")

    def _atom(self, match: re.Match[str]) -> None:
        """A comparison of a variable with a number or a variable, in one token."""
        text = match[0]
        formula = self.known.get(text)
        if formula is None:
            start = match.start()
            left, right = self._operand(match[3], start), self._operand(match[4], start)
            formula = self.known[text] = compare(match[2], left, right)
        if not self.stack or self.stack[-1].takes_terms:
            self._fail(match.start(), f"expected {_TERM if self.stack else _COMMAND}, found {text!r}")
        self.stack[-1].formulas.append(formula)

    def _declare(self, match: re.Match[str]) -> None:
        name, kind, start = match[6], match[7], match.start()
        found = _VARIABLE.fullmatch(name)
        if self.stack:
            self._fail(start, f"declare-const inside '({self.stack[-1].head}': an earlier ')' is missing")
        if found is None:
            self._fail(start, f"expected a variable X_0, X_1, ... or Y_0, Y_1, ..., found {name!r}")
        if kind != "Real":
            self._fail(start, f"expected the type Real, found {kind!r}")
        if name in self.codes:
            self._fail(start, f"{name} is declared twice")
        index = int(found[2])
        self.codes[name] = index if found[1] == "X" else output_variable(index)

    def _open(self, match: re.Match[str]) -> None:
        head, start = match[9], match.start()
        if head not in _HEADS:
            self._unknown_head(head, start)
        if not self.stack:
            if head != "assert":
                self._fail(start, f"expected {_COMMAND}, found '({head}'")
        elif head == "assert":
            self._fail(start, f"assert inside '({self.stack[-1].head}': an earlier ')' is missing")
        elif self.stack[-1].takes_terms and head not in _ARITHMETIC:
            self._fail(start, f"expected {_TERM} in '({self.stack[-1].head}', found '({head}'")
        elif not self.stack[-1].takes_terms and head in _ARITHMETIC:
            self._fail(start, f"expected {_FORMULA} in '({self.stack[-1].head}', found '({head}'")
        self.stack.append(_Frame(head, start, head in _TERM_HEADS))

    def _close(self, match: re.Match[str]) -> None:
        if not self.stack:
            self._fail(match.start(), f"')' closes nothing: expected {_COMMAND}")
        frame = self.stack.pop()
        head, self.place = frame.head, frame.start
        if not frame.formulas and not frame.terms:
            self._fail(frame.start, f"'({head}' holds nothing: expected {_TERM if frame.takes_terms else _FORMULA}")
        if head in _ARITHMETIC:
            self.stack[-1].terms.append(_ARITHMETIC[head](frame.terms))
        elif head in _COMPARISONS:
            if len(frame.terms) != 2:
                self._fail(frame.start, f"'({head}' compares two terms, found {len(frame.terms)}")
            self.stack[-1].formulas.append(compare(head, *frame.terms))
        elif head in _CONNECTIVES:
            self.stack[-1].formulas.append(_CONNECTIVES[head](frame.formulas))
        elif len(frame.formulas) == 1:
            self.assertions.append(frame.formulas[0])
        else:
            self._fail(frame.start, f"assert takes one formula, found {len(frame.formulas)}: join them with and or or")

    def _word(self, match: re.Match[str]) -> None:
        word, start = match[0], match.start()
        if not self.stack:
            self._fail(start, f"expected {_COMMAND}, found {word!r}")
        if not self.stack[-1].takes_terms:
            self._fail(start, f"expected {_FORMULA} in '({self.stack[-1].head}', found {word!r}")
        self.stack[-1].terms.append(self._operand(word, start))

    def _operand(self, word: str, start: int) -> Linear:
        """The variable or the number."""
        code = self.codes.get(word)
        if code is not None:
            return variable(code)
        value = number(word)
        if value is None:
            kind = "unknown variable" if word[:1].isalpha() or word[:1] == "_" else "not a number"
            self._fail(start, f"{kind}: {word!r}; declare variables with (declare-const X_0 Real) before their use")
        return constant(value)

    def _unknown_head(self, head: str, start: int) -> NoReturn:
        if head == "declare-const":
            self._fail(start, "expected (declare-const NAME Real)")
        if not head:
            self._fail(start, "expected an operator after '('")
        known = "<= >= < > = + - * and or assert declare-const"
        self._fail(start, f"unknown operator {head!r}: known are {known}")

    def _count(self, letter: str) -> int:
        """How many variables of the letter there are: indices 0, 1, ... without a gap."""
        indices = {code if code >= 0 else -1 - code for name, code in self.codes.items() if name[0] == letter}
        if not indices:
            what = "input" if letter == "X" else "output"
            found = "an empty file" if not self.text.strip() else "none"
            self._fail(None, f"no {what} is declared: expected (declare-const {letter}_0 Real), found {found}")
        missing = next(i for i in range(len(indices) + 1) if i not in indices)
        if missing < len(indices):
            self._fail(
                None, f"{letter}_{missing} is not declared, but {letter}_{max(indices)} is: indices must not skip"
            )
        return len(indices)

    def _here(self) -> str:
        return f"{self.path}:{line_of(self.text, self.place)}"

    def _fail(self, offset: int | None, message: str) -> NoReturn:
        raise ParseError(self.path, None if offset is None else line_of(self.text, offset), message)
