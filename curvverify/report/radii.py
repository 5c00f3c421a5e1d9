"""Certified radii in a csv file that grows by finished batches, and what they add up to."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table

from curvverify.certificates.record import SampleRadius
from curvverify.errors import ParseError, UsageError

COLUMNS = ("index", *(field.name for field in fields(SampleRadius)))
_FLAGS = {"True": True, "False": False}


@dataclass(frozen=True)
class Row:
    """One line of the file: the sample's position in the data set, and its radii."""

    index: int
    sample: SampleRadius

    def cells(self) -> list[str]:
        return [str(self.index), *(str(getattr(self.sample, name)) for name in COLUMNS[1:])]

    @classmethod
    def from_cells(cls, cells: Sequence[str]) -> Row:
        """ValueError or KeyError where these are no such cells."""
        given = dict(zip(COLUMNS, cells, strict=True))
        values: dict[str, Any] = {}
        for field in fields(SampleRadius):
            text = given[field.name]
            kind = str(field.type)
            values[field.name] = (
                _FLAGS[text]
                if kind == "bool"
                else int(text)
                if kind == "int"
                else float(text)
                if kind == "float"
                else text
            )
            if kind == "float" and math.isnan(values[field.name]):
                raise ValueError(f"{field.name} is NaN")
        return cls(int(given["index"]), SampleRadius(**values))


def settings_path(out: Path) -> Path:
    """Where the settings that a file was made with are kept, beside it."""
    return out.with_name(out.name + ".settings.json")


def open_for_append(out: Path, settings: Mapping[str, Any], resume: bool) -> tuple[list[Row], TextIO]:
    """The rows so far, and the file opened behind the last complete one (a line cut off in writing is removed).

    UsageError where the file holds rows and is not to be resumed, or rows made with other settings.
    """
    rows: list[Row] = []
    size = 0
    beside = settings_path(out)
    if out.exists() and out.stat().st_size:
        if not resume:
            raise UsageError(f"{out} holds radii already: add --resume to go on, or name another file")
        rows, size = _read(out)
        before = json.loads(beside.read_text()) if beside.exists() else None
        if rows and before != json.loads(json.dumps(settings)):
            raise UsageError(f"{out} was made with other settings ({beside}): name another file")
    try:
        beside.write_text(json.dumps(settings, indent=1) + "\n")
        stream = open(out, "a", encoding="utf-8", newline="")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    stream.truncate(size)
    if not size:
        stream.write(",".join(COLUMNS) + "\n")
    stream.flush()
    return rows, stream


