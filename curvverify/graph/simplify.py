"""Graph-to-graph passes that keep the function and shorten the graph.

One pass walks the nodes in order and asks, for each, the rule of its operator: what to put in the node's place, given
the nodes already kept.  Rules merge neighbours that move entries, fold constants into the Dense or Convolution before
them, and flatten sums; matrices are never multiplied with each other.  Folded constants are rounded once or twice in
float64 (batch normalisation, like its own division and square root); all else is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from curvverify.graph.building import signature
from curvverify.graph.layers import Graph, Node
from curvverify.ops.base import Op
from curvverify.ops.linear import (
    Concatenate,
    Convolution,
    Dense,
    Diagonal,
    Gather,
    Permute,
    Reduce,
    Reshape,
    Sum,
)

ROUNDS = 20
"""Passes over the graph at most; each only shortens it, so that few are needed."""


@dataclass
class Pass:
    """One walk: the nodes kept so far, and how many consumers each had in the old graph."""

    kept: list[Node] = field(default_factory=list)
    fanout: list[int] = field(default_factory=list)
    known: dict[tuple[object, ...], int] = field(default_factory=dict)

    def add(self, node: Node, fanout: int) -> int:
        """Keep a node, unless an identical one is there; its position."""
        key = (node.inputs, signature(node.op))
        if key not in self.known:
            self.known[key] = len(self.kept)
            self.kept.append(node)
            self.fanout.append(0)
        place = self.known[key]
        self.fanout[place] += fanout
        return place

    def producer(self, node: Node, slot: int = 0) -> Node:
        return self.kept[node.inputs[slot]]

    def only_consumer(self, place: int) -> bool:
        return self.fanout[place] == 1

    def between(self, op: Op, inputs: tuple[int, ...], like: Node, shape: Sequence[int]) -> int:
        """A further node of the same source."""
        return self.add(Node("", op, inputs, tuple(shape), like.source), 1)


Fusion = Callable[[Pass, Node], "Node | int | None"]
"""A replacement for the node, the position of an equal one, or None to keep it."""


def simplified(nodes: Sequence[Node]) -> list[Node]:
    """An equivalent graph; the last node is the output before and after."""
    current = without_dead(nodes, len(nodes) - 1)
    for _ in range(ROUNDS):
        shorter = _walk(current)
        if len(shorter) == len(current) and all(a.op is b.op for a, b in zip(shorter, current, strict=True)):
            break
        current = shorter
    return current


def _walk(nodes: Sequence[Node]) -> list[Node]:
    uses = [0] * len(nodes)
    for node in nodes:
        for i in node.inputs:
            uses[i] += 1
    uses[-1] += 1
    state, place = Pass(), []
    for node, fanout in zip(nodes, uses, strict=True):
        new = replace(node, inputs=tuple(place[i] for i in node.inputs), values=())
        rule = FUSIONS.get(type(node.op))
        found = None if rule is None else rule(state, new)
        if isinstance(found, int):
            state.fanout[found] += fanout - 1
            place.append(found)
        else:
            place.append(state.add(found or new, fanout))
    kept = relabelled(state.kept, nodes, place)
    if place[-1] == 0:  # the output is the input itself
        return [kept[0], Node("", Reshape(kept[0].shape, kept[0].shape), (0,), kept[0].shape, "output")]
    return without_dead(kept, place[-1])


def relabelled(kept: Sequence[Node], nodes: Sequence[Node], place: Sequence[int]) -> list[Node]:
    """The kept nodes with the names of the values they stand for: node i of the old graph is the kept one place[i].

    Sound because: a rule puts a node of the same entries in a node's place; what it folds away loses its name.
    """
    names: dict[int, tuple[str, ...]] = {}
    for node, at in zip(nodes, place, strict=True):
        if node.values and kept[at].size == node.size:
            names[at] = names.get(at, ()) + node.values
    return [replace(node, values=names.get(i, ())) for i, node in enumerate(kept)]


# -- moving entries about ------------------------------------------------------------------------------------------


def _identity(shape: Sequence[int]) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(tuple(shape))


def _reshape(state: Pass, node: Node) -> Node | int | None:
    op, before = node.op, state.producer(node)
    assert isinstance(op, Reshape)
    if op.shape_in == op.shape_out:
        return node.inputs[0]
    match before.op:
        case Reshape():
            return replace(node, op=Reshape(before.op.shape_in, op.shape_out), inputs=before.inputs)
        case Gather() if state.only_consumer(node.inputs[0]):
            index = before.op.index.reshape(op.shape_out)
            return replace(node, op=Gather(index, before.op.shape_in), inputs=before.inputs)
        case Dense() if isinstance(state.producer(before).op, Reshape):
            inner = state.producer(before)
            lead = state.producer(inner).shape
            if lead and lead[-1] == inner.shape[-1] and state.only_consumer(node.inputs[0]):
                shape = (*lead[:-1], before.shape[-1])
                place = state.between(before.op, inner.inputs, before, shape)
                return replace(node, op=Reshape(shape, node.shape), inputs=(place,))
        case Diagonal() if isinstance(state.producer(before).op, Reshape):
            return _moved_down(state, node, before)
    return None


def _moved_down(state: Pass, node: Node, scaling: Node) -> Node | None:
    """Two moves of entries with a scaling between them: the scaling last, so that the moves become one."""
    assert isinstance(scaling.op, Diagonal)
    if not state.only_consumer(node.inputs[0]):
        return None
    place = state.between(node.op, scaling.inputs, node, node.shape)

    def forward(constant: Tensor | None) -> Tensor | None:
        if constant is None or constant.numel() == 1:
            return constant
        return node.op.forward(constant.expand(scaling.shape).unsqueeze(0)).squeeze(0)

    moved = Diagonal(forward(scaling.op.factor), forward(scaling.op.shift), forward(scaling.op.size))
    return replace(scaling, op=moved, inputs=(place,), shape=node.shape)


def _permute(state: Pass, node: Node) -> Node | int | None:
    op, before = node.op, state.producer(node)
    assert isinstance(op, Permute)
    if op.dims == tuple(range(len(op.dims))):
        return node.inputs[0]
    long = [d for d in op.dims if before.shape[d] != 1]
    if long == sorted(long):
        return replace(node, op=Reshape(before.shape, node.shape))
    match before.op:
        case Permute():
            dims = tuple(before.op.dims[d] for d in op.dims)
            return replace(node, op=Permute(dims), inputs=before.inputs)
        case Gather() if state.only_consumer(node.inputs[0]):
            index = before.op.index.permute(op.dims).contiguous()
            return replace(node, op=Gather(index, before.op.shape_in), inputs=before.inputs)
        case Diagonal() if isinstance(state.producer(before).op, Permute):
            return _moved_down(state, node, before)
    return None


def _gather(state: Pass, node: Node) -> Node | int | None:
    op, before = node.op, state.producer(node)
    assert isinstance(op, Gather)
    if op.index.numel() == before.size and torch.equal(op.index.flatten(), torch.arange(before.size)):
        return replace(node, op=Reshape(before.shape, node.shape))
    match before.op:
        case Reshape():
            return replace(node, op=Gather(op.index, before.op.shape_in), inputs=before.inputs)
        case Gather():
            inner, shape = before.op.index, before.op.shape_in
        case Permute():
            shape = state.producer(before).shape
            inner = _identity(shape).permute(before.op.dims)
        case _:
            return None
    chosen = inner.flatten()[op.index.clamp(min=0)]
    return replace(node, op=Gather(torch.where(op.index < 0, -1, chosen), shape), inputs=before.inputs)


def _concatenate(state: Pass, node: Node) -> Node | int | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _reduce(state: Pass, node: Node) -> Node | int | None:
    op = node.op
    assert isinstance(op, Reduce)
    return node.inputs[0] if op.scale == 1.0 and all(op.shape_in[a] == 1 for a in op.axes) else None


# -- constants -----------------------------------------------------------------------------------------------------


def _diagonal(state: Pass, node: Node) -> Node | int | None:
    op, before = node.op, state.producer(node)
    assert isinstance(op, Diagonal)
    if op.factor is None and op.shift is None:
        return node.inputs[0]
    if not state.only_consumer(node.inputs[0]):
        return None
    match before.op:
        case Diagonal():
            return _merged(node, op, before)
        case Dense() | Convolution():
            folded = _into(before, op)
            return None if folded is None else replace(before, op=folded)
        case Reshape() | Permute():
            return _moved_up(state, node, op, before)
    return None


def _merged(node: Node, op: Diagonal, before: Node) -> Node | None:
    """f2 (f1 x + s1) + s2, where f2 s1 + s2 is exact, for its rounding error would be relative to the larger."""
    first = before.op
    assert isinstance(first, Diagonal)
    scaled = first.shift if op.factor is None or first.shift is None else first.shift * op.factor
    shift = op.shift if scaled is None else scaled
    if scaled is not None and op.shift is not None:
        shift = scaled + op.shift
        if not bool(((shift - scaled == op.shift) & (shift - op.shift == scaled)).all()):
            return None
    factor = op.factor if first.factor is None else first.factor if op.factor is None else first.factor * op.factor
    size = _sizes(first.constant_size, op.factor, op.constant_size)
    return replace(node, op=Diagonal(factor, shift, size), inputs=before.inputs)


def _sizes(first: Tensor | None, factor: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The absolute terms behind factor * c1 + c2, from those behind c1 and c2."""
    scaled = first if first is None or factor is None else first * factor.abs()
    return scaled if second is None else second if scaled is None else scaled + second


