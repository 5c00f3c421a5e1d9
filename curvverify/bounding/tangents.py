"""Tangents of joint operators, from their inputs as centres with generators; and bounds from the same generators."""

from __future__ import annotations

import torch

from curvverify.bounding.coupling.generators import Strip, node_generators, stacked
from curvverify.bounding.relaxation import Relaxation
from curvverify.numerics.rounding import nan_is_unbounded
from curvverify.ops import joint
from curvverify.ops.joint import Form, Joint, Tangent
from curvverify.types import Interval


def forms(relaxation: Relaxation, nodes: tuple[int, ...], strips: dict[int, Strip]) -> list[Form]:
    """Every entry of the nodes as a centre plus generators, over a relaxation of one box."""
    parts = []
    for i in nodes:
        entries = torch.arange(relaxation.graph.nodes[i].size).unsqueeze(0)
        parts.append(node_generators(relaxation, i, entries, strips))
    whole = stacked(parts).without_empty()
    sizes = [relaxation.graph.nodes[i].size for i in nodes]
    found = []
    for i, *tensors in zip(
        nodes, *(t.split(sizes, 1) for t in (whole.centre, whole.error, whole.columns)), strict=True
    ):
        shape = relaxation.intervals[i].shape
        centre, error, columns = (t.reshape(*shape, *t.shape[2:]) for t in tensors)
        found.append(Form(relaxation.intervals[i], centre, error, columns))
    return found


def tighten_by_forms(relaxation: Relaxation, nodes: tuple[int, ...]) -> list[list[Form]]:
    """Intersect the nodes' bounds with centre +- radius of their forms; the forms, box by box."""
    found = []
    for b in range(relaxation.box.lower.shape[0]):
        one = relaxation.select(torch.tensor([b]), remember=False)
        found.append(forms(one, nodes, {}))
    for k, i in enumerate(nodes):
        centre, radius = (torch.cat([getattr(f[k], name) for f in found]) for name in ("centre", "radius"))
        low, high = centre - radius, centre + radius
        slack = 2.0**-51 * (centre.abs() + radius)
        relaxation.tighten(i, nan_is_unbounded(Interval(low - slack, high + slack)))
    return found


def joint_tangent(relaxation: Relaxation, position: int) -> Tangent:
    """The tangent of a joint operator over every box; its inputs' bounds are tightened on the way."""
    node = relaxation.graph.nodes[position]
    assert isinstance(node.op, Joint)
    return joint.stacked([node.op.tangent(*inputs) for inputs in tighten_by_forms(relaxation, node.inputs)])
