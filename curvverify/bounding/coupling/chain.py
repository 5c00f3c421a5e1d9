"""Lower convex hulls of many sets of points at once."""

from __future__ import annotations

import torch
from torch import Tensor


def lower_chain(x: Tensor, y: Tensor) -> Tensor:
    """Mask (H, m) of the vertices of the lower hull of (x_i, y_i), i < m, for H sets with ascending x.

    Andrew's monotone chain with one stack per set: a point is taken off while it is not below the line from the one
    under it to the newcomer.  In floating point the answer may miss or add a nearly collinear vertex.
    """
    count, m = y.shape
    stack = torch.zeros(count, m, dtype=torch.long)
    top = torch.zeros(count, dtype=torch.long)
    each = torch.arange(count)
    for t in range(1, m):
        active = each
        xt, yt = x[:, t], y[:, t]
        while active.numel():
            high = top[active]
            active = active[high > 0]
            high = top[active]
            b, a = stack[active, high], stack[active, high - 1]
            xa, ya, xb, yb = x[active, a], y[active, a], x[active, b], y[active, b]
            above = (yb - ya) * (xt[active] - xa) >= (yt[active] - ya) * (xb - xa)
            active = active[above]
            top[active] -= 1
        top += 1
        stack[each, top] = t
    vertices = torch.zeros(count, m, dtype=torch.bool)
    used = torch.arange(m) <= top.unsqueeze(1)
    vertices.scatter_(1, torch.where(used, stack, 0), True)
    return vertices


def ends(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """For every cell [i, i + 1] the vertices (H, m - 1) around it; the first and the last point are vertices."""
    m = vertices.shape[1]
    place = torch.arange(m)
    left = torch.where(vertices, place, 0)[:, :-1].cummax(1).values
    right = torch.where(vertices, place, m - 1)[:, 1:].flip(1).cummin(1).values.flip(1)
    return left, right
