"""One block: the coupled entries of one level of a network over input boxes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvverify.bounding.coupling.generators import Generators
from curvverify.bounding.coupling.groups import alike
from curvverify.bounding.coupling.hulls import Hulls
from curvverify.types import Interval

GROUPS = 256
"""Most groups of generators that share their p."""

GRAM_NUMBERS = 2**21
"""Most numbers in the Gram matrices of all groups, for each box."""


@dataclass(frozen=True, eq=False)
class Site:
    """Some entries of the argument of an elementwise node."""

    node: int
    entries: Tensor
    """(B, n): flat positions, distinct in every box."""
    hulls: Hulls
    image: Interval
    """Bounds (B, 1, n) on the function there."""


def _picked(values: Tensor, boxes: Tensor) -> Tensor:
    """values[boxes], without a copy where there is but one box."""
    return values.expand(len(boxes), *values.shape[1:]) if len(values) == 1 else values[boxes]


@dataclass(frozen=True, eq=False)
class Frame:
    """The Gram matrices of n entries' generators, group by group: what holds on every part of the boxes as well.

    z - z0 = G xi + eps; sum_i xi_i^2 over group g is at most budget_g; gram_g = sum of x_i x_i^T over its columns x_i
    of G, up to roundings.
    """

    entries: dict[int, Tensor]
    """By node, (B, n_i): flat positions, distinct in every box."""
    centre: Tensor
    """z0 (B, n)."""
    error: Tensor
    """(B, n): how far entries may be from their generators' combination."""
    gram: Tensor
    """(B, G, n * n) in float64."""
    budget: Tensor
    """(G,)"""
    reach: Tensor
    """(B, n): how far G xi gets in every entry."""
    terms: int
    """How many products one entry of all Gram matrices together is summed from."""

    def __getitem__(self, boxes: Tensor) -> Frame:
        """The same for some of the boxes, which may repeat."""
        return Frame(
            {i: e[boxes] for i, e in self.entries.items()},
            self.centre[boxes],
            self.error[boxes],
            _picked(self.gram, boxes),
            self.budget,
            self.reach[boxes],
            self.terms,
        )


@dataclass(frozen=True, eq=False)
class Block:
    """Sites whose entries are in their order those of the frame."""

    sites: tuple[Site, ...]
    frame: Frame
    start: Tensor
    """(2, n): see `Hulls.start`."""
    _converted: dict[torch.dtype, Block] = field(default_factory=dict, init=False, repr=False)

    @property
    def error(self) -> Tensor:
        return self.frame.error

    @property
    def gram(self) -> Tensor:
        return self.frame.gram

    @property
    def budget(self) -> Tensor:
        return self.frame.budget

    @property
    def reach(self) -> Tensor:
        return self.frame.reach

    @property
    def size(self) -> int:
        return self.error.shape[1]

    @property
    def diagonal(self) -> Tensor:
        """(B, G, n)."""
        n = self.size
        return self.gram.reshape(*self.gram.shape[:2], n, n).diagonal(dim1=-2, dim2=-1)

    def to(self, dtype: torch.dtype) -> Block:
        """The same in another dtype, converted once."""
        if dtype == self.gram.dtype:
            return self
        if dtype not in self._converted:
            sites = tuple(replace(s, hulls=s.hulls.to(dtype), image=s.image.to(dtype)) for s in self.sites)
            tensors = {k: getattr(self.frame, k).to(dtype) for k in ("error", "gram", "budget", "reach")}
            frame = replace(self.frame, **tensors)
            self._converted[dtype] = replace(self, sites=sites, frame=frame, start=self.start.to(dtype))
        return self._converted[dtype]


def make_frame(entries: dict[int, Tensor], generators: Generators) -> Frame:
    """The frame of the nodes' entries in their order; generators that are together in a ball are a group."""
    found = generators.without_empty()
    columns, ball = found.columns, found.round
    boxes, n, count = columns.shape
    first = 1 if ball else 0
    most = max(1, min(GROUPS, GRAM_NUMBERS // max(1, n * n)) - first)
    labels = torch.zeros(count, dtype=torch.long)
    labels[ball:] = first + alike(columns[:, :, ball:].sum(0), most)
    groups = int(labels.max()) + 1 if count else 1
    gram = torch.zeros(boxes, groups, n, n, dtype=torch.float64)
    order, sizes = labels.argsort(), torch.bincount(labels, minlength=groups)
    for g, members in enumerate(order.split(sizes.tolist())):
        part = columns[:, :, members]
        torch.bmm(part, part.mT, out=gram[:, g]) if boxes == 1 else gram[:, g].copy_(part @ part.mT)
    budget = sizes.double()
    budget[:first] = 1.0
    reach = torch.linalg.vector_norm(columns[:, :, :ball], dim=2) + columns[:, :, ball:].abs().sum(2)
    return Frame(entries, found.centre, found.error, gram.flatten(2), budget, reach, count + groups)


def make_block(sites: tuple[Site, ...], frame: Frame, caution: float = 1.0) -> Block:
    """The block of the sites on the frame; `caution` multiplies the first coefficients."""
    starts = [torch.tensor([caution * s.hulls.start[0], s.hulls.start[1]]) for s in sites]
    start = torch.stack([t for s, t in zip(sites, starts, strict=True) for _ in range(s.entries.shape[1])], 1)
    return Block(sites, frame, start)
