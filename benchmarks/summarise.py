"""The table per family out of one or more result files of `curvverify batch`, as markdown.

The whole measurement is two commands, from the root of the repository:

    .venv/bin/curvverify batch ../shared/vnncomp/*/instances.csv --out out/vnncomp.jsonl --timeout 60
    .venv/bin/python benchmarks/summarise.py out/vnncomp.jsonl --expected ../shared/vnncomp

Later files win over earlier ones where both hold an instance, so that a partial repetition can be laid over a full
run.  Ends with 1 where a verdict contradicts a known one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from curvverify.cli.batch import known_verdicts
from curvverify.report.batch import read_records, summarise, to_markdown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("--expected", type=Path, metavar="FOLDER", help="folder of families, each with an expected.csv")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="cactus plot, one curve per result file")
    chosen = parser.parse_args(arguments)
    runs = {path.stem: read_records(path) for path in chosen.results}
    known = known_verdicts(sorted(chosen.expected.glob("*/expected.csv")), True) if chosen.expected else {}
    merged = {record.key: record for records in runs.values() for record in records}
    summaries = summarise(merged.values(), known)
    sys.stdout.write(to_markdown(summaries))
    wrong = [record for summary in summaries for record in summary.contradictions]
    for record in wrong:
        sys.stdout.write(f"\nCONTRADICTION: {' '.join(record.key)}: {record.verdict}, known {known[record.key]}\n")
    if chosen.plot:
        from curvverify.plots.cactus import cactus

        cactus(runs, chosen.plot)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
