"""The competition's lists: instances.csv (what to run) and expected.csv (what came out elsewhere)."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeVar

from curvverify.errors import ParseError, UnsupportedError
from curvverify.spec.text import existing, read_text

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Instance:
    """One line of instances.csv: paths relative to its folder resolved, `.gz` appended where only that exists."""

    onnx: Path
    vnnlib: Path
    timeout: float
    """Seconds."""
    error: UnsupportedError | None = None
    """Why this instance cannot be run: its query is over several networks (`onnx` then holds the raw text)."""


@dataclass(frozen=True)
class Expected:
    """One line of expected.csv."""

    onnx: Path
    vnnlib: Path
    timeout: float
    verdict: str
    """sat, unsat or unknown."""
    confidence: str
    """What the verdict rests on: `replayed`, or how many tools agree."""
    fastest_s: float | None
    """Best time of any tool, None where none decided it."""


def load_instances(path: str | PathLike[str]) -> list[Instance]:
    """The instances of a csv file `onnx,vnnlib,timeout`, with a header line or without; ParseError names the line."""

    def instance(folder: Path, cells: list[str], seconds: Callable[[str], float]) -> Instance:
        vnnlib, timeout = existing(folder / cells[1]), seconds(cells[2])
        if cells[0].startswith("["):
            error = UnsupportedError(f"{path}: several networks in one query: {cells[0]}")
            return Instance(Path(cells[0]), vnnlib, timeout, error)
        return Instance(existing(folder / cells[0]), vnnlib, timeout)

    return _load(path, 3, instance)


def load_expected(path: str | PathLike[str]) -> list[Expected]:
    """The lines of a csv file `onnx,vnnlib,timeout,verdict,confidence,fastest_s`; ParseError names the line."""

    def expected(folder: Path, cells: list[str], seconds: Callable[[str], float]) -> Expected:
        fastest = seconds(cells[5]) if cells[5] else None
        files = existing(folder / cells[0]), existing(folder / cells[1])
        return Expected(*files, seconds(cells[2]), cells[3], cells[4], fastest)

    return _load(path, 6, expected)


def _load(
    path: str | PathLike[str], columns: int, build: Callable[[Path, list[str], Callable[[str], float]], _Row]
) -> list[_Row]:
    """A row of every line that is neither blank nor the header."""
    reader = csv.reader(read_text(path).splitlines(), skipinitialspace=True)
    rows: list[_Row] = []

    def seconds(cell: str) -> float:
        try:
            return float(cell)
        except ValueError:
            raise ParseError(str(path), reader.line_num, f"expected seconds, found {cell!r}") from None

    header = True
    for line in reader:
        cells = [cell.strip() for cell in line]
        if not any(cells) or (header and cells[0].lower() == "onnx"):
            continue
        header = False
        if len(cells) != columns:
            raise ParseError(str(path), reader.line_num, f"expected {columns} columns, found {len(cells)}")
        rows.append(build(Path(path).parent, cells, seconds))
    return rows
