"""Smooth blocks whose parts are not: softmax and its kin, and normalisation by mean and variance, found in a graph.

Operator by operator exp, log and the reciprocal have infinite constants; the blocks that they form have small ones.
Every node is described by what its entries are, in terms of entries of one earlier node x: "exp(x_p + offset)", "1 /
sum over a row", ...  Each operator turns descriptions into descriptions by index arithmetic alone, and what fits no
description has none: a block is reported only where the graph computes exactly that function.

The constants of one group of entries are in `block_constants`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations

import torch
from torch import Tensor

from curvverify.bounding.constants.block_constants import (
    Constants,
    log_softmax_constants,
    logsumexp_constants,
    normalisation_constants,
    softmax_constants,
)
from curvverify.bounding.constants.block_values import Groups, Moved, Stage, Table, Value, same
from curvverify.graph.layers import Graph, Node
from curvverify.ops.elementwise.power import Log, Power, Reciprocal, Sqrt
from curvverify.ops.elementwise.softplus import Exp
from curvverify.ops.linear import Diagonal, Gather, Permute, Reduce, Reshape, Sum
from curvverify.ops.product import Product
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a graph, from the value of one node to that of a later one, with global constants, rounded up.

    `lipschitz`, `curvature`, `third_order`: Lipschitz constants, l2 to l2, of the map, its Jacobian and its second
    derivative.  `row_*`: the same for any one entry of the output: its gradient, Hessian and third derivative.
    """

    kind: str
    input: int
    output: int
    lipschitz: float
    curvature: float
    third_order: float
    row_lipschitz: float
    row_curvature: float
    row_third_order: float
    range: Interval | None
    """Bounds (*S) on the output's value, whatever the input; None where there are none."""


