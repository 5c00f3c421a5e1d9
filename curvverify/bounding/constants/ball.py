"""Ranges of all nodes over an l_2 ball, from Lipschitz constants of their entries."""

from __future__ import annotations

from torch import Tensor

from curvverify.bounding.constants.analysis import analyse
from curvverify.bounding.constants.setting import Setting, Structure, slopes_over
from curvverify.bounding.constants.values import scaled
from curvverify.bounding.interval import interval_bounds, node_image
from curvverify.bounding.relaxation import consistent
from curvverify.graph.layers import Graph
from curvverify.numerics.rounding import outward
from curvverify.types import Ball, Interval

PASSES, WORTH = 4, 0.9
"""Most passes, and the share of the width before that one must leave at most to be followed by another."""


def ball_ranges(structure: Structure, ball: Ball, ranges: tuple[Interval, ...], free: Tensor) -> tuple[Interval, ...]:
    """The ranges (*S) over the ball's box, tightened to the ball.

    Sound because: the ball is convex, so that |v_i(y) - v_i(x)| <= l_i ||y - x|| with l_i from any ranges that hold on
    it; narrower ranges then give smaller l_i.
    """
    graph = structure.graph
    centre = ball.centre.unsqueeze(0)
    at = [v[0] for v in interval_bounds(graph, Interval(centre, centre))]
    for _ in range(PASSES):
        analysis = analyse(Setting(structure, ranges, slopes_over(graph, ranges), free), second_order=False)
        found: list[Interval] = [ranges[0]]
        for i, node in enumerate(graph.nodes[1:], 1):
            reach = scaled(analysis.nodes[i].entries.lipschitz, ball.radius)
            near = outward(at[i].lower - reach, at[i].upper + reach)
            image = node_image(node, [Interval(found[j].lower[None], found[j].upper[None]) for j in node.inputs])[0]
            found.append(consistent(ranges[i].intersect(image).intersect(near), ranges[i]))
        before, after = _spread(graph, ranges), _spread(graph, tuple(found))
        ranges = tuple(found)
        if not after < WORTH * before:
            break
    return ranges


def _spread(graph: Graph, ranges: tuple[Interval, ...]) -> float:
    """Sum of the widths of the inputs of nonlinear nodes, at most 10 each: beyond, little depends on them."""
    return sum(float(ranges[i].width.clamp(max=10.0).nan_to_num(nan=10.0).sum()) for i in graph.bounded)
