"""Taylor forms: every node as a polynomial in the few free inputs plus a remainder, one pass forward.

With x = centre + radius * xi, |xi_i| <= 1, over the n coordinates that are free, every entry of every node is

    v(x) = c + sum_i a_i xi_i + sum_{i <= j} q_ij xi_i xi_j + e,   |e| <= error.

All of it is carried through the network at once: (1 + n + n (n + 1) / 2) values per entry instead of one bound row
per neuron, which is what makes thousands of small boxes at a time affordable where few inputs are free.  Stable
piecewise linear functions are exact, smooth ones leave a remainder of third order in the box's radius (second order
where the quadratic part is left out), and what two terms share cancels before anything is bounded.

Source: Taylor models, Makino and Berz, Int. J. Pure Appl. Math. 4 (2003); affine arithmetic, Comba and Stolfi (1993).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from curvverify.bounding.folded import free_coordinates
from curvverify.bounding.relaxation import Relaxation
from curvverify.bounding.substitution import Rows
from curvverify.graph.layers import Graph, Node
from curvverify.numerics.rounding import TINY, gamma, nan_is_unbounded, radius_upper
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.product import Product
from curvverify.types import Interval

GROWN = 1.0 + 2.0**-40
"""Covers the roundings of a remainder that was itself added up from nonnegative terms."""


@dataclass(frozen=True, eq=False)
class Monomials:
    """The monomials of forms over B boxes: 1, xi_i for the free coordinates, and xi_i xi_j for i <= j where `order` 2.

    centre and radius (B, n) belong to the coordinates `free` (n,) of the flat input; ones that do not move in a box
    have radius 0 there.
    """

    free: Tensor
    centre: Tensor
    radius: Tensor
    order: int

    @classmethod
    def of(cls, box: Interval, order: int) -> Monomials:
        flat = Interval(box.lower.flatten(1), box.upper.flatten(1))
        free = free_coordinates(flat)
        return cls(free, flat.centre[:, free], radius_upper(flat)[:, free], order)

    @property
    def count(self) -> int:
        return len(self.free)

    def __getitem__(self, boxes: Tensor) -> Monomials:
        return replace(self, centre=self.centre[boxes], radius=self.radius[boxes])

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """i and j of the quadratic monomials: the squares first."""
        n = self.count
        square = torch.arange(n)
        i, j = torch.triu_indices(n, n, 1).unbind(0)
        return torch.cat([square, i]), torch.cat([square, j])


@dataclass(frozen=True, eq=False)
class Form:
    """terms (B, T, *S) by monomial, T = 1 + n where the quadratic part is 0, and error (B, *S): inf where unknown."""

    monomials: Monomials
    terms: Tensor
    error: Tensor

    def __getitem__(self, boxes: Tensor) -> Form:
        """The same for some of the boxes."""
        return Form(self.monomials[boxes], self.terms[boxes], self.error[boxes])

    @property
    def linear(self) -> Tensor:
        """(B, n, *S)"""
        return self.terms[:, 1 : 1 + self.monomials.count]

    @property
    def quadratic(self) -> Tensor:
        """(B, n (n + 1) / 2, *S), the squares first; or (B, 0, *S)."""
        return self.terms[:, 1 + self.monomials.count :]

    @property
    def size(self) -> Tensor:
        """sum of all |terms|, (B, *S): what roundings are relative to."""
        return self.terms.abs().sum(1)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Bounds (B, n, *S) on each a_i xi_i + q_ii xi_i^2, up to two roundings."""
        a = self.linear.abs()
        if not self.quadratic.shape[1]:
            return -a, a
        q = self.quadratic[:, : self.monomials.count]
        inner = torch.where(a < 2.0 * q.abs(), a * (a / (4.0 * q.abs())), 0.0)
        inside = a < 2.0 * q.abs()
        return -torch.where(inside & (q > 0), inner, a - q), torch.where(inside & (q < 0), inner, a + q)

    @property
    def mixed(self) -> Tensor:
        """sum over i < j of |q_ij|, (B, *S)."""
        return self.quadratic[:, self.monomials.count :].abs().sum(1)

    def range(self) -> Interval:
        """Bounds (B, *S) on the value: the extremes of every coordinate's own part, and |q_ij| for the others."""
        low, high = self.extremes()
        rest = self.mixed + self.error
        rest = rest + gamma(self.terms.shape[1] + 16) * (self.size + rest) + TINY
        centre = self.terms[:, 0]
        return nan_is_unbounded(Interval(centre + low.sum(1) - rest, centre + high.sum(1) + rest))

    def widened(self, count: int) -> Tensor:
        """The terms with zeros for further monomials, so many in all."""
        missing = count - self.terms.shape[1]
        if not missing:
            return self.terms
        return torch.cat([self.terms, self.terms.new_zeros(len(self.terms), missing, *self.terms.shape[2:])], 1)

    def flat(self) -> Form:
        """Without the quadratic part, whose range joins centre and error."""
        if not self.quadratic.shape[1]:
            return self
        n = self.monomials.count
        squares = self.quadratic[:, :n]
        low, high = squares.clamp(max=0.0).sum(1), squares.clamp(min=0.0).sum(1)
        terms = self.terms[:, : 1 + n].clone()
        terms[:, 0] += 0.5 * (low + high)
        error = self.error + 0.5 * (high - low) + self.mixed + gamma(len(self.terms[0]) + 16) * self.size + TINY
        return Form(self.monomials, terms, GROWN * error)


