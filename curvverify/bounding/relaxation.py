"""A network over input boxes: what is known of every node, and the supporting lines that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvverify.bounding.interval import node_image
from curvverify.graph.layers import Graph
from curvverify.ops.base import Elementwise, Envelope, Linear
from curvverify.types import Interval

if TYPE_CHECKING:
    from curvverify.bounding.coupling.block import Block

SATURATION = 1e-4
"""Entries whose image is narrower than this are bounded by constants, which makes later products sparse."""


@dataclass(eq=False)
class Relaxation:
    """A network over B input boxes: bounds of every node, and the envelopes of the nonlinear ones.

    Nodes are added in topological order.  All bounds are float64; a float32 copy of an envelope is made when a search
    asks for it.
    """

    graph: Graph
    """In float64."""
    box: Interval
    """B input boxes, (B, *S_in) in float64."""
    intervals: list[Interval] = field(default_factory=list)
    magnitudes: list[Tensor] = field(default_factory=list)
    """Upper bounds on the sums of absolute terms that every node's value is made of: what rounding errs relative to."""
    saturation: float = SATURATION
    blocks: dict[tuple[int, ...], Block | None] = field(default_factory=dict)
    """Coupled entries by the nodes they belong to, see `coupling.build`."""
    _envelopes: dict[tuple[int, torch.dtype], Envelope] = field(default_factory=dict)
    _finite: dict[int, bool] = field(default_factory=dict)

    def append(self, known: Interval | None) -> None:
        """Bound the next node from its inputs' bounds; `known` bounds are intersected."""
        position = len(self.intervals)
        if position == 0:
            image, magnitude = self.box, self.box.magnitude
        else:
            node = self.graph.nodes[position]
            inputs = [self.intervals[i] for i in node.inputs]
            image = node_image(node, inputs)
            magnitude = node.op.magnitude(*inputs) if isinstance(node.op, Linear) else image.magnitude
        if known is not None:
            image = consistent(image.intersect(known), image)
        self.intervals.append(image)
        self.magnitudes.append(magnitude)

    def tighten(self, position: int, bounds: Interval) -> None:
        """Intersect a node's bounds, before any envelope has been built on them."""
        old = self.intervals[position]
        self.intervals[position] = consistent(old.intersect(bounds), old)

    def envelope(self, position: int, dtype: torch.dtype) -> Envelope:
        """Supporting lines of an elementwise node over its input's bounds."""
        if (position, dtype) not in self._envelopes:
            if dtype == torch.float64:
                node = self.graph.nodes[position]
                assert isinstance(node.op, Elementwise)
                built = node.op.envelope(self.intervals[node.inputs[0]], saturation=self.saturation)
            else:
                built = self.envelope(position, torch.float64).to(dtype)
            self._envelopes[position, dtype] = built
        return self._envelopes[position, dtype]

    def finite(self, position: int) -> bool:
        """Whether a node's bounds are all finite."""
        if position not in self._finite:
            x = self.intervals[position]
            self._finite[position] = bool(x.lower.isfinite().all() and x.upper.isfinite().all())
        return self._finite[position]

    def select(self, boxes: Tensor) -> Relaxation:
        """The same for some of the boxes."""
        return Relaxation(
            self.graph,
            self.box[boxes],
            [x[boxes] for x in self.intervals],
            [m[boxes] for m in self.magnitudes],
            self.saturation,
        )


def consistent(tightened: Interval, fallback: Interval) -> Interval:
    """The tightened bounds, except where rounding has crossed them: there the wider ones."""
    crossed = ~(tightened.lower <= tightened.upper)
    if not bool(crossed.any()):
        return tightened
    return Interval(
        torch.where(crossed, fallback.lower, tightened.lower), torch.where(crossed, fallback.upper, tightened.upper)
    )
