"""Known verdicts on small public instances: decided within seconds, and never wrongly."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from curvverify.types import Verdict
from curvverify.verification.driver import verify
from curvverify.verification.options import Options
from curvverify.verification.result import Result

BENCHMARKS = Path(__file__).resolve().parents[2].parent / "shared" / "vnncomp"

QUICK = {
    "test": 3,
    "acasxu": 12,
    "safenlp_slice": 5,
    "eran_sigmoid_2021": 8,
    "collins_rul_cnn": 12,
    "dist_shift_2023": 4,
    "tllverifybench": 4,
    "linearizenn_2024_slice": 4,
}
"""How many instances of every family, from the top of its table, leaving out what nobody has decided."""

OPTIONS = Options(timeout=60.0, threads=1)


def known() -> list[tuple[str, str, str, str]]:
    """(family, network, property, verdict) of the chosen instances."""
    found: list[tuple[str, str, str, str]] = []
    for family, count in QUICK.items():
        table = BENCHMARKS / family / "expected.csv"
        if table.is_file():
            with table.open(newline="") as stream:
                rows = [row for row in csv.DictReader(stream) if row["verdict"] in ("sat", "unsat")]
            found += [(family, row["onnx"], row["vnnlib"], row["verdict"]) for row in rows[:count]]
    return found


CASES = known()


@pytest.mark.skipif(not CASES, reason=f"no benchmarks under {BENCHMARKS}")
@pytest.mark.parametrize(
    ("family", "onnx", "vnnlib", "verdict"), CASES, ids=[f"{case[0]}-{Path(case[2]).stem}" for case in CASES]
)
def test_known_verdict(family: str, onnx: str, vnnlib: str, verdict: str) -> None:
    result = verify(BENCHMARKS / family / onnx, BENCHMARKS / family / vnnlib, OPTIONS)
    assert result.verdict == verdict
    assert_supported(result)


def assert_supported(result: Result) -> None:
    """What a verdict rests on is in its record."""
    if result.verdict == Verdict.FALSIFIED:
        assert result.witness is not None
        assert result.witness.replayed
    else:
        assert result.margin_lower > 0.0
        assert all(bound.settled_by for bound in result.disjuncts)