def _moved_up(state: Pass, node: Node, op: Diagonal, before: Node) -> Node | None:
    """The scaling before the move of entries, where a Dense or a Convolution can take it in."""
    at = before.inputs[0]
    source = state.kept[at]
    if not isinstance(source.op, Dense | Convolution) or not state.only_consumer(at):
        return None

    def back(constant: Tensor | None) -> Tensor | None:
        if constant is None:
            return None
        assert isinstance(before.op, Reshape | Permute)
        return before.op.adjoint(constant.expand(node.shape).unsqueeze(0))[0].squeeze(0)

    folded = _into(source, Diagonal(back(op.factor), back(op.shift), back(op.size)))
    if folded is None:
        return None
    place = state.between(folded, source.inputs, source, source.shape)
    return replace(before, inputs=(place,))


def _into(node: Node, scaling: Diagonal) -> Dense | Convolution | None:
    """A Dense or a Convolution followed by a scaling and a shift that are the same for every row or position."""
    op = node.op
    assert isinstance(op, Dense | Convolution)
    after = 0 if isinstance(op, Dense) else len(op.stride)
    factor, shift = (_per_channel(c, node.shape, after) for c in (scaling.factor, scaling.shift))
    if (factor is None) != (scaling.factor is None) or (shift is None) != (scaling.shift is None):
        return None
    bias = op.bias if factor is None or op.bias is None else op.bias * factor
    bias = shift if bias is None else bias if shift is None else bias + shift
    before = op.constant_size if isinstance(op, Dense) else op.channel_size
    size = _sizes(before, factor, _largest_per_channel(scaling.constant_size, node.shape, after))
    if factor is None:
        return replace(op, bias=bias, size=size)
    return replace(op, weight=_scaled(op, factor), bias=bias, size=size)