class Finder:
    """Describes the nodes of a graph one after the other."""

    def __init__(self, graph: Graph):
        self.nodes = graph.nodes
        self.values: list[Value | None] = []
        self._moved: dict[int, Moved] = {}

    def run(self) -> tuple[Block, ...]:
        found: list[Block] = []
        for place, node in enumerate(self.nodes):
            rule = RULES.get(type(node.op))
            value = None if rule is None else rule(self, node)
            self.values.append(value)
            if value is not None and not isinstance(node.op, MOVES) and (block := self.block(place, value)):
                found.append(block)
        return tuple(found)

    def value(self, place: int, *stages: Stage) -> Value | None:
        """A node's description if it is one of the stages."""
        value = self.values[place]
        return value if value is not None and value.stage in stages else None

    def moved(self, place: int) -> Moved:
        """A node's entries as entries of the first node behind it that does more than move and scale."""
        if place not in self._moved:
            node = self.nodes[place]
            self._moved[place] = Moved(place, torch.arange(node.size))
            if isinstance(node.op, MOVES) and (places := moves(node, self.nodes[node.inputs[0]].shape)) is not None:
                self._moved[place] = self.moved(node.inputs[0]).at(places)
            elif isinstance(node.op, Diagonal) and node.op.shift is None and (factor := _number(node.op.factor)):
                self._moved[place] = self.moved(node.inputs[0]).times(factor)
        return self._moved[place]

    # -- one rule per operator -------------------------------------------------------------------------------------

    def move(self, node: Node) -> Value | None:
        before = self.values[node.inputs[0]]
        places = None if before is None else moves(node, self.nodes[node.inputs[0]].shape)
        return None if before is None or places is None else before.at(places)

    def sum(self, node: Node) -> Value | None:
        op = node.op
        assert isinstance(op, Sum)
        if len(node.inputs) != 2:
            return None
        pairs = list(zip(node.inputs, op.coefficients, strict=True))
        for (i, k), (j, m) in permutations(pairs):
            if (mean := self.value(j, Stage.MEAN)) and mean.table is not None:
                point, table = self.moved(i).times(k), mean.table
                if point.node == table.node and point.scale == -m * table.scale:
                    return Value(Stage.CENTRED, point, table=replace(table, scale=point.scale), weight=mean.weight)
            if (log := self.value(j, Stage.LOG_TOTAL)) and log.table is not None and (k, m) == (1.0, -1.0):
                known = self.value(i, Stage.DIFFERENCE) or Value(Stage.DIFFERENCE, self.moved(i))
                for point, offset in permutations((known.point, known.offset)):
                    if point is not None and same(offset, log.offset) and point.over(log.table):
                        return Value(Stage.LOG_SOFTMAX, point, table=log.table)
        positive, negative = sorted((self.moved(i).times(k) for i, k in pairs), key=lambda x: -x.scale)
        return Value(Stage.DIFFERENCE, positive, negative) if positive.scale > 0.0 > negative.scale else None

    def exp(self, node: Node) -> Value | None:
        place = node.inputs[0]
        if log := self.value(place, Stage.LOG_SOFTMAX):
            return replace(log, stage=Stage.SOFTMAX)
        known = self.value(place, Stage.DIFFERENCE)
        return Value(Stage.TERM, self.moved(place)) if known is None else replace(known, stage=Stage.TERM)

    def reduce(self, node: Node) -> Value | None:
        op, place = node.op, node.inputs[0]
        assert isinstance(op, Reduce)
        windows, value = _windows(op), self.values[place]
        if not windows.numel():
            return None
        first = windows[:, 0]
        if value is None or value.stage not in (Stage.TERM, Stage.SQUARE):
            return Value(Stage.MEAN, table=_table(self.moved(place), windows), weight=op.scale)
        if value.stage is Stage.TERM and op.scale == 1.0:
            for point, offset in permutations((value.point, value.offset)):
                if point is not None and (offset is None or offset.steady(windows)):
                    return Value(Stage.TOTAL, None, offset and offset.at(first), _table(point, windows))
        if value.stage is Stage.SQUARE and value.point is not None:
            table = _table(value.point, windows)
            if value.table is not None:  # every window must hold exactly the members that the mean is taken over
                members, table = table.rows, value.table.at(first)
                rows = table.rows[table.row]
                equal = rows.shape == members.shape and torch.equal(rows.sort(1).values, members.sort(1).values)
                group = value.table.row[windows]
                if not equal or not bool((group == group[:, :1]).all()):
                    return None
            return Value(Stage.SPREAD, table=table, weight=value.weight, spread=op.scale)
        return None

    def diagonal(self, node: Node) -> Value | None:
        op, value = node.op, self.values[node.inputs[0]]
        assert isinstance(op, Diagonal)
        if value is None:
            return None
        factor, shift = (
            torch.full((node.size,), c) if given is None else given.expand(node.shape).flatten()
            for given, c in ((op.factor, 1.0), (op.shift, 0.0))
        )
        if op.factor is None and value.stage is Stage.SPREAD and value.eps == 0.0 and bool((shift == shift[0]).all()):
            return replace(value, eps=float(shift[0]))
        if op.factor is None and bool((shift == 1.0).all()):
            return _plus_one(value)
        sign, hidden = 1.0, factor == 0.0  # what is left is a change of sign, or a mask
        if value.stage is Stage.LOG_TOTAL:
            sign, value = -1.0, Value(Stage.LOG_SOFTMAX, value.own, table=value.table)
        constants = MASKED.get(value.stage, ())
        known = torch.tensor(constants, dtype=shift.dtype)
        fits = torch.where(hidden, torch.isin(shift, known), (factor == sign) & (shift == 0.0))
        if value.point is None or not constants or not bool(fits.all()):
            return None
        return replace(value, point=replace(value.point, index=torch.where(hidden, -1, value.point.index)))

    def power(self, node: Node) -> Value | None:
        op, place = node.op, node.inputs[0]
        value, exponent = self.values[place], op.exponent if isinstance(op, Power) else 0.5
        if exponent == 2.0:
            known = self.value(place, Stage.CENTRED) or Value(Stage.CENTRED, self.moved(place))
            return replace(known, stage=Stage.SQUARE)
        if value is None:
            return None
        if value.stage is Stage.SPREAD and value.eps > 0.0 and abs(exponent) == 0.5:
            return replace(value, stage=Stage.ROOT if exponent > 0.0 else Stage.INVERSE_ROOT)
        if value.stage is Stage.ROOT and exponent == -1.0:
            return replace(value, stage=Stage.INVERSE_ROOT)
        if value.stage is Stage.TOTAL and exponent == -1.0:
            own = value.own
            return replace(value, stage=Stage.INVERSE) if own is None else Value(Stage.SOFTMAX, own, table=value.table)
        return None

    def log(self, node: Node) -> Value | None:
        if softmax := self.value(node.inputs[0], Stage.SOFTMAX):
            return replace(softmax, stage=Stage.LOG_SOFTMAX)
        total = self.value(node.inputs[0], Stage.TOTAL)
        return None if total is None else replace(total, stage=Stage.LOG_TOTAL)

    def product(self, node: Node) -> Value | None:
        for i, j in permutations(node.inputs):
            if (inverse := self.value(j, Stage.INVERSE)) and (term := self.value(i, Stage.TERM)) and inverse.table:
                for point, offset in permutations((term.point, term.offset)):
                    if point is not None and same(offset, inverse.offset) and point.over(inverse.table):
                        return Value(Stage.SOFTMAX, point, table=inverse.table)
            if (root := self.value(j, Stage.INVERSE_ROOT)) and root.table:
                known = self.value(i, Stage.CENTRED)
                point = self.moved(i) if known is None else known.point
                if root.same_mean(known) and point is not None and point.over(root.table):
                    return replace(root, stage=Stage.NORMALISED, point=point)
        return None

    # -- blocks ----------------------------------------------------------------------------------------------------

    def block(self, place: int, value: Value) -> Block | None:
        """The block that ends with a node of this description, if it is the description of one."""
        table, point, kind = value.table, value.point, str(value.stage)
        rules = {Stage.SOFTMAX: softmax_constants, Stage.LOG_SOFTMAX: log_softmax_constants}
        low, high = {Stage.SOFTMAX: (0.0, 1.0), Stage.LOG_SOFTMAX: (-math.inf, 0.0)}.get(value.stage, (None, None))
        rule = rules.get(value.stage)
        if value.stage is Stage.LOG_TOTAL and value.offset is None:
            rule, kind = logsumexp_constants, "logsumexp"
        elif value.stage is Stage.LOG_TOTAL and (point := value.own):
            rule, kind, low, high = log_softmax_constants, "-log_softmax", 0.0, math.inf
        if table is None or (rule is None and value.stage is not Stage.NORMALISED):
            return None
        groups = Groups.of(table, point)
        if groups is None:
            return None
        inner = abs(table.scale)
        if rule is None:
            n, w = table.rows.shape[1], value.weight
            if w * n > 2.0:
                return None  # 1 - w n is an eigenvalue of the centring
            inner *= math.sqrt(groups.multiplicity)
            whole = normalisation_constants(value.spread, value.eps)
            entry = min(1.0, math.sqrt((1.0 - w) ** 2 + (n - 1) * w**2))
            row: Constants = (entry * whole[0], entry * whole[1], entry * whole[2])
            share = 1.0 - 1.0 / n if Fraction(w) * n == 1 else 1.0  # a mean rounded is no projection
            high = _up(math.sqrt(share / value.spread))
            low, kind = -high, "normalisation" if w else "rms_normalisation"
        else:  # a member that occurs m times is one, shifted by log m: softmax is divided by m, log-softmax shifted
            whole, row = rule(groups.size, groups.shown)
        outer = math.sqrt(groups.reach * groups.repeats)
        numbers = [_up(outer * inner**k * c) for k, c in enumerate(whole, 1)]
        numbers += [_up(inner**k * c) for k, c in enumerate(row, 1)]
        shape = self.nodes[place].shape
        bounds = None
        if low is not None and high is not None:
            bounds = Interval(*(torch.tensor(c, dtype=torch.float64).expand(shape) for c in (low, high)))
        return Block(kind, table.node, place, *numbers, range=bounds)


