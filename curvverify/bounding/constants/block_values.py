"""What the entries of a node are, in terms of entries of one earlier node: the vocabulary of `blocks`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moved:
    """Entry j is scale * x[index[j]], x the flat value of `node`; nothing, or a constant, where index[j] = -1."""

    node: int
    index: Tensor
    scale: float = 1.0

    def at(self, places: Tensor) -> Moved:
        return replace(self, index=self.index[places])

    def times(self, factor: float) -> Moved:
        return replace(self, scale=factor * self.scale)

    def steady(self, windows: Tensor) -> bool:
        """Whether it is one and the same entry of x all over each window."""
        found = self.index[windows]
        return bool(((found >= 0) & (found == found[:, :1])).all())

    def over(self, table: Table) -> bool:
        """Whether entry by entry it is one of the members of the table's row; where nothing, anything goes."""
        if self.node != table.node or self.scale != table.scale:
            return False
        base = int(max(int(table.rows.max()), int(self.index.max()))) + 2
        members = torch.arange(len(table.rows)).unsqueeze(1) * base + table.rows
        wanted = (table.row * base + self.index)[self.index >= 0]
        return bool(torch.isin(wanted, members[table.rows >= 0]).all())


def same(a: Moved | None, b: Moved | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.node == b.node and a.scale == b.scale and torch.equal(a.index, b.index)


@dataclass(frozen=True, eq=False)
class Table:
    """Entry j belongs to rows[row[j]], a list of entries of scale * x (-1: no member)."""

    node: int
    scale: float
    rows: Tensor
    row: Tensor

    def at(self, places: Tensor) -> Table:
        return replace(self, row=self.row[places])


class Stage(StrEnum):
    """What an entry is; sums run over the members x_k of the entry's row."""

    DIFFERENCE = "x_p + offset"
    TERM = "exp(x_p + offset)"
    TOTAL = "sum exp(x_k + offset)"
    INVERSE = "1 / sum exp(x_k + offset)"
    LOG_TOTAL = "log sum exp(x_k + offset)"
    SOFTMAX = "softmax"
    LOG_SOFTMAX = "log_softmax"
    MEAN = "weight sum x_k"
    CENTRED = "x_p - weight sum x_k"
    SQUARE = "(x_p - weight sum x_k)^2"
    SPREAD = "spread sum (x_k - mean)^2 + eps"
    ROOT = "sqrt(spread)"
    INVERSE_ROOT = "1 / sqrt(spread)"
    NORMALISED = "normalisation"


@dataclass(frozen=True, eq=False)
class Value:
    """The description of a node's entries; `point` is x_p."""

    stage: Stage
    point: Moved | None = None
    offset: Moved | None = None
    table: Table | None = None
    weight: float = 0.0
    spread: float = 0.0
    eps: float = 0.0

    def at(self, places: Tensor) -> Value:
        """The description after entries were moved."""
        return replace(
            self,
            point=self.point and self.point.at(places),
            offset=self.offset and self.offset.at(places),
            table=self.table and self.table.at(places),
        )

    def same_mean(self, centred: Value | None) -> bool:
        """Whether the spread is that of the centred entries' groups; of entries that are not centred for None."""
        if centred is None or self.table is None or centred.table is None:
            return centred is None and self.weight == 0.0
        same = centred.weight == self.weight and centred.table.rows is self.table.rows
        return same and torch.equal(centred.table.row, self.table.row)

    @property
    def own(self) -> Moved | None:
        """x_m where the offset is -x_m and x_m is a member of the row."""
        if self.offset is None or self.table is None:
            return None
        member = self.offset.times(-1.0)
        return member if member.over(self.table) else None


@dataclass(frozen=True)
class Groups:
    """How rows and output entries meet the entries of x.

    With E the selection of all members, and R that of the output from all members' values, the block is R f(E x), f
    acting group by group; ||R|| = sqrt(repeats), ||E|| restricted to a group is sqrt(multiplicity), and
    sum over groups of ||x_g||^2 <= reach ||x||^2, which enters any order once: sum_g (c ||u_g|| ||v_g||)^2
    <= c^2 max_g ||u_g||^2 sum_g ||v_g||^2.
    """

    size: int
    """Different members of the largest group."""
    shown: int
    """Largest number of different members of one group in the output."""
    repeats: int
    """Largest number of times that one of them is output."""
    multiplicity: int
    """Largest number of times that an entry is a member of one group."""
    reach: int
    """Largest number of groups that an entry is in."""

    @classmethod
    def of(cls, table: Table, point: Moved | None) -> Groups | None:
        """Of the output entries x_point, those of index -1 being constant; None: each is the whole group's."""
        rows, group = table.rows.sort(1).values.unique(dim=0, return_inverse=True)
        group = group[table.row]
        shown = torch.zeros_like(group) if point is None else point.index
        group, shown = group[shown >= 0], shown[shown >= 0]
        if not len(group):
            return None
        pairs, repeats = torch.stack([group, shown]).unique(dim=1, return_counts=True)
        used, per_group = pairs[0].unique(return_counts=True)
        rows = rows[used]
        new = rows >= 0
        new[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        sizes, apart = new.sum(1), 1
        if int(sizes.min()) == 0:
            return None
        while apart < rows.shape[1] and bool(((rows[:, apart:] == rows[:, :-apart]) & (rows[:, apart:] >= 0)).any()):
            apart += 1
        reach = int(torch.bincount(rows[new]).max())
        return cls(int(sizes.max()), int(per_group.max()), int(repeats.max()), apart, reach)
