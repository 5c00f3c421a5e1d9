"""Sums, means, products and extremes over dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from curvverify.graph.building import Builder, Var, normal
from curvverify.graph.lowering.rules import CannotLower, Rule


def total(t: Builder, x: Var, dims: Sequence[int] | None = None, keepdim: bool = False, **_: Any) -> Var:
    return t.reduce(x, dims or [], keepdim) if x.ndim else x


def mean(t: Builder, x: Var, dims: Sequence[int] | None = None, keepdim: bool = False, **_: Any) -> Var:
    return t.mean(x, dims or [], keepdim) if x.ndim else x


def extreme(t: Builder, x: Var, dims: Sequence[int], keepdim: bool, largest: bool) -> Var:
    """The largest or smallest entry over some dimensions, all of them where none is given."""
    axes = sorted(normal(d, x.ndim) for d in dims) or list(range(x.ndim))
    kept = [d for d in range(x.ndim) if d not in axes]
    windows = t.positions(x).permute(*axes, *kept).reshape(-1, *(x.shape[d] for d in kept))
    y = t.extremum(x, windows, largest)
    return t.reshape(y, [1 if d in axes else n for d, n in enumerate(x.shape)]) if keepdim else y


def over_dims(largest: bool) -> Rule:
    return lambda t, x, dims=(), keepdim=False: extreme(t, x, dims, keepdim, largest)


def over_dim(largest: bool) -> Rule:
    """Values and indices; the indices must not be used."""
    return lambda t, x, dim, keepdim=False: (extreme(t, x, [dim], keepdim, largest), None)


def over_all(largest: bool) -> Rule:
    return lambda t, x: extreme(t, x, [], False, largest)


def product(t: Builder, x: Var, dim: int, keepdim: bool = False, **_: Any) -> Var:
    """A balanced tree of products."""
    axis = normal(dim, x.ndim)
    layer = [t.gather(x, part) for part in t.positions(x).unbind(axis)]
    while len(layer) > 1:
        paired = [t.mul(a, b) for a, b in zip(layer[::2], layer[1::2], strict=False)]
        layer = paired + layer[len(paired) * 2 :]
    return t.reshape(layer[0], [*x.shape[:axis], 1, *x.shape[axis + 1 :]]) if keepdim else layer[0]


def product_all(t: Builder, x: Var, **_: Any) -> Var:
    return product(t, t.reshape(x, (x.size,)), 0)


def cumsum(t: Builder, x: Var, dim: int, **_: Any) -> Var:
    if not x.ndim:
        return x
    n = x.shape[dim]
    if n > 4096:
        raise CannotLower(f"a cumulative sum over {n} entries; up to 4096 are supported")
    return t.along(x, dim, torch.ones(n, n, dtype=torch.float64).tril())


RULES: dict[str, Rule] = {
    "sum": total,
    "sum.dim_IntList": total,
    "mean": mean,
    "mean.dim": mean,
    "amax": over_dims(True),
    "amin": over_dims(False),
    "max.dim": over_dim(True),
    "min.dim": over_dim(False),
    "max": over_all(True),
    "min": over_all(False),
    "prod": product_all,
    "prod.dim_int": product,
    "cumsum": cumsum,
}
