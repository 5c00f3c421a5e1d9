"""Interval bounds: every node's range, one pass forward."""

from __future__ import annotations

from torch import Tensor

from curvverify.graph.layers import Graph, Node
from curvverify.numerics.rounding import TINY, gamma, nan_is_unbounded, round_up
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.product import Product
from curvverify.types import Interval


def linear_image(op: Linear, inputs: list[Interval]) -> tuple[Interval, Tensor]:
    """Bounds on sum_i L_i x_i + c over the boxes, and its magnitude sum_i |L_i| |x_i| + |c|, both (B, *S).

    Sound because: with centre m and radius r the range is L m + c +- |L| r; each of the two evaluated sums errs by at
    most gamma_n times the magnitude, whatever the order of summation.
    """
    centres = [0.5 * (x.lower + x.upper) for x in inputs]
    radii = [
        round_up(round_up(0.5 * (x.upper - x.lower)) + 2.0**-52 * c.abs()) for x, c in zip(inputs, centres, strict=True)
    ]
    magnitude = op.absolute(*(c.abs() + r for c, r in zip(centres, radii, strict=True)))
    centre = op.forward(*centres)
    radius = op.absolute(*radii, bias=False) + (2.0 * gamma(op.terms + 8)) * magnitude + TINY
    return nan_is_unbounded(Interval(centre - radius, centre + radius)), magnitude


def node_image(node: Node, inputs: list[Interval]) -> tuple[Interval, Tensor]:
    """Bounds on one node's value from bounds on its inputs, and an upper bound on the terms it is summed from."""
    match node.op:
        case Linear():
            return linear_image(node.op, inputs)
        case Elementwise() | Product():
            image = nan_is_unbounded(node.op.interval(*inputs))
            return image, image.magnitude
        case _:
            raise TypeError(f"node {node.name!r}: no interval rule for {node.op.name}")


def interval_bounds(graph: Graph, box: Interval) -> list[Interval]:
    """Bounds on every node's value over each of B input boxes, (B, *S) per node, rounded outward in float64."""
    found = [box]
    for node in graph.nodes[1:]:
        found.append(node_image(node, [found[i] for i in node.inputs])[0])
    return found
