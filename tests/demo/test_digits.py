"""The digit networks that ship: one question, two answers."""

from __future__ import annotations

import pytest
import torch

import curvverify
from curvverify.demo.digits import CERTIFICATE, LABEL, PROPERTY, RADIUS, STANDARD, property_text, zero
from curvverify.types import Verdict


def test_property_is_the_one_of_the_drawing() -> None:
    assert PROPERTY.read_text(encoding="utf-8") == property_text()


def test_trained_for_its_certificate_and_not() -> None:
    proved = curvverify.verify(CERTIFICATE, PROPERTY)
    assert proved.verdict is Verdict.VERIFIED
    assert proved.margin_lower is not None
    assert proved.margin_lower > 0.0
    refuted = curvverify.verify(STANDARD, PROPERTY)
    assert refuted.verdict is Verdict.FALSIFIED
    assert refuted.witness is not None
    assert abs(refuted.witness.x - zero().ravel()).max() <= RADIUS + 1e-9


@pytest.mark.parametrize("path", [CERTIFICATE, STANDARD])
def test_both_read_the_drawing(path: object) -> None:
    loaded = curvverify.load(path)  # type: ignore[arg-type]
    x = torch.from_numpy(zero()).reshape(1, *loaded.graph.input_shape)
    assert int(loaded.graph(x).argmax()) == LABEL


def test_curvature_of_the_certified_one_is_far_smaller() -> None:
    certified, standard = (curvverify.curvature(p).output.curvature_upper for p in (CERTIFICATE, STANDARD))
    assert 10.0 * certified < standard
