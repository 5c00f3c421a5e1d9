"""The harness of known truths: it finds the verifier right, and would find a wrong one wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from benchmarks.truth import KINDS, Instance, instance, judged, main
from benchmarks.truth_exact import least_of_row
from curvverify import Options, Result, Verdict, Witness, verify
from curvverify.graph import load

pytestmark = pytest.mark.filterwarnings("ignore")


def test_nothing_is_wrong_on_some_of_every_kind(tmp_path) -> None:
    lines = tmp_path / "runs.jsonl"
    assert main(["--count", str(2 * len(KINDS)), "--begin", "30", "--seconds", "0.2", "--json", str(lines)]) == 0
    assert len(lines.read_text().splitlines()) == 2 * len(KINDS)


@pytest.fixture(scope="module")
def asked() -> Instance:
    """A planted instance: sat."""
    return instance(KINDS.index("planted"))


def result_of(asked: Instance) -> Result:
    model = load(asked.network.module, shapes=(1, asked.network.inputs))
    return verify(model, asked.query, Options(timeout=20.0, threads=1, branch=False))


def test_wrong_answers_are_noticed(asked: Instance) -> None:
    found = replace(result_of(asked), verdict=Verdict.UNKNOWN, margin_lower=asked.least - 1.0, witness=None)
    assert asked.least < 0.0
    assert judged(asked, "sat", found) == ("", False)
    assert "is attained" in judged(asked, "sat", replace(found, verdict=Verdict.VERIFIED))[0]
    assert "is attained" in judged(asked, "sat", replace(found, margin_lower=asked.least + 1e-6))[0]
    assert "is attained" in judged(asked, "sat", replace(found, margin_lower=float("nan")))[0]
    y = (0.0,) * asked.network.outputs
    outside = Witness(tuple((asked.upper + 1.0).tolist()), y, True)
    assert "outside" in judged(asked, "sat", replace(found, verdict=Verdict.FALSIFIED, witness=outside))[0]
    corner = Witness(tuple(asked.lower.tolist()), y, True)
    assert "has the value" in judged(asked, "sat", replace(found, verdict=Verdict.FALSIFIED, witness=corner))[0]
    best = Witness(tuple(asked.point.tolist()), y, True)
    assert judged(asked, "sat", replace(found, verdict=Verdict.FALSIFIED, witness=best)) == ("", False)
    safe = replace(asked, unsafe=asked.unsafe.raised(asked.least - 1e-5))
    assert (
        "but the least value is"
        in judged(safe, "unsat", replace(found, verdict=Verdict.FALSIFIED, margin_lower=-1.0, witness=best))[0]
    )


def test_exact_minima_are_below_samples_and_attained() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = (4, 7, 6, 2)
    layers = [
        (torch.randn(b, a, generator=generator).double(), torch.randn(b, generator=generator).double())
        for a, b in pairwise(sizes)
    ]

    def value(x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        y = x
        for weight, bias in layers[:-1]:
            y = torch.relu(y @ weight.T + bias)
        return torch.cat([y @ layers[-1][0].T + layers[-1][1], x], 1) @ row

    row = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, -0.25], dtype=torch.float64)
    low, high = torch.full((4,), -1.0).double(), torch.full((4,), 0.75).double()
    found = least_of_row([(w.numpy(), b.numpy()) for w, b in layers], low.numpy(), high.numpy(), row.numpy())
    x = torch.from_numpy(found).unsqueeze(0)
    assert bool(((x >= low - 1e-7) & (x <= high + 1e-7)).all())
    some = low + torch.rand(100000, 4, generator=generator).double() * (high - low)
    corners = torch.cartesian_prod(*torch.stack([low, high], 1))
    assert float(value(x, row)) <= float(value(torch.cat([some, corners]), row).min()) + 1e-6
