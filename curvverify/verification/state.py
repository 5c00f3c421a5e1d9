"""Subproblems: input boxes with the disjuncts that are still open on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.types import Columns, Interval
from curvverify.verification.property import Property


@dataclass(frozen=True, eq=False)
class Subproblems(Columns):
    """B boxes (B, n) of the groups (B,), with open disjuncts (B, D) and the proved margins (B, D, K) of their rows."""

    box: Interval
    group: Tensor
    open: Tensor
    margins: Tensor

    @classmethod
    def of(cls, prop: Property) -> Subproblems:
        """The query itself: one subproblem per group, nothing proved."""
        margins = torch.full(prop.rows.shape, -torch.inf, dtype=torch.float64)
        return cls(prop.boxes, torch.arange(prop.groups), prop.present.clone(), margins)

    def __len__(self) -> int:
        return len(self.group)

    @property
    def unsettled(self) -> Tensor:
        """Positions of the boxes with an open disjunct."""
        return self.open.any(1).nonzero().squeeze(1)

    @property
    def margin_lower(self) -> Tensor:
        """Smallest margin (B,) over the open disjuncts, of the best row each: <= 0 while any is open."""
        best = torch.where(self.open, self.margins.amax(2), torch.inf)
        return best.amin(1)

    def proved(self, margins: Tensor) -> Subproblems:
        """With new proved margins (B, D, K) for the rows: the larger ones count, positive ones settle disjuncts."""
        better = torch.maximum(self.margins, margins)
        settled = (better > 0.0).any(2)
        return Subproblems(self.box, self.group, self.open & ~settled, better)

    def replaced(self, index: Tensor, found: Subproblems) -> Subproblems:
        """With the subproblems at the positions replaced by what was found of them."""
        still, margins = self.open.clone(), self.margins.clone()
        still[index], margins[index] = found.open, found.margins
        return Subproblems(self.box, self.group, still, margins)

    def branched(self, leaf_margins: Tensor, still: Tensor) -> Subproblems:
        """The query's own subproblems after branching.

        `leaf_margins` (G, D) are the smallest margins over the leaves, which bound the whole box's; -inf where there
        were no leaves.  `still` (G, D) are the disjuncts open on some leaf.
        """
        better = torch.maximum(self.margins, torch.where(self.open, leaf_margins, -torch.inf).unsqueeze(2))
        return Subproblems(self.box, self.group, self.open & still, better)
