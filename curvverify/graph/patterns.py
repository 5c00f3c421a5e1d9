"""Activations that exporters spell out, recognised and put back: one tight operator for a product of two variables.

A factor of the product is a scaled input, alpha x, and the other beta f(c x) + gamma for a scalar function f.  GELU,
SiLU and hard-swish are recognised for any scale c, because x Phi(a x) = gelu(a x) / a and the like: the network over
the reals is kept exactly, up to the rounding of the constants, also where the file holds sqrt(2) in float32.

Two forms have constants that no scale absorbs: the half in hard-swish, which must be exact, and the cubic coefficient
in the tanh form of GELU, which exporters write in float32.  The operator then carries the largest difference between
the exported function and its own as a `deviation`, which every bound includes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from curvverify.graph.layers import Node
from curvverify.graph.simplify import relabelled
from curvverify.ops.base import Op
from curvverify.ops.elementwise.clip import Clip
from curvverify.ops.elementwise.gelu import Gelu, GeluTanh
from curvverify.ops.elementwise.power import Log, Power
from curvverify.ops.elementwise.sigmoid import Erf, Sigmoid, Tanh
from curvverify.ops.elementwise.silu import HardSwish, Mish, Silu
from curvverify.ops.elementwise.softplus import Exp, Softplus
from curvverify.ops.linear import Diagonal, Sum
from curvverify.ops.product import Product

CLOSE = 1e-6
"""Relative distance within which the cubic coefficient of GELU's tanh form counts as the constant."""


@dataclass(frozen=True)
class Line:
    """scale * node + shift, with one number each for all entries."""

    node: int
    scale: float
    shift: float


class Matcher:
    """Looks at a graph from one product at a time."""

    def __init__(self, nodes: Sequence[Node]):
        self.nodes = nodes

    def line(self, place: int) -> Line:
        """A value as a line over the first node behind it that is no uniform scaling."""
        scale, shift = 1.0, 0.0
        while isinstance(op := self.nodes[place].op, Diagonal):
            factor, offset = _number(op.factor, 1.0), _number(op.shift, 0.0)
            if factor is None or offset is None:
                break
            scale, shift = scale * factor, shift + scale * offset
            place = self.nodes[place].inputs[0]
        return Line(place, scale, shift)

    def through(self, place: int, kind: type[Op]) -> int | None:
        """The input of a node if its operator is of that kind."""
        node = self.nodes[place]
        return node.inputs[0] if type(node.op) is kind else None


def _number(constant: torch.Tensor | None, default: float) -> float | None:
    """The one number that all entries of a constant are; None where they differ."""
    if constant is None:
        return default
    first = constant.flatten()[0]
    return first.item() if bool((constant == first).all()) else None


@dataclass(frozen=True)
class Found:
    """The product is after * op(before * x), entry by entry."""

    op: Op
    before: float
    after: float
    note: str = ""


Pattern = Callable[[Matcher, Line, Line], Found | None]
"""From the two factors: x scaled, and the other."""


def _gelu(match: Matcher, x: Line, other: Line) -> Found | None:
    """alpha x (beta erf(c x) + beta) = 2 alpha beta / a * gelu(a x), a = c sqrt(2)."""
    inner = match.through(other.node, Erf)
    if inner is None or other.scale != other.shift:
        return None
    z = match.line(inner)
    if z.node != x.node or z.shift != 0.0 or z.scale <= 0.0:
        return None
    a = z.scale * math.sqrt(2.0)
    a = 1.0 if abs(a - 1.0) < 1e-15 else a
    return Found(Gelu(), a, 2.0 * x.scale * other.scale / a)


def _silu(match: Matcher, x: Line, other: Line) -> Found | None:
    """alpha x beta sigmoid(c x) = alpha beta / c * silu(c x)."""
    inner = match.through(other.node, Sigmoid)
    if inner is None or other.shift != 0.0:
        return None
    z = match.line(inner)
    if z.node != x.node or z.shift != 0.0 or z.scale == 0.0:
        return None
    return Found(Silu(), z.scale, x.scale * other.scale / z.scale)


def _mish(match: Matcher, x: Line, other: Line) -> Found | None:
    """alpha x beta tanh(softplus(x))."""
    inner = match.through(other.node, Tanh)
    deeper = None if inner is None else match.through(inner, Softplus)
    if inner is None or deeper != x.node or other.shift != 0.0:
        return None
    softplus = match.nodes[inner].op
    if not isinstance(softplus, Softplus) or softplus.beta != 1.0:
        return None
    return Found(Mish(), 1.0, x.scale * other.scale)


def _hard_swish(match: Matcher, x: Line, other: Line) -> Found | None:
    """alpha x beta clip(c x + h/2, 0, h) = alpha beta h / s * hardswish(s x), s = 6 c / h."""
    clip = match.nodes[other.node].op
    if not isinstance(clip, Clip) or clip.lower != 0.0 or not 0.0 < clip.upper < math.inf or other.shift != 0.0:
        return None
    height, z = clip.upper, match.line(match.nodes[other.node].inputs[0])
    if z.node != x.node or z.shift != 0.5 * height or z.scale <= 0.0:
        return None
    s = 6.0 * z.scale / height
    s = 1.0 if abs(s - 1.0) < 1e-15 else s
    return Found(HardSwish(), s, x.scale * other.scale * height / s)


