"""The log of a training run as a csv file, and its summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from curvverify.train.loop import EpochRow

COLUMNS = tuple(field.name for field in fields(EpochRow))


def csv_text(rows: Sequence[EpochRow]) -> str:
    """One line per epoch."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([str(value) for value in asdict(row).values()] for row in rows)
    return text.getvalue()
