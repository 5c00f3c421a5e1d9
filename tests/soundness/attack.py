"""Attacks on bounds: random points, corners, and gradient ascent on every entry."""

from __future__ import annotations

import torch
from torch import Tensor

from curvverify.graph.layers import Graph
from curvverify.types import Interval


def points(box: Interval, count: int, seed: int) -> Tensor:
    """(count, *S): uniform points and corners of the box (1, *S), its centre first."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(count, *box.lower.shape[1:], generator=generator, dtype=torch.float64)
    t[: count // 2] = t[: count // 2].round()
    t[0] = 0.5
    return box.lower + t * box.width


def ascent(graph: Graph, node: int, box: Interval, weight: Tensor, start: Tensor, steps: int = 8) -> Tensor:
    """Inputs after sign-gradient ascent of weight . value of the node, projected to the box."""
    x = start
    for t in range(steps):
        x = x.detach().requires_grad_(True)
        value = (graph.values(x)[node] * weight).sum()
        (gradient,) = torch.autograd.grad(value, x)
        x = x.detach() + 0.3 * 0.8**t * box.width * gradient.sign()
        x = torch.minimum(torch.maximum(x, box.lower), box.upper)
    return x


def worst_violation(graph: Graph, box: Interval, node: int, bounds: Interval, seed: int = 0) -> float:
    """How far any attack gets outside the bounds of a node: positive would refute them."""
    starts = points(box, 256, seed)
    inputs = [starts]
    size = bounds.lower[0].numel()
    generator = torch.Generator().manual_seed(seed + 1)
    for entry in torch.randperm(size, generator=generator)[:4].tolist():
        weight = torch.zeros(size, dtype=torch.float64)
        for sign in (1.0, -1.0):
            weight[entry] = sign
            inputs.append(ascent(graph, node, box, weight.reshape(bounds.lower.shape[1:]), starts[:16]))
    with torch.no_grad():
        value = graph.values(torch.cat(inputs))[node]
    return float(torch.maximum(bounds.lower - value, value - bounds.upper).max())