MOVES = (Reshape, Permute, Gather)

MASKED = {Stage.TERM: (0.0,), Stage.SOFTMAX: (0.0,), Stage.LOG_SOFTMAX: (0.0, -math.inf)}
"""The constants that a mask may put in place of an entry."""

RULES: dict[type, Callable[[Finder, Node], Value | None]] = {
    **dict.fromkeys(MOVES, Finder.move),
    **dict.fromkeys((Power, Reciprocal, Sqrt), Finder.power),
    Sum: Finder.sum,
    Exp: Finder.exp,
    Log: Finder.log,
    Reduce: Finder.reduce,
    Diagonal: Finder.diagonal,
    Product: Finder.product,
}


def moves(node: Node, shape: tuple[int, ...]) -> Tensor | None:
    """The position that every entry of a Reshape, Permute or Gather comes from; None where one is a constant."""
    if isinstance(node.op, Gather):
        return None if bool((node.op.index < 0).any()) else node.op.index.flatten()
    places = torch.arange(math.prod(shape)).reshape(1, *shape)
    return node.op.forward(places).flatten()


def _windows(op: Reduce) -> Tensor:
    """(entries of the output, summands): positions in the input."""
    places = torch.arange(math.prod(op.shape_in)).reshape(op.shape_in)
    kept = [a for a in range(places.ndim) if a not in op.axes]
    size = math.prod(op.shape_in[a] for a in op.axes)
    return places.permute(*kept, *op.axes).reshape(math.prod(op.shape_in[a] for a in kept), size)


def _table(x: Moved, windows: Tensor) -> Table:
    return Table(x.node, x.scale, x.index[windows], torch.arange(len(windows)))


def _plus_one(value: Value) -> Value | None:
    """1 + the sum: where the offset is -x_m, x_m becomes a member."""
    offset = value.offset
    table = value.table
    if value.stage is Stage.TERM and value.point is not None:
        table = _table(value.point, torch.arange(len(value.point.index)).unsqueeze(1))
    elif value.stage is not Stage.TOTAL:
        return None
    if table is None or offset is None or (offset.node, offset.scale) != (table.node, -table.scale):
        return None
    rows = torch.cat([table.rows[table.row], offset.index.unsqueeze(1)], 1)
    return Value(Stage.TOTAL, offset=offset, table=replace(table, rows=rows, row=torch.arange(len(rows))))


def _number(constant: Tensor | None) -> float | None:
    """The one number that a constant is."""
    return float(constant) if constant is not None and constant.numel() == 1 else None


def _up(x: float) -> float:
    """Above what was computed as x in a few dozen operations on positive numbers."""
    return x * (1.0 + 2.0**-44)


def find_blocks(graph: Graph) -> tuple[Block, ...]:
    """All blocks of a graph, in the order of their outputs.

    Where one block continues another (log-softmax after the logarithm, a mask after softmax), both are listed.
    """
    kinds = {type(node.op) for node in graph}
    return Finder(graph).run() if kinds & {Exp, Sqrt, Power} else ()
