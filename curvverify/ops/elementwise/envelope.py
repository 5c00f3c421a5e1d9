"""Supporting lines of a smooth function, ready to be asked for many points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.ops.base import Envelope, Lines
from curvverify.ops.elementwise.accuracy import LINE_SLACK
from curvverify.ops.elementwise.facts import SmoothFunction
from curvverify.ops.elementwise.select import Pair, mask, merge


@dataclass(frozen=True, eq=False)
class SmoothEnvelope(Envelope):
    """Tangents at points clamped into the admissible arc, and one fixed line where there is no arc.

    Every `Pair` holds the lower side's tensor and the upper side's, (B, 1, *S).  The tangent at t in [first, last]
    outside of ]gap] is on the proved side of sigma up to `pad`; where two arcs leave a gap, the tangent at either of
    its ends is the bridge.  `tangent` is a mask, set where there is an arc; elsewhere the line is `fixed_slope`,
    `fixed_intercept`, which are 0 where there is one.

    Sound because: with v, k the computed value and slope at t, w = u - l, e(.) the errors of `accuracy`, and U the
    unit roundoff, the exact tangent differs from k z + (v - k t) on [l, u] by at most e(v) + e(k) w, and v - k t is
    rounded by at most 3 U (|v| + |k t|); with reach = |t|max + w both together are below
    20 U (|v| + value_scale + (|k| + slope_scale) reach), and the slack taken is 32 U of that, plus the pad.
    """

    op: SmoothFunction
    first: Pair
    last: Pair
    tangent: Pair
    fixed_slope: Pair
    fixed_intercept: Pair
    pad: Tensor
    """(B, 1, *S): what the arc's ends may be wrong by, plus LINE_SLACK (value_scale + slope_scale reach)."""
    reach: Tensor
    gap: tuple[Pair, Pair] | None = None

    def lines(self, point: Tensor, below: Tensor, smoothing: float) -> Lines:
        dtype = self.reach.dtype
        side = mask(below, dtype)
        t = torch.minimum(torch.maximum(point.to(dtype), self.first.choose(side)), self.last.choose(side))
        if self.gap is not None:
            left, right = (border.choose(side) for border in self.gap)
            t = torch.where((t > left) & (t < right), left, t)
        value, slope = self.op.value_and_slope(t)
        intercept = torch.addcmul(value, slope, t, value=-1.0)
        if dtype == torch.float64:
            size = torch.addcmul(value.abs(), slope.abs(), self.reach)
            slack = torch.add(self.pad, size, alpha=LINE_SLACK)
            sign = (side | 1).to(dtype)  # -1 below, +1 above
            intercept = torch.addcmul(intercept, slack, sign)
        arc = self.tangent.choose(side)
        return Lines(
            merge(slope, arc, self.fixed_slope.choose(side)), merge(intercept, arc, self.fixed_intercept.choose(side))
        )

    def to(self, dtype: torch.dtype) -> SmoothEnvelope:
        """The same lines in another dtype; sound in float64 only."""
        pairs = ("first", "last", "tangent", "fixed_slope", "fixed_intercept")
        return replace(
            self,
            **{name: getattr(self, name).to(dtype) for name in pairs},
            pad=self.pad.to(dtype),
            reach=self.reach.to(dtype),
            gap=None if self.gap is None else (self.gap[0].to(dtype), self.gap[1].to(dtype)),
        )