def _scaled(op: Dense | Convolution, factor: Tensor) -> Tensor:
    """The weight whose output channels are scaled."""
    if isinstance(op, Convolution) and op.transposed:
        grouped = op.weight.reshape(op.groups, -1, *op.weight.shape[1:])
        return (grouped * factor.reshape(op.groups, 1, -1, *(1 for _ in op.stride))).reshape(op.weight.shape)
    return op.weight * factor.reshape(-1, *(1 for _ in op.weight.shape[1:]))


def _largest_per_channel(size: Tensor | None, shape: Sequence[int], after: int) -> Tensor | None:
    """A bound per entry as one per channel."""
    if size is None:
        return None
    axis = len(shape) - after - 1
    return size.expand(tuple(shape)).movedim(axis, 0).reshape(shape[axis], -1).amax(1)


def _per_channel(constant: Tensor | None, shape: Sequence[int], after: int) -> Tensor | None:
    """A constant as one number per channel, the axis with `after` axes behind it; None where it is more than that."""
    if constant is None:
        return None
    axis = len(shape) - after - 1
    lined = constant.expand(tuple(shape)).movedim(axis, 0).reshape(shape[axis], -1)
    return lined[:, 0].contiguous() if bool((lined == lined[:, :1]).all()) else None


# -- sums ----------------------------------------------------------------------------------------------------------


