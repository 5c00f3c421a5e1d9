"""Balls: boxes intersected with an l_2 ball each, and the linear minimum over what is left.

For any u, the minimum of a.x over {x in box: ||x - c|| <= r} is at least

    min over the box of (a - u).x  +  u.c - r ||u||,

since u.x is at least u.c - r ||u|| on the ball.  With the multiplier eta of the ball the best u is a clipped to
[-eta (upper - c), -eta (lower - c)], and the minimiser c - a / eta clipped to the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.types import Columns, Interval

STEPS = 6
"""Rounds in which the multiplier is looked for; each finds more of the entries that the box clips."""

UNDERFLOW = 1e-150
"""What squares that underflow may hide of a norm."""


@dataclass(frozen=True, eq=False)
class Balls(Columns):
    """||x - centre_b|| <= radius_b for each of B boxes: centre (B, n) and radius (B,) are exact float64 numbers."""

    centre: Tensor
    radius: Tensor

    def _room(self, box: Interval, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The displacements from the centre that the box leaves, (B, 1, n) each, up to rounding."""
        ends = (box.lower.flatten(1) - self.centre, box.upper.flatten(1) - self.centre)
        return ends[0].to(dtype).unsqueeze(1), ends[1].to(dtype).unsqueeze(1)

    def multipliers(self, form: Tensor, box: Interval) -> Tensor:
        """About the best multipliers eta (B, R, 1) of the ball for linear forms (B, R, *S): any are valid.

        Where F are the entries that are not clipped, eta = ||a_F|| / sqrt(r^2 - ||d||^2 over the others); as eta falls,
        F shrinks: solve for eta with the F so far, repeat.
        """
        a = form.flatten(2)
        low, high = self._room(box, a.dtype)
        reach = torch.where(a > 0, -low, high)
        size, square = a.abs(), reach.square()
        r = self.radius.to(a.dtype).reshape(-1, 1, 1)
        whole = square.sum(2, keepdim=True)
        a2 = a.square()
        eta = a2.sum(2, keepdim=True).sqrt() / r
        for _ in range(STEPS):
            free = size <= eta * reach
            left = r.square() - whole + torch.where(free, square, 0.0).sum(2, keepdim=True)
            moving = torch.where(free, a2, 0.0).sum(2, keepdim=True)
            found = (moving / left).sqrt()
            eta = torch.where((left > 0) & (found < eta), found, eta)
        inside = whole <= r.square()
        return torch.where(inside, 0.0, eta).nan_to_num(0.0, 0.0, 0.0)

    def share(self, form: Tensor, box: Interval, eta: Tensor) -> Tensor:
        """The part u (B, R, *S) of linear forms that the ball bounds; the box is left with the rest."""
        low, high = self._room(box, form.dtype)
        return form.flatten(2).maximum(-eta * high).minimum(-eta * low).reshape(form.shape)

    def support(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u.c - r ||u|| (B, R), up to roundings that are relative to the second, the absolute terms it is made of."""
        flat, centre = u.flatten(2), self.centre.to(u.dtype).unsqueeze(2)
        reach = self.radius.to(u.dtype).unsqueeze(1) * (torch.linalg.vector_norm(flat, dim=2) + UNDERFLOW)
        size = (flat.abs() @ centre.abs()).squeeze(2) + reach
        return (flat @ centre).squeeze(2) - reach, size

    def minimiser(self, form: Tensor, box: Interval, eta: Tensor) -> Tensor:
        """Where linear forms (B, R, *S) are smallest on box and ball, in their dtype; 0 / 0 stays at the centre."""
        low, high = self._room(box, form.dtype)
        d = (-form.flatten(2) / eta).nan_to_num(0.0, torch.inf, -torch.inf).maximum(low).minimum(high)
        return (self.centre.to(form.dtype).unsqueeze(1) + d).reshape(form.shape)
