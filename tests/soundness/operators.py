"""One instance of every registered elementwise operator; a new operator with attributes must be added here."""

from __future__ import annotations

import torch

from curvverify.ops.base import Elementwise
from curvverify.ops.registry import ELEMENTWISE

ATTRIBUTES: dict[str, dict[str, object]] = {
    "LeakyRelu": {"negative_slope": 0.1},
    "PRelu": {"negative_slope": torch.tensor(0.25, dtype=torch.float64)},
    "Clip": {"lower": -0.4, "upper": 0.7},
    "Power": {"exponent": 2.0},
}
"""Constructor arguments of the operators that need some."""

POSITIVE = ("Log", "Sqrt", "Reciprocal")
"""Operators that are defined for positive arguments only."""

SAMPLES: dict[str, Elementwise] = {name: op(**ATTRIBUTES.get(name, {})) for name, op in ELEMENTWISE.items()}  # type: ignore[arg-type]
