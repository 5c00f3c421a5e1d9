"""Which generators share their share p of the budget: those whose columns are alike."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 4
"""Rounds of Lloyd's algorithm."""


def alike(columns: Tensor, count: int) -> Tensor:
    """Labels (N,) in [0, count) for the columns of an (n, N) matrix, by k-means; a column and its negative are alike.

    Any grouping is sound: the closer it is, the less is lost.
    """
    n = columns.shape[1]
    if n <= count:
        return torch.arange(n)
    x = columns.to(torch.float32)
    x = (x * torch.where(x.sum(0) < 0, -1.0, 1.0)).T
    length = x.square().sum(1)
    centres = x[length.argsort()[torch.linspace(0, n - 1, count).round().long()]]
    labels = torch.zeros(n, dtype=torch.long)
    for _ in range(ROUNDS):
        distance = length.unsqueeze(1) + centres.square().sum(1) - 2.0 * (x @ centres.T)
        labels = distance.argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, labels, x)
        members = torch.bincount(labels, minlength=count).unsqueeze(1)
        centres = torch.where(members > 0, sums / members.clamp(min=1), centres)
    return labels.unique(return_inverse=True)[1]
