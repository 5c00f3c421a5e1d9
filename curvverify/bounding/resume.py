"""Where the searches for the rows of a relaxation stood, so that those of a part of it start there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = tuple[Tensor, Tensor]
"""Coefficients c (B, R, n) and shares p (B, R, G) of one block."""


@dataclass(frozen=True, eq=False)
class RowState:
    """The supporting points of R rows at every nonlinear node, multipliers of slabs, weights by the blocks' sites.

    Everything is (B, R, ...) in float32.  Nothing in it decides: any state gives valid bounds.
    """

    points: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    multipliers: Tensor | None = None
    weights: dict[tuple[int, ...], Weights] = field(default_factory=dict)

    def tensors(self) -> Iterable[Tensor]:
        for group in (*self.points.values(), *self.weights.values()):
            yield from group
        if self.multipliers is not None:
            yield self.multipliers

    def __getitem__(self, rows: Tensor) -> RowState:
        """The rows (B, R') of every box."""
        each = torch.arange(rows.shape[0]).unsqueeze(1)
        return self._mapped(lambda t: t[each, rows])

    def rows(self, piece: slice) -> RowState:
        """Consecutive rows of every box."""
        return self._mapped(lambda t: t[:, piece])

    def boxes(self, index: Tensor) -> RowState:
        """Some of the boxes."""
        return self._mapped(lambda t: t[index])

    def _mapped(self, what) -> RowState:
        return RowState(
            {i: tuple(what(t) for t in ts) for i, ts in self.points.items()},
            None if self.multipliers is None else what(self.multipliers),
            {i: (what(c), what(p)) for i, (c, p) in self.weights.items()},
        )


def joined(parts: list[RowState], dim: int) -> RowState:
    """The rows (dim = 1) or the boxes (dim = 0) of all parts, which must be of one kind."""
    first = parts[0]
    multipliers = [p.multipliers for p in parts if p.multipliers is not None]
    return RowState(
        {i: tuple(torch.cat(ts, dim) for ts in zip(*(p.points[i] for p in parts), strict=True)) for i in first.points},
        torch.cat(multipliers, dim) if len(multipliers) == len(parts) else None,
        {
            i: (torch.cat([p.weights[i][0] for p in parts], dim), torch.cat([p.weights[i][1] for p in parts], dim))
            for i in first.weights
            if all(i in p.weights for p in parts)
        },
    )


@dataclass(frozen=True, eq=False)
class NodeState:
    """The state of a node's rows, and which of them belongs to which function of the node.

    place (B, m) are row numbers by the caller's own numbering of functions, -1 where a function has none.
    """

    place: Tensor
    rows: RowState

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.rows.tensors())

    @property
    def pointed(self) -> NodeState:
        """Without the weights, which mean nothing to blocks of other entries."""
        return NodeState(self.place, RowState(self.rows.points, self.rows.multipliers))

    def of(self, functions: Tensor) -> RowState:
        """The states for the functions (B, R); those without one get another's, which is no worse than none."""
        return self.rows[self.place.gather(1, functions).clamp(min=0)]

    def boxes(self, index: Tensor) -> NodeState:
        return NodeState(self.place[index], self.rows.boxes(index))
