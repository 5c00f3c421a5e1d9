"""Several linear forms below the same row, and the convex combination of them with the largest minimum over the box.

Every iterate of a search leaves one: row >= lower_t + sum_i (a_ti xi_i + |a_ti|), |xi_i| <= 1.  So does every convex
combination, in which slopes of opposite signs cancel; near the optimum, where two iterates' lines turn at the same
kink, that gains more than further iterates do.  By duality it is min over the box of the largest of the forms.

Source: the dual of Kelley's cutting planes, J. SIAM 8 (1960).
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvverify.numerics.rounding import TINY, gamma, round_down
from curvverify.types import Interval


class Bundle:
    """Forms of R rows over B boxes (B, n), as they come, and the weights (T, B, R) of their best known combination."""

    def __init__(self, box: Interval):
        self._radius = round_down(0.5 * box.width).clamp(min=0.0).unsqueeze(1)
        self._slopes = self._centres = self._sizes = self._weights = torch.zeros(0)

    def add(self, lower: Tensor, slope: Tensor) -> None:
        """One form of every row more: proved bounds (B, R), and the slopes (B, R, n) that gave them.

        Forms that are not finite are left out.
        """
        reach = (slope.abs() * self._radius).sum(2)
        known = (lower + reach).isfinite()
        nothing = ~(self._weights.sum(0) > 0) if len(self._weights) else torch.ones_like(known)
        form = (
            torch.where(known.unsqueeze(2), slope * self._radius, 0.0),
            torch.where(known, lower + reach, -torch.inf),
            torch.where(known, lower.abs() + 2.0 * reach, 0.0),
            (known & nothing).double(),
        )
        held = (self._slopes, self._centres, self._sizes, self._weights)
        self._slopes, self._centres, self._sizes, self._weights = (
            torch.cat([h, f.unsqueeze(0)]) if len(h) else f.unsqueeze(0) for h, f in zip(held, form, strict=True)
        )

    def improve(self, sweeps: int) -> None:
        """Move all weights towards one form after another, or away from it, while the minimum over the box rises.

        The minimum is concave and piecewise linear along the way: its slope falls by 2 |d_i| where a_i + theta d_i = 0.
        """
        a, c = self._combined()
        count = a.shape[2]
        for t in [t for _ in range(sweeps) for t in reversed(range(len(self._weights)))]:
            weight = self._weights[t]
            d, rise = self._slopes[t] - a, self._centres[t] - c
            turns, order = (-a / d).nan_to_num(torch.inf, torch.inf, -torch.inf).sort(2)
            falls = 2.0 * d.abs().gather(2, order)
            start = rise + 0.5 * falls.sum(2)
            rises = (start.unsqueeze(2) > falls.cumsum(2)).sum(2)
            theta = turns.gather(2, rises.clamp(max=count - 1).unsqueeze(2)).squeeze(2)
            theta = torch.where(start > 0, torch.where(rises < count, theta, 1.0), -torch.inf)
            least = torch.where(weight < 1.0, -weight / (1.0 - weight), 0.0)
            theta = torch.where(rise.isfinite(), theta.clamp(max=1.0).maximum(least), 0.0)
            self._weights = self._weights * (1.0 - theta)
            self._weights[t] += theta
            a, c = a + theta.unsqueeze(2) * d, torch.where(theta == 0, c, c + theta * rise)
        self._weights = self._weights.clamp(min=0.0)

    def _combined(self) -> tuple[Tensor, Tensor]:
        """Slope in xi (B, R, n) and centre (B, R) of the combination."""
        weights = self._weights
        centres = torch.where(weights > 0, weights * self._centres, 0.0)
        return (weights.unsqueeze(3) * self._slopes).sum(0), centres.sum(0)

    def lower(self) -> tuple[Tensor, Tensor]:
        """Proved lower bounds (B, R) of the combination, and its slope (B, R, n); -inf where no form is known.

        Sound because: with weights w_t >= 0 of any sum s > 0, s row >= sum of w_t times the forms; all numbers are
        sums of at most T + n terms, relative to what `_sizes` holds; and too small a radius lowers the sum of
        w_t (lower_t + |a_t|) - |sum of w_t a_t|, since |sum of w_t a_t| <= sum of w_t |a_t|.
        """
        slope, centre = self._combined()
        total = self._weights.sum(0)
        unit = 4.0 * gamma(len(self._weights) + slope.shape[2] + 32)
        value = centre - slope.abs().sum(2) - unit * (self._weights * self._sizes).sum(0) - TINY
        found = value / total
        found = found - unit * found.abs() - TINY
        whole = (slope / self._radius).nan_to_num(0.0, 0.0, 0.0) / total.unsqueeze(2)
        return torch.where(total > 0, found, -torch.inf).nan_to_num(-torch.inf, neginf=-torch.inf), whole
