"""The one assumption about floating point behind the bounds of this package.

In float64 every `forward`, `slope` and `value_and_slope` of an elementwise operator is within

    RELATIVE_ERROR * (|exact result| + scale) + TINY

of the exact result, where `scale` is the operator's declared `value_scale` or `slope_scale` (0: the error is purely
relative).  torch's own functions stay within 2 ulp where we measured them, and no formula here joins more than a few
of them; tests/ops checks the assumption against mpmath on random and extreme points, operator by operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY, UNIT_ROUNDOFF

RELATIVE_ERROR = 16.0 * UNIT_ROUNDOFF[torch.float64]
"""8 ulp."""

LINE_SLACK = 2.0 * RELATIVE_ERROR
"""Covers one supporting line: see `SmoothEnvelope`."""

CONDITION_SLACK = 4.0 * RELATIVE_ERROR
"""Covers the comparison of a supporting line with the function's value at an end point: two values and a line."""


def value_error(value: Tensor, scale: float) -> Tensor:
    """Upper bound on |value - exact value|, for a value computed in float64."""
    return 1.01 * RELATIVE_ERROR * (value.abs() + scale) + TINY