def append(stream: TextIO, rows: Iterable[Row]) -> None:
    """Write rows and wait until they are on the disk."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(row.cells() for row in rows)
    stream.write(text.getvalue())
    stream.flush()
    os.fsync(stream.fileno())


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; a last line that was cut off is ignored, ParseError for any other bad line."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Row], int]:
    rows: list[Row] = []
    size = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        cells = next(csv.reader([line.decode(errors="replace")]))
        if number == 1:
            if tuple(cells) != COLUMNS:
                raise ParseError(str(path), 1, f"not a table of `curvverify radius`: expected {','.join(COLUMNS)}")
        else:
            try:
                rows.append(Row.from_cells(cells))
            except (ValueError, KeyError) as error:
                raise ParseError(str(path), number, f"not a row of `curvverify radius`: {error}") from error
        size += len(line)
    return rows, size


@dataclass(frozen=True)
class AtRadius:
    """Shares of all samples at one radius: true robust accuracy lies between certified and attacked."""

    eps: float
    lipschitz: float
    closed_form: float
    certified: float
    attacked: float
    undecided: int
    attack_certified: float
    """With a certificate that a counterexample exists (the domain aside), of samples classified correctly."""


@dataclass(frozen=True)
class RadiiSummary:
    """What the radii of a data set add up to."""

    samples: int
    clean: float
    at: tuple[AtRadius, ...]
    mean: Mapping[str, float]
    """Mean radius over all samples, 0 for misclassified ones: lipschitz, taylor, certified; attacked where all are."""
    median: Mapping[str, float]
    exact: float
    methods: Mapping[str, int]
    seconds_per_sample: float
    contradictions: int
    """Samples with a counterexample inside their certified radius: a bug of ours if there is one."""


def summarise(rows: Sequence[Row], eps: Sequence[float]) -> RadiiSummary:
    """The summary; `eps` are the radii it looks at."""
    samples = [row.sample for row in rows]
    count = len(samples)
    right = [s for s in samples if s.label == s.predicted]
    columns = {
        "lipschitz": [s.radius_lipschitz for s in samples],
        "taylor": [s.radius_taylor for s in samples],
        "certified": [s.radius_certified for s in samples],
        "attacked": [s.radius_attacked for s in samples],
    }
    methods: dict[str, int] = {}
    for s in samples:
        methods[s.method] = methods.get(s.method, 0) + 1
    return RadiiSummary(
        samples=count,
        clean=len(right) / count if count else math.nan,
        at=tuple(_at(samples, right, e) for e in sorted(set(eps))),
        mean={name: statistics.fmean(values) if values else math.nan for name, values in columns.items()},
        median={name: statistics.median(values) if values else math.nan for name, values in columns.items()},
        exact=sum(s.exact for s in right) / len(right) if right else math.nan,
        methods=methods,
        seconds_per_sample=statistics.fmean(s.seconds for s in samples) if samples else math.nan,
        contradictions=sum(s.radius_attacked < s.radius_certified for s in samples),
    )


def _at(samples: list[SampleRadius], right: list[SampleRadius], eps: float) -> AtRadius:
    count = max(len(samples), 1)
    return AtRadius(
        eps,
        sum(s.radius_lipschitz >= eps for s in samples) / count,
        sum(max(s.radius_lipschitz, s.radius_taylor) >= eps for s in samples) / count,
        sum(s.radius_certified >= eps for s in samples) / count,
        sum(s.radius_attacked > eps for s in samples) / count,
        sum(s.decided(eps) is None for s in samples),
        sum(s.attack_certificate <= eps for s in right) / count,
    )


def typical_eps(rows: Sequence[Row], count: int = 5) -> tuple[float, ...]:
    """Radii worth a line of a table where the user named none: rounded quantiles of the certified ones."""
    positive = sorted(r.sample.radius_certified for r in rows if 0.0 < r.sample.radius_certified < math.inf)
    if not positive:
        return ()
    picked = (positive[(len(positive) - 1) * k // (count + 1)] for k in range(1, count + 1))
    return tuple(sorted({float(f"{x:.2g}") for x in picked}))


def radii_tables(summary: RadiiSummary, title: str) -> list[Table]:
    """Accuracy over radii, and the radii themselves."""
    over = Table(title=f"{title}: {summary.samples} samples, clean accuracy {percent(summary.clean)}")
    for name in ("radius", "Lipschitz", "closed form", "certified", "attacked", "undecided", "attack certificate"):
        over.add_column(name, justify="right")
    for a in summary.at:
        shares = (a.lipschitz, a.closed_form, a.certified, a.attacked)
        over.add_row(f"{a.eps:g}", *map(percent, shares), str(a.undecided), percent(a.attack_certified))
    radii = Table(title=f"radii; {summary.seconds_per_sample * 1e3:.3g} ms per sample")
    for name in ("", "mean", "median"):
        radii.add_column(name, justify="left" if not name else "right")
    for name in summary.mean:
        radii.add_row(name, f"{summary.mean[name]:.4g}", f"{summary.median[name]:.4g}")
    radii.add_row("exact", percent(summary.exact), "")
    for name, count in sorted(summary.methods.items()):
        radii.add_row(f"by {name}", str(count), "")
    return [over, radii]


def percent(share: float) -> str:
    """A share with two digits after the point."""
    return f"{100.0 * share:.2f} %"