def _sum(state: Pass, node: Node) -> Node | int | None:
    """Nested sums, scaled terms and repeated terms in one sum."""
    op = node.op
    assert isinstance(op, Sum)
    terms: dict[int, float] = {}
    changed = False
    for coefficient, place in zip(op.coefficients, node.inputs, strict=True):
        before = state.kept[place]
        scale = _scalar(before.op)
        if isinstance(before.op, Sum) and (state.only_consumer(place) or len(before.inputs) == 1):
            parts = [(coefficient * c, i) for c, i in zip(before.op.coefficients, before.inputs, strict=True)]
        elif scale is not None:
            parts = [(coefficient * scale, before.inputs[0])]
        else:
            parts = [(coefficient, place)]
        changed |= parts != [(coefficient, place)]
        for c, i in parts:
            changed |= i in terms
            terms[i] = terms.get(i, 0.0) + c
    kept = {i: c for i, c in terms.items() if c != 0.0} or dict([next(iter(terms.items()))])
    if len(kept) == 1:
        (place, coefficient) = next(iter(kept.items()))
        factor = torch.tensor(coefficient, dtype=torch.float64)
        return place if coefficient == 1.0 else replace(node, op=Diagonal(factor), inputs=(place,))
    if not changed and len(kept) == len(node.inputs):
        return None
    return replace(node, op=Sum(tuple(kept.values())), inputs=tuple(kept))


def _scalar(op: Op) -> float | None:
    """The number that a scaling multiplies by, if it is one number and nothing else."""
    if isinstance(op, Diagonal) and op.shift is None and op.factor is not None and op.factor.numel() == 1:
        return op.factor.item()
    return None


FUSIONS: dict[type[Any], Fusion] = {
    Concatenate: _concatenate,
    Diagonal: _diagonal,
    Gather: _gather,
    Permute: _permute,
    Reduce: _reduce,
    Reshape: _reshape,
    Sum: _sum,
}


# -- housekeeping --------------------------------------------------------------------------------------------------


def without_dead(nodes: Sequence[Node], output: int) -> list[Node]:
    """Only what the output depends on, and the input."""
    needed = {0, output}
    for place in range(output, -1, -1):
        if place in needed:
            needed.update(nodes[place].inputs)
    order = sorted(needed)
    new = {old: place for place, old in enumerate(order)}
    return [replace(nodes[old], inputs=tuple(new[i] for i in nodes[old].inputs)) for old in order]


def named(nodes: Sequence[Node]) -> Graph:
    """The finished graph: every node is named after its source, with /1, /2 for the further nodes of one source."""
    taken: set[str] = set()
    found: list[Node] = []
    for node in nodes:
        base = node.name or node.source or node.op.name
        name, count = base, 0
        while name in taken:
            count += 1
            name = f"{base}/{count}"
        taken.add(name)
        found.append(replace(node, name=name))
    return Graph(tuple(found))


def rewritten(graph: Graph, rule: Callable[[list[Node], Node], list[Node] | None]) -> Graph:
    """The graph with, in place of each node, what the rule makes of it; the graph itself where it makes nothing.

    The rule is told the nodes made so far, which the node's inputs are positions of, and gives further ones, the last
    of them equal to the node; or None to keep it.
    """
    made: list[Node] = []
    place: list[int] = []
    changed = False
    for node in graph:
        moved = replace(node, inputs=tuple(place[i] for i in node.inputs))
        parts = rule(made, moved)
        changed |= parts is not None
        made += parts or [moved]
        place.append(len(made) - 1)
    return named(without_dead(made, place[-1])) if changed else graph


def chain(nodes: Sequence[Node], place: int, *kinds: type[Op]) -> list[Node] | None:
    """The node and those behind it, if their operators are of these kinds."""
    found = []
    for kind in kinds:
        if type(nodes[place].op) is not kind:
            return None
        found.append(nodes[place])
        if nodes[place].inputs:
            place = nodes[place].inputs[0]
    return found
