"""Text files, gzip or plain by their first bytes, and the places in them that errors name."""

from __future__ import annotations

import gzip
import re
import zlib
from os import PathLike
from pathlib import Path

from curvverify.errors import ParseError, UnreadableError

_GZIP = b"\x1f\x8b"
_COMMENT = re.compile(r";[^\n]*")


def existing(path: str | PathLike[str]) -> Path:
    """The path, or the path with `.gz` appended where only that exists; the path itself where neither does."""
    plain = Path(path)
    packed = plain.with_name(plain.name + ".gz")
    return packed if not plain.exists() and packed.exists() else plain


def read_text(path: str | PathLike[str]) -> str:
    """The file's text; UnreadableError where there is none, ParseError where it is no whole UTF-8 text."""
    found = existing(path)
    try:
        data = found.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from error
    try:
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise ParseError(str(found), None, f"broken gzip file: {error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParseError(str(found), None, f"not a text file: byte {error.start} is not UTF-8") from error
    if "\0" in text:
        raise ParseError(str(found), line_of(text, text.index("\0")), "not a text file: it holds a zero byte")
    return text


def strip_comments(text: str) -> str:
    """The text without `; ...` comments; lines stay where they are."""
    return _COMMENT.sub("", text)


def line_of(text: str, offset: int) -> int:
    """Line number, from 1, of a place in the text."""
    return text.count("\n", 0, offset) + 1
