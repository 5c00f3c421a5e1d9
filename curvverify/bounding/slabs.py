"""Slabs: boxes cut by halfspaces, and the linear minimum over what is left.

For any multipliers eta, the minimum of a.x over {x in box: low_q <= v_q.x <= high_q} is at least

    min over the box of (a - sum_q eta_q v_q).x  +  sum_q min(eta_q low_q, eta_q high_q),

by weak duality: wherever low <= v.x <= high, eta v.x >= min(eta low, eta high).  Splitting along few directions that
the network varies most in is what keeps branching cheap when there are hundreds of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.types import Columns, Interval

GRID, REFINED = 31, 3
"""Breakpoints among which a multiplier is looked for, and halvings of the distance between two of them."""


@dataclass(frozen=True, eq=False)
class Slabs(Columns):
    """low_q <= v_q.x <= high_q for K directions v_q (B, K, n), with low and high (B, K), for each of B boxes.

    Directions and limits are exact float64 numbers: halves cut at one number cover the whole.
    """

    directions: Tensor
    low: Tensor
    high: Tensor

    @property
    def count(self) -> int:
        return self.directions.shape[1]

    @property
    def bytes(self) -> int:
        return 8 * (self.low.numel() + self.high.numel())  # the directions are shared

    def halves(self, direction: int, at: float) -> tuple[Slabs, Slabs]:
        """{v.x <= at} and {v.x >= at}."""
        low, high = self.low.clone(), self.high.clone()
        low[:, direction] = high[:, direction] = at
        return replace(self, high=high), replace(self, low=low)

    def multipliers(self, slope: Tensor, box: Interval, start: Tensor | None, sweeps: int) -> Tensor:
        """Multipliers (B, R, K) in float32 for linear forms (B, R, *S): one after the other is chosen best.

        Where a form's dual function is not smooth the sweeps may stall below its maximum: an estimate, as any are
        valid.  `start` are those of an earlier, similar form.
        """
        centre, radius = box.centre.flatten(1).double(), (0.5 * box.width).flatten(1).double()
        middle = (self.directions @ centre.unsqueeze(2)).squeeze(2)
        low, high = (self.low - middle).float(), (self.high - middle).float()
        form = slope.flatten(2).float()
        directions = self.directions.float()
        eta = torch.zeros(*form.shape[:2], self.count) if start is None else start.clone()
        rest = form - eta @ directions if start is not None else form
        moves = (directions != 0) & (radius > 0).unsqueeze(1)
        reach = 0.999999 * (directions.abs() @ radius.float().unsqueeze(2)).squeeze(2)
        cut = ((low > -reach) | (high < reach)).any(0).nonzero().squeeze(1).tolist()
        for _ in range(sweeps if len(cut) > 1 else 1):
            for q in cut:
                active = moves[:, q].any(0)
                v = directions[:, q : q + 1]
                rest = rest + eta[:, :, q : q + 1] * v
                best = _best(rest[..., active], v[..., active], radius[:, active].float(), low[:, q], high[:, q])
                eta[:, :, q] = best
                rest = rest - best.unsqueeze(2) * v
        return eta.nan_to_num(0.0, 0.0, 0.0)

    def reduced(self, slope: Tensor, eta: Tensor) -> Tensor:
        """a - sum_q eta_q v_q, (B, R, *S)."""
        return slope - (eta.to(slope.dtype) @ self.directions.to(slope.dtype)).reshape(slope.shape)

    def support(self, eta: Tensor) -> Tensor:
        """sum_q min(eta_q low_q, eta_q high_q), (B, R)."""
        low, high = self.low.to(eta.dtype).unsqueeze(1), self.high.to(eta.dtype).unsqueeze(1)
        return torch.minimum(eta * low, eta * high).sum(2)

    def size(self, eta: Tensor, magnitude: Tensor) -> Tensor:
        """Upper bound (B, R) on the absolute terms that eta adds to a linear form's value, up to roundings."""
        reach = (self.directions.abs() @ magnitude.flatten(1).unsqueeze(2)).squeeze(2)
        reach = reach + torch.maximum(self.low.abs(), self.high.abs())
        return (eta.abs() * reach.unsqueeze(1)).sum(2)


def _best(form: Tensor, v: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """About argmax (B, R) over e of -|a - e v|.r + min(e low, e high), for forms (B, R, n), v (B, 1, n), limits (B,).

    The function is concave and piecewise linear with breakpoints a_i / v_i, at which its slope falls by 2 |v_i| r_i;
    at 0 it falls by high - low.  Bisection over the sorted breakpoints of largest weight, then between two of them,
    finds where it changes sign: in (left, right], and at the right end where that is the only breakpoint.
    """
    n = form.shape[2]
    if not n:
        return form.new_zeros(form.shape[:2])
    weight = v.abs().squeeze(1) * radius
    points = form / v
    total, column = weight.sum(1, keepdim=True), 2.0 * weight.unsqueeze(2)

    def slope(e: Tensor) -> Tensor:
        return ((points > e.unsqueeze(2)).to(form.dtype) @ column).squeeze(2) - total

    low, high = low.unsqueeze(1), high.unsqueeze(1)
    middle = slope(form.new_zeros(form.shape[:2]))
    negative, positive = middle + high < 0, middle + low > 0
    limit = torch.where(negative, high, low)
    heavy = weight.sum(0).topk(min(n, GRID)).indices
    grid = points[:, :, heavy].sort(dim=2).values
    first = torch.full(form.shape[:2], -1, dtype=torch.long)
    last = torch.full_like(first, grid.shape[2])
    for _ in range(grid.shape[2].bit_length()):
        at = (first + last) // 2
        rising = slope(grid.gather(2, at.clamp(0, grid.shape[2] - 1).unsqueeze(2)).squeeze(2)) + limit > 0
        first, last = torch.where(rising, at, first), torch.where(rising, last, at)
    inside = [i.clamp(0, grid.shape[2] - 1).unsqueeze(2) for i in (first, last)]
    left, right = (grid.gather(2, i).squeeze(2) for i in inside)
    for _ in range(REFINED):
        e = 0.5 * (left + right)
        rising = slope(e) + limit > 0
        left, right = torch.where(rising, e, left), torch.where(rising, right, e)
    return torch.where(negative | positive, right, 0.0)
