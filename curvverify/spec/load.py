"""A VNN-LIB file or text of either version, recognised by its content, as one `Query`."""

from __future__ import annotations

import re
from os import PathLike

from curvverify.errors import ParseError
from curvverify.spec import vnnlib1, vnnlib2
from curvverify.spec.query import Query
from curvverify.spec.text import existing, read_text, strip_comments

_VERSION_2 = re.compile(r"\(\s*(?:vnnlib-version|declare-network)\b")
_FIRST = re.compile(r"\S.{0,40}")


def load_query(path: str | PathLike[str]) -> Query:
    """The query of a file, plain or gzip by content; `path` + ".gz" is read where `path` does not exist."""
    return parse_query(read_text(path), str(existing(path)))


def parse_query(text: str, path: str = "<string>") -> Query:
    """The query of a text; `path` is what errors and the query call it.

    Raises ParseError where the text is malformed, UnsupportedError where it states more than a `Query` can.
    """
    bare = strip_comments(text)
    if _VERSION_2.search(bare):
        return vnnlib2.parse(text, path)
    if "declare-const" in bare:
        return vnnlib1.parse(text, path)
    first = _FIRST.search(bare)
    found = "an empty file" if first is None else repr(first[0])
    raise ParseError(
        path, None, f"not VNN-LIB: expected (vnnlib-version <2.0>) or (declare-const X_0 Real), found {found}"
    )
