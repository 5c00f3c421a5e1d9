"""The open parts of a box whose phases are searched: a queue, groups of parts, and hulls of groups."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvverify.bounding.cuts import Cuts
from curvverify.bounding.phases import Phases
from curvverify.types import Columns

GROUPED = 3
"""Parts of one that was cut so often make up a group."""


@dataclass(frozen=True, order=True)
class OpenPart:
    """A part of the box: in the queue those of groups that were cut least come first, and most open ones of those."""

    order: int
    margin: float
    number: int
    target: int = field(compare=False)
    phases: Phases = field(compare=False)
    share: float = field(compare=False)
    """Of the box, halved by every cut; of a hull the sum of what it holds."""
    since: int = field(compare=False)
    """Cuts since its ranges were last contracted."""
    group: int = field(compare=False)
    """-1: none yet."""


@dataclass(frozen=True, eq=False)
class Parts(Columns):
    """B parts that are treated together: the columns of `OpenPart`."""

    targets: Tensor
    phases: Phases
    margins: Tensor
    shares: Tensor
    since: Tensor
    groups: Tensor

    @classmethod
    def whole(cls, phases: Phases) -> Parts:
        """The box itself for every target, nothing bounded yet; each is the first of a group."""
        index = torch.arange(len(phases))
        share, since = torch.ones(len(index), dtype=torch.float64), torch.full_like(index, GROUPED)
        return cls(index, phases, -torch.inf * share, share, since, torch.full_like(index, -1))

    @classmethod
    def of(cls, parts: list[OpenPart]) -> Parts:
        phases = Phases.concatenated([p.phases for p in parts])
        margins, shares = torch.tensor([(p.margin, p.share) for p in parts], dtype=torch.float64).T
        targets, since, groups = torch.tensor([(p.target, p.since, p.group) for p in parts]).T
        return cls(targets, phases, margins, shares, since, groups)

    def __len__(self) -> int:
        return len(self.targets)

    def halves(self, cuts: Cuts) -> Parts:
        """Both halves of every part."""
        twice = self[torch.arange(len(self)).repeat_interleave(2)]
        phases = cuts.halves(self.phases)
        return replace(twice, phases=phases, shares=0.5 * twice.shares, since=twice.since + 1)

    def contracted(self) -> Parts:
        """The same as parts of no group, whose cuts are counted from now on."""
        return replace(self, since=torch.zeros_like(self.since), groups=torch.full_like(self.groups, -1))


@dataclass(eq=False)
class PartQueue:
    """Everything that is open of a box, for so many targets."""

    targets: int
    _heap: list[OpenPart] = field(default_factory=list)
    _stuck: list[OpenPart] = field(default_factory=list)
    """Parts whose phases are all fixed, and that a long ascent has not proved."""
    _open_in: Counter[int] = field(default_factory=Counter)
    _cut_in: Counter[int] = field(default_factory=Counter)
    """How many parts of every group are open, and how many were taken out to be cut."""
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._shares = [0.0] * self.targets

    def __len__(self) -> int:
        return len(self._heap) + len(self._stuck)

    def __iter__(self) -> Iterator[OpenPart]:
        yield from self._heap
        yield from self._stuck

    @property
    def free(self) -> int:
        """How many parts can be cut."""
        return len(self._heap)

    @property
    def share(self) -> float:
        """Mean over the targets of the shares of the box that are open."""
        return sum(self._shares) / self.targets

    def add(self, batch: Parts, searched: bool) -> None:
        """Queue parts, those that are due for a contraction as the first of their groups.

        Where an ascent was long, those with all phases fixed are stuck.
        """
        stuck = searched & (batch.phases.signs != 0).all(1)
        for b in range(len(batch)):
            phases, since, number = batch.phases[torch.tensor([b])], int(batch.since[b]), next(self._count)
            group = number if since == GROUPED else int(batch.groups[b])
            order, target, share = self._cut_in[group].bit_length(), int(batch.targets[b]), float(batch.shares[b])
            part = OpenPart(order, float(batch.margins[b]), number, target, phases, share, since, group)
            self._open_in[group] += 1
            self._shares[target] += share
            if bool(stuck[b]):
                self._stuck.append(part)
            else:
                heapq.heappush(self._heap, part)

    def pop(self, most: int) -> Parts:
        """The first parts, so many at most, to be cut."""
        parts = [heapq.heappop(self._heap) for _ in range(min(most, len(self._heap)))]
        for part in parts:
            self._forget(part)
        self._cut_in.update(part.group for part in parts if part.group >= 0)
        return Parts.of(parts)

    def growing(self, most: int, ratio: float, least: float) -> list[int]:
        """Groups with more open parts than `ratio` for every cut and than `least`; so many at most, those cut most."""

        def grows(group: int) -> bool:
            return self._open_in[group] > max(least, ratio * self._cut_in[group]) and self._cut_in[group] > 0

        return heapq.nlargest(most, filter(grows, self._open_in), key=lambda group: self._cut_in[group])

    def hulls(self, groups: list[int]) -> Parts:
        """One part for each of the groups that holds all that is open of it, which is taken out of the queue.

        Their margins are unknown.
        """
        parts: dict[int, list[OpenPart]] = {group: [] for group in groups}
        for part in self:
            if part.group in parts:
                parts[part.group].append(part)
                self._forget(part)
        self._heap = [part for part in self._heap if part.group not in parts]
        self._stuck = [part for part in self._stuck if part.group not in parts]
        heapq.heapify(self._heap)
        batch = Parts.of([hull(held) for held in parts.values()])
        unknown, since = torch.full_like(batch.margins, -torch.inf), torch.full_like(batch.since, GROUPED)
        return replace(batch, margins=unknown, since=since)

    def _forget(self, part: OpenPart) -> None:
        self._open_in[part.group] -= 1
        self._shares[part.target] = max(0.0, self._shares[part.target] - part.share)


def hull(parts: list[OpenPart]) -> OpenPart:
    """A part that holds all of these, with the slopes of the most open one."""
    most = min(parts, key=lambda part: part.margin)
    lower, upper = most.phases.lower, most.phases.upper
    for part in parts:
        lower, upper = torch.minimum(lower, part.phases.lower), torch.maximum(upper, part.phases.upper)
    phases = replace(most.phases, lower=lower, upper=upper)
    return replace(most, phases=phases, share=math.fsum(part.share for part in parts))
