"""Results of many instances: one JSON line each, append-only, and what they add up to per family."""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from curvverify.errors import ParseError

DECIDED = ("sat", "unsat")
COMPETITION = {"sat": "sat", "unsat": "unsat", "unknown": "unknown", "timed-out": "timeout", "unsupported": "unknown"}
"""The competition's word for every verdict; anything else is `error`."""

Key = tuple[str, str, str]
"""What makes an instance one: family, network, property."""

RunKey = tuple[str, str, str, str]
"""What makes a run one: the instance, and the method (empty for the verifier as it is)."""


@dataclass(frozen=True)
class Record:
    """One finished instance.

    `verdict` is the tool's answer, or `unsupported`, `unreadable`, `memory-out` or `error` where it gave none.
    """

    family: str
    onnx: str
    vnnlib: str
    timeout: float
    verdict: str
    seconds: float
    """Wall-clock time of the instance's process; the imports, done before for all of them, are not in it."""
    peak_gib: float
    """Largest resident memory of the process tree."""
    margin_lower: float | None = None
    stages: tuple[Mapping[str, Any], ...] = ()
    error: str = ""
    notes: tuple[str, ...] = ()
    method: str = ""
    """What the instance was run with, where several methods are compared."""

    @property
    def key(self) -> Key:
        return self.family, self.onnx, self.vnnlib

    @property
    def run_key(self) -> RunKey:
        return (*self.key, self.method)

    @property
    def decided(self) -> bool:
        return self.verdict in DECIDED

    @property
    def failed(self) -> bool:
        """True where the tool gave no verdict at all."""
        return self.verdict not in (*DECIDED, "unknown", "timed-out")

    def to_line(self) -> str:
        """One line of JSON, without its newline; an infinite margin is the string "inf" or "-inf"."""
        data = asdict(self)
        if self.margin_lower is not None and abs(self.margin_lower) == float("inf"):
            data["margin_lower"] = str(self.margin_lower)
        return json.dumps(data, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Record:
        """ValueError or TypeError where the line is no record."""
        data = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        known = {field.name for field in fields(cls)}
        data = {name: value for name, value in data.items() if name in known}
        margin = data.get("margin_lower")
        data["margin_lower"] = None if margin is None else float(margin)
        data["stages"], data["notes"] = tuple(data.get("stages", ())), tuple(data.get("notes", ()))
        return cls(**data)


@dataclass(frozen=True)
class Summary:
    """What a family's records add up to."""

    family: str
    total: int
    sat: int
    unsat: int
    unknown: int
    failed: int
    median_seconds: float
    max_seconds: float
    peak_gib: float
    contradictions: tuple[Record, ...]

    @property
    def decided(self) -> int:
        return self.sat + self.unsat


def read_records(path: Path) -> list[Record]:
    """The records of a file.  A last line that was cut off in writing is ignored; ParseError for any other bad line."""
    return _read(path)[0]


def open_for_append(path: Path) -> tuple[list[Record], TextIO]:
    """The records so far, and the file opened behind the last complete one (a line cut off in writing is removed)."""
    records, size = _read(path) if path.exists() else ([], 0)
    stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    stream.truncate(size)
    return records, stream


def append(stream: TextIO, record: Record) -> None:
    """Write one record and wait until it is on the disk."""
    stream.write(record.to_line() + "\n")
    stream.flush()
    os.fsync(stream.fileno())


def merged(files: Iterable[Iterable[Record]]) -> tuple[list[Record], list[tuple[Record, Record]]]:
    """Every instance of several lists of records once, in order of first appearance, and pairs that contradict.

    A verdict counts before none at all, and an earlier record before a later one.
    """
    found: dict[Key, Record] = {}
    contradictions: list[tuple[Record, Record]] = []
    for records in files:
        for record in records:
            known = found.setdefault(record.key, record)
            if record.decided and not known.decided:
                found[record.key] = record
            elif record.decided and known.verdict != record.verdict:
                contradictions.append((known, record))
    return list(found.values()), contradictions


def summarise(records: Iterable[Record], expected: Mapping[Key, str]) -> list[Summary]:
    """One summary per family, in order of first appearance; a contradiction is sat where unsat is known, or back."""
    families: dict[str, list[Record]] = {}
    for record in records:
        families.setdefault(record.family, []).append(record)
    return [_summary(name, members, expected) for name, members in families.items()]


def contradicts(record: Record, expected: Mapping[Key, str]) -> bool:
    """Whether the record's verdict and the known one cannot both be right."""
    known = expected.get(record.key, "")
    return record.decided and known in DECIDED and known != record.verdict


def to_competition_csv(records: Iterable[Record]) -> str:
    """The competition's result table: category, onnx, vnnlib, prepare time, result, run time."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for r in records:
        writer.writerow([r.family, r.onnx, r.vnnlib, 0.0, COMPETITION.get(r.verdict, "error"), f"{r.seconds:.3f}"])
    return out.getvalue()


def to_markdown(summaries: Iterable[Summary]) -> str:
    """The summaries as a markdown table."""
    lines = ["| family | decided | sat | unsat | open | failed | median s | max s | peak GiB | contradictions |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    lines += ["| " + " | ".join(cells(summary)) + " |" for summary in summaries]
    return "\n".join(lines) + "\n"


def cells(s: Summary) -> list[str]:
    """One row of the summary table."""
    counts = [f"{s.decided} of {s.total}", str(s.sat), str(s.unsat), str(s.unknown), str(s.failed)]
    measures = [f"{s.median_seconds:.1f}", f"{s.max_seconds:.1f}", f"{s.peak_gib:.2f}" if s.peak_gib else "-"]
    return [s.family, *counts, *measures, str(len(s.contradictions))]


def _summary(family: str, records: list[Record], expected: Mapping[Key, str]) -> Summary:
    verdicts = [record.verdict for record in records]
    seconds = [record.seconds for record in records]
    return Summary(
        family=family,
        total=len(records),
        sat=verdicts.count("sat"),
        unsat=verdicts.count("unsat"),
        unknown=verdicts.count("unknown") + verdicts.count("timed-out"),
        failed=sum(record.failed for record in records),
        median_seconds=statistics.median(seconds),
        max_seconds=max(seconds),
        peak_gib=max(record.peak_gib for record in records),
        contradictions=tuple(record for record in records if contradicts(record, expected)),
    )


def _read(path: Path) -> tuple[list[Record], int]:
    """The records, and the number of bytes up to the end of the last complete one."""
    records: list[Record] = []
    size = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        complete = line.endswith(b"\n")
        try:
            record = Record.from_line(line.decode())
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ParseError(str(path), number, f"not a record of `curvverify batch`: {error}") from error
        if not complete:
            break
        records.append(record)
        size += len(line)
    return records, size
