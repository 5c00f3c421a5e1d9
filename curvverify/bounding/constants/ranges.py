"""Ranges of all nodes over a region: what slopes and second derivatives are taken over."""

from __future__ import annotations

from collections.abc import Mapping

from curvverify.bounding.interval import node_image
from curvverify.bounding.linear import Effort, linear_bounds
from curvverify.bounding.region import Region
from curvverify.graph.layers import Graph
from curvverify.types import Interval


def ranges_over(graph: Graph, region: Region, effort: Effort, known: Mapping[int, Interval]) -> tuple[Interval, ...]:
    """Bounds (*S) on every node's value over the region: by linear bounds where it is bounded, else by intervals.

    `known` bounds (*S), which hold everywhere, are intersected.  Of a ball its box is used: an enclosure.
    """
    box = Interval(region.box.lower.unsqueeze(0), region.box.upper.unsqueeze(0))
    batched = {i: Interval(x.lower.unsqueeze(0), x.upper.unsqueeze(0)) for i, x in known.items()}
    if region.bounded:
        found = linear_bounds(graph, box, effort, batched).intervals
    else:
        found = [box]
        for i, node in enumerate(graph.nodes[1:], 1):
            image = node_image(node, [found[j] for j in node.inputs])
            found.append(image.intersect(batched[i]) if i in batched else image)
    return tuple(x[0] for x in found)
