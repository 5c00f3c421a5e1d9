"""Acceptance tests of a model: `pytest examples/test_acceptance.py`.  Copy this file and put your own model in.

Three kinds of demands: stated properties hold, named inputs are robust, and a share of the validation data is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import curvverify
from curvverify.demo import FOLDER, MODEL
from curvverify.demo.moons import moons

PROPERTIES = [FOLDER / "holds.vnnlib"]
EPS = 0.15
"""How far an input may move (l2) without changing its class."""

MUST_HOLD = {
    "in the middle of the upper half circle": ((0.0, 1.0), 0),
    "in the middle of the lower half circle": ((1.0, -0.5), 1),
}
"""Inputs that must be robust, whatever else is: name -> (input, label)."""

SHARE = 0.9
"""Share of the validation samples that must be proved robust."""


@pytest.fixture(scope="module")
def model() -> curvverify.LoadedModel:
    """Read once, used by all tests."""
    return curvverify.load(MODEL)


@pytest.mark.parametrize("query", PROPERTIES, ids=lambda path: path.name)
def test_property_holds(model: curvverify.LoadedModel, query: Path) -> None:
    result = curvverify.verify(model, query, curvverify.Options(timeout=60))
    assert result.verdict is curvverify.Verdict.VERIFIED, (
        f"{result.verdict}, margin {result.margin_lower:.4g}, counterexample {result.witness}"
    )


@pytest.mark.parametrize("name", MUST_HOLD)
def test_input_is_robust(model: curvverify.LoadedModel, name: str) -> None:
    x, label = MUST_HOLD[name]
    sample = curvverify.certified_radius(model, np.array([x]), [label], eps=(EPS,), attack=True).samples[0]
    assert sample.predicted == label, f"classified as {sample.predicted}"
    assert sample.radius_certified >= EPS, (
        f"proved within {sample.radius_certified:.3f}, counterexample at {sample.radius_attacked:.3f}"
    )


def test_most_of_the_data_is_robust(model: curvverify.LoadedModel) -> None:
    points, labels = moons(24, seed=11)
    report = curvverify.certified_radius(model, points, labels, eps=(EPS,))
    assert report.certified_accuracy(EPS) >= SHARE