def taylor_bounds(
    graph: Graph, box: Interval, order: int, known: Mapping[int, Interval] | None = None
) -> tuple[Relaxation, Form]:
    """Bounds on every node over B input boxes, interval and Taylor bounds intersected; and the output's form.

    `order` 2 carries the quadratic part, 1 only the linear one.  `known` bounds of nodes are intersected.
    """
    relaxation = Relaxation(graph, box)
    forms = Forms(relaxation, order)
    wanted = {*graph.bounded, graph.output}
    for position in range(len(graph)):
        relaxation.append(None if known is None else known.get(position))
        form = forms.advance(position)
        if position and position in wanted:
            relaxation.tighten(position, form.range())
    return relaxation, forms[graph.output]


class Forms:
    """The forms of a relaxation's nodes, carried along while they are added; dropped after their last consumer."""

    def __init__(self, relaxation: Relaxation, order: int):
        self.relaxation = relaxation
        nodes = relaxation.graph.nodes
        count = len(nodes)
        self._last = [max((i for i, n in enumerate(nodes) if k in n.inputs), default=count) for k in range(count)]
        self._monomials = Monomials.of(relaxation.box, order)
        self._held: dict[int, Form] = {}

    def __getitem__(self, position: int) -> Form:
        return self._held[position]

    def advance(self, position: int) -> Form:
        """The form of the relaxation's last node, from its bounds and those of its inputs."""
        if not position:
            self._held[0] = input_form(self.relaxation.box, self._monomials)
            return self._held[0]
        node = self.relaxation.graph.nodes[position]
        self._held[position] = _image(node, [self._held[i] for i in node.inputs], self.relaxation, position)
        for i in node.inputs:
            if self._last[i] == position:
                self._held.pop(i, None)
        return self._held[position]


def input_form(box: Interval, monomials: Monomials) -> Form:
    """The input itself: exact on the free coordinates, the others are their centres with their radius as error."""
    flat = Interval(box.lower.flatten(1), box.upper.flatten(1))
    n, free = monomials.count, monomials.free
    terms = torch.zeros(*flat.lower.shape[:1], 1 + n, flat.lower.shape[1], dtype=torch.float64)
    terms[:, 0] = flat.centre
    terms[:, 1 + torch.arange(n), free] = monomials.radius
    error = radius_upper(flat)
    error[:, free] = 0.0
    return Form(monomials, terms.reshape(len(terms), 1 + n, *box.shape[1:]), error.reshape(box.shape))


def _image(node: Node, inputs: list[Form], relaxation: Relaxation, position: int) -> Form:
    op = node.op
    if isinstance(op, Linear):
        return linear_form(op, inputs)
    image = relaxation.intervals[position]
    if isinstance(op, Product):
        return _sensible(product_form(*inputs), image)
    assert isinstance(op, Elementwise)
    (z,) = inputs
    x = relaxation.intervals[node.inputs[0]]
    found = strip_form(op, z, x)
    if z.monomials.order == 2 and not op.straight:
        found = _smaller(second_order_form(op, z, x), found)
    return _sensible(found, image)


