"""Which entries are coupled, and the blocks made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from curvverify.bounding.coupling.block import Block, Frame, Site, make_block, make_frame
from curvverify.bounding.coupling.generators import Strip, node_generators, stacked
from curvverify.bounding.coupling.hinge import hinge_hulls
from curvverify.bounding.coupling.hulls import Hulls
from curvverify.bounding.coupling.table import table_hulls
from curvverify.bounding.relaxation import Relaxation
from curvverify.ops.base import Elementwise
from curvverify.ops.elementwise.hinge import Hinge
from curvverify.types import Interval

TURN = 0.02
"""Entries whose slope turns by less over their interval are bounded singly: there is nothing to gain."""

MOST = 160
"""Most entries of one block, those with the widest gap between function and chord."""

CAUTION = (1.0, 0.3, 0.1)
"""What the first coefficients of each level are multiplied by; the last number goes on."""


def coupled_blocks(relaxation: Relaxation, node: int, levels: int) -> list[Block]:
    """Blocks of the first `levels` levels of elementwise nodes that a node depends on, built once per relaxation."""
    graph = relaxation.graph
    found = []
    for level in range(levels):
        sites = tuple(
            i for i in graph.ancestors[node] if graph.levels[i] == level and isinstance(graph.nodes[i].op, Elementwise)
        )
        if sites not in relaxation.blocks:
            relaxation.blocks[sites] = _build(relaxation, sites, CAUTION[min(level, len(CAUTION) - 1)])
        block = relaxation.blocks[sites]
        if block is not None:
            found.append(block)
    return found


def covered(relaxation: Relaxation, node: int) -> float:
    """How much of the gaps between functions and chords on the first level one block holds: the least over the boxes.

    Where it is little, as for convolutions with thousands of unstable entries, coupling gains next to nothing.
    """
    graph = relaxation.graph
    sites = [i for i in graph.ancestors[node] if graph.levels[i] == 0 and isinstance(graph.nodes[i].op, Elementwise)]
    scores = [gaps(relaxation, i) for i in sites]
    if not scores:
        return 0.0
    every = torch.cat(scores, 1)
    held = every.topk(min(MOST, every.shape[1]), 1).values.sum(1)
    return float((held / every.sum(1).clamp(min=1e-30)).min())


def _build(relaxation: Relaxation, nodes: tuple[int, ...], caution: float) -> Block | None:
    """The block of the most influential entries of the nodes; None where none has anything to gain."""
    if nodes in relaxation.around:
        return _within(relaxation, relaxation.around[nodes], caution)
    scores = [gaps(relaxation, i) for i in nodes]
    if not scores or not any(bool((s > 0).any()) for s in scores):
        return None
    every = torch.cat(scores, 1)
    if every.shape[1] > MOST:
        least = every.topk(MOST, 1).values[:, -1:]
        scores = [torch.where(s >= least, s, 0.0) for s in scores]
    strips: dict[int, Strip] = {}
    sites, parts = [], []
    for i, score in zip(nodes, scores, strict=True):
        most = int((score > 0).sum(1).max())
        if most:
            entries = score.topk(most, 1).indices
            part = node_generators(relaxation, relaxation.graph.nodes[i].inputs[0], entries, strips)
            sites.append(_site(relaxation, i, entries, score.gather(1, entries) > 0, part[0].centre))
            parts.append(part)
    frame = make_frame({s.node: s.entries for s in sites}, stacked(parts))
    return make_block(tuple(sites), frame, caution)


def _within(relaxation: Relaxation, frame: Frame | None, caution: float) -> Block | None:
    """The block on the frame of a larger box, with hulls over what is left of the intervals."""
    if frame is None:
        return None
    sites = []
    centres = frame.centre.split([e.shape[1] for e in frame.entries.values()], 1)
    for (i, entries), centre in zip(frame.entries.items(), centres, strict=True):
        present = gaps(relaxation, i).gather(1, entries) > 0
        sites.append(_site(relaxation, i, entries, present, centre))
    return make_block(tuple(sites), frame, caution)


def gaps(relaxation: Relaxation, position: int) -> Tensor:
    """(B, S): how far the function may be from its chord at most; 0 where it has next to no curvature."""
    node = relaxation.graph.nodes[position]
    assert isinstance(node.op, Elementwise)
    x = relaxation.intervals[node.inputs[0]]
    slope, width = node.op.derivative(1, x), x.width
    ends = [node.op.forward(z) for z in (x.lower, x.upper)]
    chord = ((ends[1] - ends[0]) / width.clamp(min=1e-30)).clamp(slope.lower, slope.upper)
    turn = slope.upper - slope.lower
    gap = width * (chord - slope.lower) * (slope.upper - chord) / turn.clamp(min=1e-30)
    wanted = (turn > TURN) & (turn < torch.inf) & (width < torch.inf)
    return torch.where(wanted, gap.nan_to_num(0.0, 0.0, 0.0), 0.0).flatten(1)


def _site(relaxation: Relaxation, position: int, entries: Tensor, present: Tensor, centre: Tensor) -> Site:
    node = relaxation.graph.nodes[position]
    op, shape = node.op, relaxation.intervals[position].shape
    assert isinstance(op, Elementwise)

    def picked(x: Interval) -> Interval:
        return Interval(x.lower.flatten(1).gather(1, entries), x.upper.flatten(1).gather(1, entries))

    x, image = picked(relaxation.intervals[node.inputs[0]]), picked(relaxation.intervals[position])
    hulls: Hulls
    if isinstance(op, Hinge):
        slopes = [
            torch.as_tensor(s, dtype=torch.float64).expand(shape).flatten(1).gather(1, entries) for s in op.slopes
        ]
        hulls = hinge_hulls((slopes[0], slopes[1]), x, centre, present)
    else:
        hulls = table_hulls(op, x, centre, present)
    return Site(position, entries, hulls, Interval(image.lower.unsqueeze(1), image.upper.unsqueeze(1)))
