"""Bounds that somebody else answers for: they tighten ours, and what is proved with them rests on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.interval import interval_bounds
from curvverify.errors import UnreadableError, UsageError
from curvverify.graph import LoadedModel
from curvverify.types import Interval

SAMPLES = 64
"""Inputs at which the network's own values are held against given bounds."""

ROUNDING = 1e-9
"""Relative to 1 + |value|: what the float64 evaluation of a sample may be off."""


@dataclass(frozen=True, eq=False)
class Given:
    """lower <= value <= upper on nodes of the layer graph by position, (1, *S) each, and who says so."""

    known: Mapping[int, Interval]
    source: str

    @property
    def note(self) -> str:
        return f"rests on given bounds from {self.source}"


def given(loaded: LoadedModel, box: Interval, values: Mapping[str, Interval], source: str) -> Given:
    """The bounds on named values (flat or in shape) as bounds on nodes, for inputs in the box (n).

    Values without a node of their own are left out: UsageError where that leaves none.  UnreadableError where bounds
    contradict interval bounds, or the value that the network takes at some input of the box.
    """
    graph = loaded.graph
    places = {name: i for i, node in enumerate(graph) for name in (node.values or (node.name,))}
    if not places.keys() & values.keys():
        known = ", ".join(sorted(places)[:8])
        raise UsageError(f"{source}: none of its values is one of {loaded.name}; values there: {known}, ...")
    found: dict[int, Interval] = {}
    for name, bounds in values.items():
        if name not in places:
            continue
        node = graph.nodes[places[name]]
        if bounds.lower.numel() != node.size:
            raise UnreadableError(f"{source}: value {name!r} has {bounds.lower.numel()} entries, not {node.size}")
        shaped = Interval(*(t.to(torch.float64).reshape(1, *node.shape) for t in (bounds.lower, bounds.upper)))
        earlier = found.get(places[name])
        found[places[name]] = shaped if earlier is None else shaped.intersect(earlier)
    inputs = Interval(*(t.reshape(1, *graph.input_shape) for t in (box.lower, box.upper)))
    ours = interval_bounds(graph, inputs)
    values_there = _sampled(loaded, inputs)
    for i, theirs in found.items():
        name = next(n for n in values if places.get(n) == i)
        both = theirs.intersect(ours[i])
        _refuse(~(both.lower <= both.upper), f"{source}: value {name!r}", theirs, ours[i], "our bounds")
        seen = Interval(values_there[i].amin(0, keepdim=True), values_there[i].amax(0, keepdim=True))
        slack = ROUNDING * (1.0 + seen.magnitude)
        outside = (seen.lower < theirs.lower - slack) | (seen.upper > theirs.upper + slack)
        _refuse(outside, f"{source}: value {name!r}", theirs, seen, "values at inputs of the box")
    return Given(found, source)


def _sampled(loaded: LoadedModel, box: Interval) -> list[Tensor]:
    """Every node's values at the centre of the box, at corners and in between."""
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(SAMPLES, *box.lower.shape[1:], generator=generator, dtype=torch.float64)
    t[0], t[1 : SAMPLES // 2] = 0.5, t[1 : SAMPLES // 2].round()
    with torch.no_grad():
        return loaded.graph.values((box.lower + t * box.width).maximum(box.lower).minimum(box.upper))


def _refuse(wrong: Tensor, what: str, theirs: Interval, ours: Interval, named: str) -> None:
    if not bool(wrong.any()):
        return
    k = int(wrong.flatten().to(torch.int8).argmax())
    ends = [f"[{x.lower.flatten()[k].item():.9g}, {x.upper.flatten()[k].item():.9g}]" for x in (theirs, ours)]
    raise UnreadableError(f"{what}, entry {k}: the given bounds {ends[0]} contradict {named}, {ends[1]}")
