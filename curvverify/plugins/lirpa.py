"""auto_LiRPA and alpha-beta-CROWN: our bounds for a user's BoundedModule, and its bounds for us.

Only what has been in every version since 0.3 is used of a BoundedModule: it is called on inputs, and its nodes, in
`_modules`, have a `name`, after the call a `forward_value`, and after `compute_bounds` a `lower` and an `upper`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from curvverify.errors import UsageError
from curvverify.graph import LoadedModel
from curvverify.plugins.exchange import outward
from curvverify.types import Interval
from curvverify.verification.given import Given, given
from curvverify.verification.node_bounds import BoundsReport

SAMPLES = 12
"""Inputs on which nodes are told apart."""

AGREEMENT = 1e-4
"""Largest difference of float32 values from ours for which two nodes count as one, relative to the largest value."""


def interm_bounds(bounded: Any, loaded: LoadedModel, report: BoundsReport) -> dict[str, tuple[Tensor, Tensor]]:
    """Our bounds as `compute_bounds(..., interm_bounds=...)` takes them (`intermediate_layer_bounds` in 0.3 and 0.4).

    Node name -> (lower, upper), (1, *shape) in float32 rounded outward, for every node of the BoundedModule whose value
    is that of a node of ours: the same at SAMPLES random inputs, and at no two nodes of ours that differ.
    Sound because: the bounds are ours; that two nodes are one is tested at samples, not proved.
    UsageError where no node is found.
    """
    found = {}
    for name, place, shape in _matched(bounded, loaded, report):
        node = report.nodes[place]
        both = outward(Interval(node.lower, node.upper)).to(torch.float32)
        found[name] = (both.lower.reshape(shape), both.upper.reshape(shape))
    return found


def bounds_of(bounded: Any, loaded: LoadedModel, report: BoundsReport, source: str = "a BoundedModule") -> Given:
    """The bounds that a BoundedModule has computed, as ours may rest on them: for the box of the report.

    They are taken at their word: auto_LiRPA computes in float32 without rounding outward.
    """
    nodes = dict(_nodes(bounded))
    values: dict[str, Interval] = {}
    for name, place, _ in _matched(bounded, loaded, report):
        lower, upper = getattr(nodes[name], "lower", None), getattr(nodes[name], "upper", None)
        if (
            isinstance(lower, Tensor)
            and isinstance(upper, Tensor)
            and lower.numel() == report.nodes[place].lower.numel()
        ):
            node = report.nodes[place]
            key = (node.values or (node.name,))[0]
            values[key] = Interval(lower.detach().cpu().double(), upper.detach().cpu().double())
    if not values:
        raise UsageError(f"{source} has no bounds yet: call its compute_bounds first")
    first = report.nodes[0]
    return given(loaded, Interval(first.lower.flatten(), first.upper.flatten()), values, source)


def _nodes(bounded: Any) -> Iterator[tuple[str, Any]]:
    for name, node in bounded._modules.items():
        yield str(getattr(node, "name", name)), node


def _matched(bounded: Any, loaded: LoadedModel, report: BoundsReport) -> list[tuple[str, int, tuple[int, ...]]]:
    """Name of a node of theirs, position of ours, and its shape there with a batch of one."""
    box = Interval(report.nodes[0].lower, report.nodes[0].upper)
    generator = torch.Generator().manual_seed(5)
    shape = (SAMPLES, *loaded.graph.input_shape)
    t = torch.rand(shape, generator=generator, dtype=torch.float64)
    x = box.lower + t * box.width
    x[SAMPLES // 2 :] = torch.randn(shape, generator=generator, dtype=torch.float64)[SAMPLES // 2 :]
    x = x.to(torch.float32)
    with torch.no_grad():
        ours = [value.flatten(1) for value in loaded.graph.values(x.double())]
        theirs: list[dict[str, Tensor]] = []
        for one in x:
            port = loaded.inputs[0].shape
            bounded(one.reshape(port))
            theirs.append(
                {
                    name: value.detach().cpu().double()
                    for name, node in _nodes(bounded)
                    if isinstance(value := getattr(node, "forward_value", None), Tensor)
                }
            )
    found = []
    for name in theirs[0]:
        if any(name not in there for there in theirs):
            continue
        value = torch.stack([there[name].flatten() for there in theirs])
        places = [i for i, own in enumerate(ours) if own.shape == value.shape and _same(own, value)]
        if places and all(_same(ours[places[0]], ours[i], exact=True) for i in places):
            found.append((name, places[0], tuple(theirs[0][name].shape)))
    if not found:
        raise UsageError(
            f"no node of the BoundedModule takes the values of one of {loaded.name}: is it the same network?"
        )
    return found


def _same(ours: Tensor, theirs: Tensor, exact: bool = False) -> bool:
    largest = float(ours.abs().max())
    return bool((ours - theirs).abs().max() <= (0.0 if exact else AGREEMENT * max(largest, 1e-6)))
