"""Folding batch normalisation rounds its constants; the bounds cover what that may have lost."""

from __future__ import annotations

import mpmath as mp
import torch
from torch import nn

from curvverify.bounding.interval import interval_bounds
from curvverify.bounding.linear import Effort, entry_bounds, linear_bounds
from curvverify.graph import load
from curvverify.ops.linear import Dense
from curvverify.types import Interval


def cancelling(seed: int) -> tuple[nn.Sequential, nn.Linear, nn.BatchNorm1d]:
    """A dense layer and a normalisation whose mean and bias are huge and almost cancel."""
    generator = torch.Generator().manual_seed(seed)
    dense, norm = nn.Linear(3, 4), nn.BatchNorm1d(4, eps=1e-5)
    for tensor in (dense.weight, dense.bias, norm.weight):
        tensor.data = torch.rand(tensor.shape, generator=generator) + 0.1
    norm.running_mean = 1e7 * torch.rand(4, generator=generator)
    norm.running_var = torch.rand(4, generator=generator) + 0.3
    factor = norm.weight.data / (norm.running_var + norm.eps).sqrt()
    norm.bias.data = norm.running_mean * factor
    return nn.Sequential(dense, norm).eval(), dense, norm


def exact(dense: nn.Linear, norm: nn.BatchNorm1d, x: torch.Tensor, row: int) -> mp.mpf:
    """One output at x in 60 digits, from the float32 parameters as they are."""
    weights = [mp.mpf(w) for w in dense.weight[row].tolist()]
    z = sum((w * mp.mpf(v) for w, v in zip(weights, x.tolist(), strict=True)), mp.mpf(dense.bias[row].item()))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    spread = mp.sqrt(mp.mpf(norm.running_var[row].item()) + mp.mpf(norm.eps))
    centred = z - mp.mpf(norm.running_mean[row].item())
    return centred * mp.mpf(norm.weight[row].item()) / spread + mp.mpf(norm.bias[row].item())


def test_bounds_at_a_point_hold_the_exact_value() -> None:
    with mp.workdps(60):
        for seed in range(8):
            module, dense, norm = cancelling(seed)
            graph = load(module, shapes=(1, 3)).graph
            (op,) = (node.op for node in graph if isinstance(node.op, Dense))
            assert op.size is not None
            assert bool((op.size >= op.bias.abs()).all())  # type: ignore[union-attr]
            x = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            box = Interval(x.reshape(1, 1, 3), x.reshape(1, 1, 3))
            interval = interval_bounds(graph, box)[-1]
            relaxation = linear_bounds(graph, box, Effort(1))
            every = torch.ones(1, *graph.output_shape, dtype=torch.bool)
            linear = entry_bounds(relaxation, graph.output, every, Effort(1))
            for row in range(4):
                value = exact(dense, norm, x, row)
                for bounds in (interval, linear):
                    assert mp.mpf(bounds.lower.flatten()[row].item()) <= value
                    assert value <= mp.mpf(bounds.upper.flatten()[row].item())
