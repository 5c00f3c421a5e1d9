"""A network over input boxes: what is known of every node, and the supporting lines that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvverify.bounding.folded import Folded, folded
from curvverify.bounding.interval import node_image
from curvverify.bounding.resume import NodeState, RowState, joined
from curvverify.graph.layers import Graph
from curvverify.ops.base import Elementwise, Envelope, Linear
from curvverify.ops.joint import Tangent
from curvverify.types import Interval

if TYPE_CHECKING:
    from curvverify.bounding.balls import Balls
    from curvverify.bounding.coupling.block import Block, Frame
    from curvverify.bounding.slabs import Slabs

CROSSED = 1e-9
"""Bounds of one value that cross by more than this, relative to their size, leave no value between them."""

SATURATION = 1e-4
"""Entries whose image is narrower than this are bounded by constants, which makes later products sparse."""


@dataclass(frozen=True, eq=False)
class Part:
    """What is known of B parts of boxes before they are bounded: all of it holds on the parts, or decides nothing."""

    known: Mapping[int, Interval] = field(default_factory=dict)
    """Bounds of nodes."""
    slabs: Slabs | None = None
    frames: Mapping[tuple[int, ...], Frame | None] = field(default_factory=dict)
    """Frames of the coupled entries of boxes around the parts, by node."""
    states: Mapping[int, NodeState] = field(default_factory=dict)
    """Where the searches for a similar box stood, by node."""
    tangents: Mapping[int, Tangent] = field(default_factory=dict)
    """Tangents of joint operators on boxes around the parts, by node."""
    balls: Balls | None = None


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
    slabs: Slabs | None = None
    """What cuts the boxes: all bounds are of the values inside of it."""
    balls: Balls | None = None
    """Likewise."""
    blocks: dict[tuple[int, ...], Block | None] = field(default_factory=dict)
    """Coupled entries by the nodes they belong to, see `coupling.build`."""
    around: Mapping[tuple[int, ...], Frame | None] = field(default_factory=dict)
    """The frames of a larger box, which blocks take where there is one."""
    states: dict[int, NodeState] = field(default_factory=dict)
    tangents: dict[int, Tangent] = field(default_factory=dict)
    """Of joint operators, in float64."""
    empty: Tensor = field(init=False)
    """The boxes (B,) of which bounds of some node have crossed: no point of them is where all bounds hold."""
    _envelopes: dict[tuple[int, torch.dtype], Envelope] = field(default_factory=dict)
    _tangents: dict[tuple[int, torch.dtype], Tangent] = field(default_factory=dict)
    _finite: dict[int, bool] = field(default_factory=dict)
    _folded: dict[torch.dtype, Folded | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.empty = torch.zeros(len(self.box.lower), dtype=torch.bool)

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
            image = self._consistent(image.intersect(known), image)
        self.intervals.append(image)
        self.magnitudes.append(magnitude)

    def tighten(self, position: int, bounds: Interval) -> None:
        """Intersect a node's bounds, before any envelope has been built on them."""
        old = self.intervals[position]
        self.intervals[position] = self._consistent(old.intersect(bounds), old)

    def _consistent(self, tightened: Interval, fallback: Interval) -> Interval:
        low, high = tightened.lower, tightened.upper
        nothing = low - high > CROSSED * (1.0 + torch.maximum(low.abs(), high.abs()))
        if bool(nothing.any()):
            self.empty = self.empty | nothing.flatten(1).any(1)
        return consistent(tightened, fallback)

    def keep(self, position: int, functions: int, found: list[tuple[Tensor, RowState | None]]) -> None:
        """Remember where the searches stood: states of numbered functions (B, R) out of so many, piece by piece."""
        states = [state for _, state in found if state is not None]
        if not states or len(states) < len(found):
            return
        numbers = torch.cat([index for index, _ in found], 1)
        place = torch.full((numbers.shape[0], functions), -1, dtype=torch.long)
        place.scatter_(1, numbers, torch.arange(numbers.shape[1]).expand_as(numbers))
        self.states[position] = NodeState(place, joined(states, 1))

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

    def tangent(self, position: int, dtype: torch.dtype) -> Tangent:
        """The tangent of a joint operator."""
        if dtype == torch.float64:
            return self.tangents[position]
        if (position, dtype) not in self._tangents:
            self._tangents[position, dtype] = self.tangents[position].mapped(lambda t: t.to(dtype))
        return self._tangents[position, dtype]

    def folded(self, dtype: torch.dtype) -> Folded | None:
        """The nodes next to the input as functions of its free coordinates; None where that does not pay."""
        if not self.uncut:
            return None
        if dtype not in self._folded:
            whole = folded(self.graph, self.box) if dtype == torch.float64 else self.folded(torch.float64)
            self._folded[dtype] = None if whole is None else whole.to(dtype)
        return self._folded[dtype]

    @property
    def uncut(self) -> bool:
        """Whether the boxes are whole: no slabs, no balls."""
        return self.slabs is None and self.balls is None

    def finite(self, position: int) -> bool:
        """Whether a node's bounds are all finite."""
        if position not in self._finite:
            x = self.intervals[position]
            self._finite[position] = bool(x.lower.isfinite().all() and x.upper.isfinite().all())
        return self._finite[position]

    @property
    def frames(self) -> dict[tuple[int, ...], Frame | None]:
        """The frames of all blocks, for parts of the boxes."""
        return {**self.around, **{i: None if b is None else b.frame for i, b in self.blocks.items()}}

    def select(self, boxes: Tensor, remember: bool = True) -> Relaxation:
        """The same for some of the boxes; unless told to `remember`, without frames and states."""
        frames, states = (self.frames, self.states) if remember else ({}, {})
        return Relaxation(
            self.graph,
            self.box[boxes],
            [x[boxes] for x in self.intervals],
            [m[boxes] for m in self.magnitudes],
            self.saturation,
            None if self.slabs is None else self.slabs[boxes],
            None if self.balls is None else self.balls[boxes],
            around={i: None if f is None else f[boxes] for i, f in frames.items()},
            states={i: state.boxes(boxes) for i, state in states.items()},
            tangents={i: t[boxes] for i, t in self.tangents.items()},
        )


def consistent(tightened: Interval, fallback: Interval) -> Interval:
    """The tightened bounds, except where rounding has crossed them: there the wider ones."""
    crossed = ~(tightened.lower <= tightened.upper)
    if not bool(crossed.any()):
        return tightened
    return Interval(
        torch.where(crossed, fallback.lower, tightened.lower), torch.where(crossed, fallback.upper, tightened.upper)
    )