def linear_form(op: Linear, inputs: list[Form]) -> Form:
    """L applied to the terms.

    Sound because: the entries of L t_k and of the offset err by at most gamma_n of their absolute terms, and every
    |monomial| is at most 1; |L| acts on the errors.
    """
    monomials = inputs[0].monomials
    count = max(f.terms.shape[1] for f in inputs)
    batch = len(inputs[0].terms)
    stacked = [f.widened(count).flatten(0, 1) for f in inputs]
    terms = op.forward(*stacked, bias=False)
    terms = terms.reshape(batch, count, *terms.shape[1:])
    if op.offset is not None:
        terms = torch.cat([terms[:, :1] + op.offset, terms[:, 1:]], 1)
    unit = gamma(op.terms + count + 16)
    error = unit * op.absolute(*(f.error / unit + f.size for f in inputs)) + TINY
    return Form(monomials, terms, (GROWN * (1.0 + 2.0 * unit) * error).nan_to_num(torch.inf, torch.inf))


def product_form(u: Form, v: Form) -> Form:
    """u v, with what is of third order or an error in the remainder.

    Sound because: with u = u0 + a + p + e, a its linear and p its quadratic part,
    u v = u0 v0 + (u0 a' + v0 a) + (u0 p' + v0 p + a a') + (a p' + p a' + p p') + e (v0 + a' + p') + e' u.
    """
    monomials = u.monomials
    n = monomials.count
    i, j = monomials.pairs
    count = 1 + n + len(i)
    left, right = u.widened(count), v.widened(count)
    terms = left * right[:, :1] + left[:, :1] * right
    terms[:, 0] *= 0.5
    a, b = u.linear, v.linear
    cross = a[:, i] * b[:, j]
    cross[:, n:] += a[:, j[n:]] * b[:, i[n:]]
    terms[:, 1 + n :] += cross
    size_u, size_v = u.size, v.size
    a1, b1, p1, q1 = (t.abs().sum(1) for t in (a, b, u.quadratic, v.quadratic))
    error = a1 * q1 + p1 * b1 + p1 * q1 + u.error * size_v + v.error * (size_u + u.error)
    error = GROWN * (error + gamma(count + 16) * size_u * size_v) + TINY
    found = Form(monomials, terms, error)
    return found if monomials.order == 2 else found.flat()


def strip_form(op: Elementwise, z: Form, x: Interval) -> Form:
    """slope * z + middle +- radius along the chord over the interval x of z.

    Sound because: sigma - k z, for any k, is between its values at the two ends up to what sigma leaves its chord by.
    """
    ends = op.interval(Interval(torch.cat([x.lower, x.upper]), torch.cat([x.lower, x.upper])))
    at_l, at_u = ends[: len(x.lower)], ends[len(x.lower) :]
    bow = op.bow(x)
    slope = ((at_u.centre - at_l.centre) / x.width).nan_to_num(0.0, 0.0, 0.0)
    slope = torch.where(x.width > 1e-9 * (1.0 + x.magnitude), slope, 0.0)
    tilt_l, tilt_u = slope * x.lower, slope * x.upper
    low = torch.minimum(at_l.lower - tilt_l, at_u.lower - tilt_u) + bow.lower
    high = torch.maximum(at_l.upper - tilt_l, at_u.upper - tilt_u) + bow.upper
    middle = 0.5 * (low + high)
    radius = torch.maximum(high - middle, middle - low)
    terms = z.terms * slope.unsqueeze(1)
    terms[:, 0] += middle
    sizes = slope.abs() * (z.size + x.magnitude) + low.abs() + high.abs() + at_l.magnitude + at_u.magnitude
    error = slope.abs() * z.error + radius + gamma(32) * sizes
    return Form(z.monomials, terms, GROWN * error + TINY)


