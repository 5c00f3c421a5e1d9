"""Several methods on the same instances: what each decided, and every margin."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.table import Table
from rich.text import Text

from curvverify.report.batch import Key, Record, Summary, cells, summarise
from curvverify.report.serialise import plain
from curvverify.report.tables import SUMMARY_COLUMNS

MOST_ROWS = 60
"""Instances that the table of margins shows on a terminal."""


@dataclass(frozen=True)
class Comparison:
    """The records of every method, in the order in which they were named; joined tools last."""

    methods: tuple[str, ...]
    records: tuple[Record, ...]
    expected: Mapping[Key, str]

    def of(self, method: str) -> list[Record]:
        return [record for record in self.records if record.method == method]

    @property
    def instances(self) -> list[Key]:
        """In order of first appearance."""
        return list(dict.fromkeys(record.key for record in self.records))

    @property
    def summaries(self) -> list[tuple[str, Summary]]:
        """One per method and family."""
        return [(method, s) for method in self.methods for s in summarise(self.of(method), self.expected)]

    @property
    def conflicts(self) -> list[Key]:
        """Instances that some records call sat and others unsat."""
        said: dict[Key, set[str]] = {}
        for record in self.records:
            if record.decided:
                said.setdefault(record.key, set()).add(record.verdict)
        return [key for key, verdicts in said.items() if len(verdicts) > 1]


def methods_table(comparison: Comparison) -> Table:
    """One row per method and family."""
    table = Table(title="verdicts per method (whole processes, imports included; joined tools as they say)")
    for i, column in enumerate(("method", *SUMMARY_COLUMNS)):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=i > 1, overflow="fold")
    for method, summary in comparison.summaries:
        table.add_row(method, *cells(summary), style="bold red" if summary.contradictions else None)
    return table


def methods_markdown(comparison: Comparison) -> str:
    """The same as markdown."""
    head = ("method", *SUMMARY_COLUMNS)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join((method, *cells(summary))) + " |" for method, summary in comparison.summaries]
    return "\n".join(lines) + "\n"


def margins_table(comparison: Comparison) -> Table:
    """One row per instance, a column per method: the proved margin, green where it is positive, or the verdict."""
    table = Table(title="proved margins (positive: verified); sat: counterexample; -: no bound")
    table.add_column("instance", overflow="fold")
    for method in comparison.methods:
        table.add_column(method, justify="right", no_wrap=True)
    by_place = {(record.key, record.method): record for record in comparison.records}
    names = short_names(comparison.instances)
    for key in comparison.instances[:MOST_ROWS]:
        found = (by_place.get((key, method)) for method in comparison.methods)
        table.add_row(names[key], *(margin_cell(record) for record in found))
    left = len(comparison.instances) - MOST_ROWS
    if left > 0:
        table.caption = f"and {left} more: --csv FILE holds all"
    return table


def margin_cell(record: Record | None) -> Text:
    """What one method says of one instance."""
    if record is None:
        return Text("")
    if record.verdict == "sat":
        return Text("sat", style="magenta")
    style = "green" if record.verdict == "unsat" else ""
    if record.margin_lower is None:  # another tool, or no verdict at all
        return Text(record.verdict, style="red" if record.failed else style)
    return Text(f"{record.margin_lower:+.4g}" if math.isfinite(record.margin_lower) else "-", style=style)


def margins_csv(comparison: Comparison) -> str:
    """Every record as a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("family", "onnx", "vnnlib", "method", "verdict", "margin_lower", "seconds"))
    for r in comparison.records:
        margin = "" if r.margin_lower is None else repr(r.margin_lower)
        writer.writerow((*r.key, r.method, r.verdict, margin, f"{r.seconds:.3f}"))
    return out.getvalue()


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Plain JSON values: the summaries, and a record of every run."""
    wanted = [field.name for field in fields(Record) if field.name != "stages"]
    return plain(
        {
            "kind": "Comparison",
            "methods": comparison.methods,
            "summaries": [{"method": method, **_summary(s)} for method, s in comparison.summaries],
            "conflicts": comparison.conflicts,
            "records": [{name: getattr(record, name) for name in wanted} for record in comparison.records],
        }
    )


def _summary(s: Summary) -> dict[str, Any]:
    shown = {field.name: getattr(s, field.name) for field in fields(s) if field.name != "contradictions"}
    return {**shown, "decided": s.decided, "contradictions": [record.key for record in s.contradictions]}


def short_names(instances: Sequence[Key]) -> dict[Key, str]:
    """Property names, with network or family in front where they are needed to tell instances apart."""
    parts = [tuple(os.path.basename(name).removesuffix(".gz") for name in key) for key in instances]
    stems = [(family, onnx.removesuffix(".onnx"), vnnlib.removesuffix(".vnnlib")) for family, onnx, vnnlib in parts]
    for begin in (2, 1, 0):
        names = [" ".join(part[begin:]) for part in stems]
        if len(set(names)) == len(names):
            break
    return dict(zip(instances, names, strict=True))


def merged(methods: Iterable[str], records: Iterable[Record], expected: Mapping[Key, str]) -> Comparison:
    """Of the given methods in their order, then of whatever else the records are of."""
    found = tuple(records)
    order = dict.fromkeys([*methods, *(record.method for record in found)])
    return Comparison(tuple(order), found, expected)