def _gelu_tanh(match: Matcher, x: Line, other: Line) -> Found | None:
    """alpha x (beta tanh(p x + q x^3) + beta) = 2 alpha beta / s * gelu_tanh(s x), p = s sqrt(2 / pi)."""
    inner = match.through(other.node, Tanh)
    if inner is None or other.scale != other.shift:
        return None
    cubic = _cubic(match, inner, x.node)
    if cubic is None or cubic[0] <= 0.0:
        return None
    s = cubic[0] / math.sqrt(2.0 / math.pi)
    off = abs(cubic[1] / (cubic[0] * s * s * GeluTanh.CUBIC) - 1.0)
    if off > CLOSE:
        return None
    note = f"the cubic coefficient of GELU's tanh form is off by {off:.1g} relative: the bounds include the difference"
    return Found(GeluTanh(GeluTanh.deviation_of(off + 1e-14)), s, 2.0 * x.scale * other.scale / s, note)


def _cubic(match: Matcher, place: int, x: int) -> tuple[float, float] | None:
    """(p, q) where the node is p x + q x^3."""
    outer = match.line(place)
    node = match.nodes[outer.node]
    if outer.shift != 0.0:
        return None
    if isinstance(node.op, Sum):
        coefficients = [0.0, 0.0]
        for weight, i in zip(node.op.coefficients, node.inputs, strict=True):
            term = match.line(i)
            power = 0 if term.node == x else 1 if _exponent(match, term.node, x) == 3.0 else None
            if power is None or term.shift != 0.0:
                return None
            coefficients[power] += weight * term.scale
        return outer.scale * coefficients[0], outer.scale * coefficients[1]
    if isinstance(node.op, Product):  # x (p + q x^2)
        for a, b in (node.inputs, node.inputs[::-1]):
            left, right = match.line(a), match.line(b)
            if left.node == x and left.shift == 0.0 and _exponent(match, right.node, x) == 2.0:
                scale = outer.scale * left.scale
                return scale * right.shift, scale * right.scale
    return None


def _exponent(match: Matcher, place: int, x: int) -> float | None:
    """n where the node is x^n."""
    if place == x:
        return 1.0
    node = match.nodes[place]
    return node.op.exponent if type(node.op) is Power and node.inputs[0] == x else None


def _power(match: Matcher, x: Line, other: Line) -> tuple[int, Found] | None:
    """x^m x^n = x^(m+n) for integers m, n > 0: the base x, and what the product is of it."""
    if x.shift != 0.0 or other.shift != 0.0:
        return None
    for base in (*match.nodes[x.node].inputs, x.node):
        exponents = [_exponent(match, line.node, base) for line in (x, other)]
        if all(e is not None and e > 0.0 and float(e).is_integer() for e in exponents):
            total = float(sum(e for e in exponents if e is not None))
            return base, Found(Power(exponent=total), 1.0, x.scale * other.scale)
    return None


PATTERNS: tuple[Pattern, ...] = (_gelu, _silu, _mish, _hard_swish, _gelu_tanh)


def recognised(nodes: Sequence[Node]) -> tuple[list[Node], tuple[str, ...]]:
    """The graph with every recognised product replaced, and notes on what is not exact.

    What a product was made of stays, and may be dead.
    """
    found: list[Node] = []
    notes: list[str] = []
    place: list[int] = []
    for node in nodes:
        new = replace(node, inputs=tuple(place[i] for i in node.inputs), values=())
        hit = _product(found, new) if isinstance(node.op, Product) else _softplus(found, new)
        found.extend([new] if hit is None else _chain(len(found), new, *hit))
        place.append(len(found) - 1)
        if hit is not None and hit[1].note:
            notes.append(f"node {node.source!r}: {hit[1].note}")
    return relabelled(found, nodes, place), tuple(notes)


def _product(before: list[Node], node: Node) -> tuple[int, Found] | None:
    """The node that a product is a function of, and the function."""
    match = Matcher(before)
    lines = [match.line(i) for i in node.inputs]
    for x, other in (lines, lines[::-1]):
        for pattern in PATTERNS:
            hit = pattern(match, x, other) if x.shift == 0.0 else None
            if hit is not None and before[x.node].shape == node.shape:
                return x.node, hit
    return _power(match, *lines)


def _chain(start: int, node: Node, x: int, hit: Found) -> list[Node]:
    """The scaling of x, the operator, the scaling of its value, as far as they are needed."""
    found: list[Node] = []

    def add(op: Op) -> None:
        at = start + len(found) - 1 if found else x
        found.append(Node("", op, (at,), node.shape, node.source))

    if hit.before != 1.0:
        add(Diagonal(torch.tensor(hit.before, dtype=torch.float64)))
    add(hit.op)
    if hit.after != 1.0:
        add(Diagonal(torch.tensor(hit.after, dtype=torch.float64)))
    return found


def _softplus(before: list[Node], node: Node) -> tuple[int, Found] | None:
    """log(1 + exp(x)) = softplus(x)."""
    if type(node.op) is not Log:
        return None
    match = Matcher(before)
    outer = match.line(node.inputs[0])
    x = match.through(outer.node, Exp)
    if x is None or outer.scale != 1.0 or outer.shift != 1.0:
        return None
    return x, Found(Softplus(), 1.0, 1.0)