def second_order_form(op: Elementwise, z: Form, x: Interval) -> Form:
    """sigma(z0) + sigma'(z0) t + sigma''(z0) / 2 t^2 + r, t = z - z0 with z0 the form's centre.

    Sound because: with t = a + (p + e), t^2 = a^2 + (p + e)(t + a); and, on an interval that contains z and z0,
    |r| <= sup |sigma'''| |t|^3 / 6 and |r| <= sup |sigma'' - sigma''(z0)| t^2 / 2.
    """
    monomials = z.monomials
    n = monomials.count
    i, j = monomials.pairs
    centre = z.terms[:, 0]
    point = Interval(centre, centre)
    around = Interval(torch.minimum(x.lower, centre), torch.maximum(x.upper, centre))
    value, first = op.interval(point), op.derivative(1, point)
    both = op.derivative(2, Interval(torch.cat([centre, around.lower]), torch.cat([centre, around.upper])))
    second, curvature = both[: len(centre)], both[len(centre) :]
    third = op.derivative(3, around).magnitude
    t = GROWN * torch.maximum(around.upper - centre, centre - around.lower)
    a, a1, p1 = z.linear, z.linear.abs().sum(1), z.quadratic.abs().sum(1)
    terms = z.widened(1 + n + len(i)) * first.centre.unsqueeze(1)
    terms[:, 0] = value.centre
    bend = second.centre.unsqueeze(1)
    terms[:, 1 + n : 1 + 2 * n] += 0.5 * bend * a.square()
    terms[:, 1 + 2 * n :] += bend * a[:, i[n:]] * a[:, j[n:]]
    change = torch.maximum(curvature.upper - second.lower, second.upper - curvature.lower)
    remainder = torch.fmin(third * t**3 / 6.0, 0.5 * change * t**2)
    error = radius_upper(value) + first.magnitude * z.error + radius_upper(first) * (a1 + p1)
    error = error + 0.5 * (second.magnitude * (p1 + z.error) * (t + a1) + radius_upper(second) * a1**2) + remainder
    sizes = value.magnitude + first.magnitude * (a1 + p1) + second.magnitude * a1**2
    return Form(monomials, terms, GROWN * (error + gamma(32) * sizes) + TINY)


def _chosen(take: Tensor, first: Form, second: Form) -> Form:
    count = max(first.terms.shape[1], second.terms.shape[1])
    terms = torch.where(take.unsqueeze(1), first.widened(count), second.widened(count))
    return Form(first.monomials, terms, torch.where(take, first.error, second.error))


def _smaller(first: Form, second: Form) -> Form:
    """Entry by entry the form with the smaller error."""
    return _chosen((first.error < second.error) & first.terms.isfinite().all(1), first, second)


def _sensible(form: Form, image: Interval) -> Form:
    """The interval itself where the form's error is not smaller than its radius: nothing but finite terms are left."""
    known = image.lower.isfinite() & image.upper.isfinite()
    centre = torch.where(known, image.centre, 0.0)
    radius = torch.where(known, radius_upper(image), torch.inf)
    n = form.monomials.count
    constant = torch.cat([centre.unsqueeze(1), centre.new_zeros(len(centre), n, *centre.shape[1:])], 1)
    take = (form.error < radius) & form.terms.isfinite().all(1)
    return _chosen(take, form, Form(form.monomials, constant, radius))


def row_forms(output: Form, rows: Rows, box: Interval) -> Form:
    """The forms (B, T, R) of R rows of the output, with their linear functions of the input."""
    monomials = output.monomials
    coefficients = rows.coefficients.flatten(2)
    terms = output.terms.flatten(2) @ coefficients.mT
    unit = gamma(coefficients.shape[2] + output.terms.shape[1] + box.lower[0].numel() + 16)
    absolute = (output.error / unit + output.size).flatten(1).unsqueeze(1)
    error = unit * (absolute @ coefficients.abs().mT).squeeze(1)
    if rows.input is not None:
        inner = input_form(box, monomials)
        extra = rows.input.flatten(2)
        count = 1 + monomials.count
        terms = torch.cat([terms[:, :count] + inner.terms.flatten(2) @ extra.mT, terms[:, count:]], 1)
        absolute = (inner.error / unit + inner.size).flatten(1).unsqueeze(1)
        error = error + unit * (absolute @ extra.abs().mT).squeeze(1)
    return Form(monomials, terms, GROWN * (1.0 + 2.0 * unit) * error.nan_to_num(torch.inf, torch.inf) + TINY)
