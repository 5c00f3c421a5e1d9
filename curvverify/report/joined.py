"""Other tools' results, joined from csv: what they said of the instances that are compared."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from curvverify.errors import ParseError, UnreadableError
from curvverify.report.batch import Key, Record, read_records

WORDS = {
    "sat": "sat",
    "violated": "sat",
    "falsified": "sat",
    "unsat": "unsat",
    "holds": "unsat",
    "verified": "unsat",
    "safe": "unsat",
    "unknown": "unknown",
    "timeout": "timed-out",
    "timed-out": "timed-out",
    "run_instance_timeout": "timed-out",
    "error": "error",
    "no_result_in_file": "error",
    "prepare_instance_error": "error",
    "error_nonmaximal": "error",
}
"""The tools' words for a verdict, as the years' competitions and alpha-beta-CROWN write them, and ours for it."""

COMPETITION_COLUMNS, SIMPLE_COLUMNS = 6, 3


@dataclass(frozen=True)
class Joined:
    """What one file says of the chosen instances, as records whose method is the tool's name."""

    name: str
    records: tuple[Record, ...]
    others: int
    """Lines about other instances."""


def read_joined(path: Path, instances: Iterable[Key]) -> Joined:
    """The results in a file: the competition's csv `category,onnx,vnnlib,prepare,result,seconds`, a plain csv
    `instance,verdict,seconds`, or a .jsonl of `curvverify batch` or `compare`.

    Instances are matched by the file names of network and property (`.gz` or not); the plain form names the property,
    or network and property with a space between.  ParseError names file and line for anything else, and for a name
    that fits several instances.
    """
    known = list(instances)
    if path.suffix == ".jsonl":
        chosen = set(known)
        records = read_records(path)
        ours = tuple(_renamed(record, path.stem) for record in records if record.key in chosen)
        return Joined(path.stem, ours, len(records) - len(ours))
    return _Reader(path, known).read()


def _renamed(record: Record, name: str) -> Record:
    return Record(**{**vars(record), "method": f"{name}: {record.method}" if record.method else name})


@dataclass(eq=False)
class _Reader:
    path: Path
    known: list[Key]

    def read(self) -> Joined:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableError(f"{self.path}: {error}") from error
        found: dict[Key, Record] = {}
        others = 0
        reader = csv.reader(lines, skipinitialspace=True)
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells) or (reader.line_num == 1 and _is_header(cells)):
                continue
            record = self._record(cells, reader.line_num)
            if record is None:
                others += 1
            else:
                found[record.key] = record
        return Joined(self.path.stem, tuple(found.values()), others)

    def _record(self, cells: list[str], line: int) -> Record | None:
        if len(cells) == COMPETITION_COLUMNS:
            category, onnx, vnnlib, _, word, seconds = cells
        elif len(cells) == SIMPLE_COLUMNS:
            instance, word, seconds = cells
            onnx, _, vnnlib = instance.rpartition(" ")
            category = ""
        else:
            wanted = "instance,verdict,seconds or category,onnx,vnnlib,prepare,result,seconds"
            raise ParseError(str(self.path), line, f"expected {wanted}, found {len(cells)} columns")
        verdict = self._verdict(word, line)
        try:
            taken = float(seconds)
        except ValueError:
            raise ParseError(str(self.path), line, f"expected seconds, found {seconds!r}") from None
        key = self._match(category, onnx.strip(), vnnlib, line)
        if key is None:
            return None
        return Record(*key, timeout=0.0, verdict=verdict, seconds=taken, peak_gib=0.0, method=self.path.stem)

    def _verdict(self, word: str, line: int) -> str:
        word = word.lower()
        if word in WORDS:
            return WORDS[word]
        if word.startswith(("prepare_instance_error", "error")):
            return "error"
        raise ParseError(str(self.path), line, f"{word!r} is no verdict; known are {', '.join(WORDS)}")

    def _match(self, category: str, onnx: str, vnnlib: str, line: int) -> Key | None:
        matching = [key for key in self.known if _plain(key[2]) == _plain(vnnlib)]
        if onnx:
            matching = [key for key in matching if _plain(key[1]) == _plain(onnx)]
        if len(matching) > 1 and category:
            matching = [key for key in matching if key[0] == category]
        if len(matching) > 1:
            names = "; ".join(" ".join(key) for key in matching[:4])
            raise ParseError(str(self.path), line, f"{vnnlib} fits several instances ({names}): name the network too")
        return matching[0] if matching else None


def _plain(name: str) -> str:
    """The last part of a path without `.gz` and its own suffix."""
    last = PurePosixPath(name.replace("\\", "/")).name.removesuffix(".gz")
    for suffix in (".onnx", ".vnnlib"):
        last = last.removesuffix(suffix)
    return last


def _is_header(cells: list[str]) -> bool:
    return cells[0].lower() in ("instance", "category", "benchmark") and not cells[-1][:1].isdigit()
