"""Which entries of a node need better bounds than intervals give."""

from __future__ import annotations

import torch
from torch import Tensor

from curvverify.bounding.relaxation import Relaxation
from curvverify.graph.layers import Graph
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.joint import Joint
from curvverify.ops.linear import Convolution, Dense, Diagonal, Permute, Reshape

PRODUCT_GAP = 1e-6
"""Products whose planes are this close to each other (relative) need no better bounds on their factors."""


def loose_entries(relaxation: Relaxation, position: int) -> Tensor:
    """Mask (B, *S) of the entries whose bounds some elementwise function or product depends on."""
    x = relaxation.intervals[position]
    mask = torch.zeros_like(x.lower, dtype=torch.bool)
    for consumer in relaxation.graph.nodes:
        if position in consumer.inputs and consumer.nonlinear and not isinstance(consumer.op, Joint):
            if isinstance(consumer.op, Elementwise):
                mask |= consumer.op.curved(x, relaxation.saturation)
            else:
                mask |= _worth_bounding(relaxation, position, consumer.inputs)
    return mask


def _worth_bounding(relaxation: Relaxation, position: int, factors: tuple[int, ...]) -> Tensor:
    """Mask (B, *S) of the entries whose product with the other factor, if that has bounds yet, is far from bilinear."""
    x = relaxation.intervals[position]
    others = [relaxation.intervals[i] for i in factors if i != position and i < len(relaxation.intervals)]
    gap, size = (x.width, x.magnitude) if not others else (x.width * others[0].width, x.magnitude * others[0].magnitude)
    return ~(gap <= PRODUCT_GAP * (1.0 + size))


def interval_is_exact(graph: Graph, position: int) -> bool:
    """Whether the node is one product with the input's own entries, so that its interval bounds are attained."""
    seen_product = False
    while position:
        node = graph.nodes[position]
        if len(node.inputs) != 1 or not isinstance(node.op, Linear):
            return False
        if not isinstance(node.op, Reshape | Permute | Diagonal):
            if seen_product or not isinstance(node.op, Dense | Convolution):
                return False
            seen_product = True
        position = node.inputs[0]
    return True
