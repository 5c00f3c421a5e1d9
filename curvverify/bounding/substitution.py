"""Backward substitution of linear rows through supporting lines, and the forward pass that moves the lines' points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from curvverify.bounding.relaxation import Relaxation
from curvverify.bounding.resume import RowState
from curvverify.numerics.rounding import TINY, gamma
from curvverify.ops.base import Linear, Lines
from curvverify.ops.elementwise.hinge import Hinge, Kinks
from curvverify.ops.joint import Joint, Tangent
from curvverify.ops.product import Planes, Product
from curvverify.types import Interval

SWEEPS = 2
"""Sweeps over the slabs' multipliers in the first pass; later ones start from the last multipliers, with one."""


@dataclass(frozen=True, eq=False)
class Rows:
    """R linear functions of a node's value for each of B boxes: coefficients (B, R, *S), B = 1 where shared.

    `input` (B or 1, R, *S_in) adds a linear function of the network's input.
    """

    coefficients: Tensor
    input: Tensor | None = None

    @property
    def count(self) -> int:
        return self.coefficients.shape[1]

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        return Rows(self.coefficients[:, rows], None if self.input is None else self.input[:, rows])


@dataclass(frozen=True, eq=False)
class Slopes:
    """J x + intercept for every row: a tangent, with its radius taken off or added by the signs of the row."""

    tangent: Tangent
    intercept: Tensor


@dataclass(eq=False)
class Trace:
    """What one backward pass leaves behind for the forward pass: the lines of every nonlinear node."""

    form: Tensor
    """(B, R, *S_in): the row's linear form at the input."""
    slope: Tensor
    """What is left of it less the multiples of slabs: its corner, or `multiplier` for a ball, is the minimiser."""
    constant: Tensor
    slack: Tensor
    """(B, R): what is added to it, and what both may be wrong by (0 where the pass was not rigorous)."""
    lower: Tensor
    """(B, R): the bound; rigorous where the pass was."""
    lines: dict[int, Lines | Planes | Slopes]
    multiplier: Tensor | None
    """(B, R, 1), where the boxes are cut by balls."""


class Coupled(Protocol):
    """Supporting lines that several nodes of one level share a price for, with a state of its own for every row.

    sum over the sites of row * sigma(z) >= sum of row * (slope z + intercept) - price, for the lines of `couple`.
    """

    @property
    def sites(self) -> tuple[int, ...]:
        """Elementwise nodes, none of which depends on another."""
        ...

    def couple(
        self,
        rows: Mapping[int, Tensor],
        points: Mapping[int, Tensor],
        lines: Mapping[int, Lines],
        rigorous: bool,
    ) -> tuple[dict[int, Lines], Tensor]:
        """The sites' lines for rows and points (B, R, *S), the given ones where no others pay, and the price (B, R).

        Where not `rigorous`, the price may be left out.
        """
        ...

    def relaxed(self, site: int, point: Tensor, value: Tensor) -> Tensor:
        """What the relaxed function takes at the points (B, R, *S), given the lines' value there."""
        ...


@dataclass(frozen=True, eq=False)
class Restriction:
    """Bounds of some arguments z of a hinge node where every row is wanted, and multiples of z that it loses.

    For the flat positions `entries` (E,), all (R, E).  The row less pull * z is bounded, whatever the signs of `pull`.
    """

    entries: Tensor
    lower: Tensor
    upper: Tensor
    turns: Tensor
    """In [0, 1]: how far the lines on the convex side have turned from the left slope to the right one."""
    pull: Tensor

    def lines(self, op: Hinge, lines: Lines, below: Tensor) -> Lines:
        """The node's lines with those of the entries replaced; all (1, R, *S)."""
        shape = lines.slope.shape
        left, right = (torch.as_tensor(s, dtype=torch.float64).expand(shape[2:]).flatten() for s in op.slopes)
        envelope = Kinks(left[self.entries], right[self.entries]).envelope(Interval(self.lower, self.upper))
        point = (2.0 * self.turns - 1.0) * (self.upper - self.lower)
        side = below.reshape(shape[1], -1)[:, self.entries]
        found = envelope.lines(point.unsqueeze(1), side.unsqueeze(1), 1.0)
        slope, intercept = (t.clone().reshape(shape[1], -1) for t in (lines.slope, lines.intercept))
        slope[:, self.entries], intercept[:, self.entries] = found.slope.squeeze(1), found.intercept.squeeze(1)
        return Lines(slope.reshape(shape), intercept.reshape(shape))

    def pulled(self, row: Tensor) -> Tensor:
        """The coefficients (1, R, *S) of the arguments less the pull."""
        flat = row.flatten(2).clone()
        flat[:, :, self.entries] -= self.pull
        return flat.reshape(row.shape)

    def size(self, magnitude: Tensor) -> Tensor:
        """sum |pull| magnitude (1, R), for magnitudes (1, *S) of the arguments."""
        return (self.pull.abs() @ magnitude.flatten()[self.entries]).unsqueeze(0)


class Substitution:
    """Backward and forward passes for R rows of one node over the relaxation's B boxes, in one dtype.

    The first backward pass takes plain lines; once a forward pass has set the points, the `coupled` sites share theirs.
    Told to `fold`, it leaves forms and slopes of the free coordinates alone, (B, R, n), where few of them move.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        node: int,
        rows: Rows,
        dtype: torch.dtype,
        coupled: Sequence[Coupled] = (),
        fold: bool = False,
    ):
        self.relaxation, self.node, self.dtype = relaxation, node, dtype
        self.graph = relaxation.graph.to(dtype)
        self.boxes = relaxation.box.lower.shape[0]
        self.rows = Rows(rows.coefficients.to(dtype), None if rows.input is None else rows.input.to(dtype))
        self.order = relaxation.graph.by_level(node)
        self.points: dict[int, tuple[Tensor, ...]] = {}
        self.coupled = {site: block for block in coupled for site in block.sites}
        self.multipliers: Tensor | None = None
        self.restrictions: dict[int, Restriction] = {}
        self.folded = relaxation.folded(dtype) if fold and node and rows.input is None else None

    def resume(self, state: RowState) -> None:
        """Start from where the search for other, similar rows stood."""
        self.points = {i: tuple(z.to(self.dtype) for z in zs) for i, zs in state.points.items()}
        self.multipliers = state.multipliers

    @property
    def state(self) -> RowState:
        """Where the search stands; the coupled sites keep their weights themselves."""
        return RowState({i: tuple(z.float() for z in zs) for i, zs in self.points.items()}, self.multipliers)

    def _interval(self, position: int) -> Interval:
        x = self.relaxation.intervals[position]
        return x if self.dtype == torch.float64 else x.to(self.dtype)

    @property
    def _box(self) -> Interval:
        """The boxes that slopes are about: in the free coordinates alone, where the others are folded away."""
        return self._interval(0) if self.folded is None else self.folded.box

    def _point(self, position: int, slot: int, shape: torch.Size) -> Tensor:
        """The supporting point at an input of a nonlinear node; the interval's midpoint at first."""
        if position in self.points:
            return self.points[position][slot]
        x = self._interval(self.graph.nodes[position].inputs[slot])
        return x.centre.nan_to_num_(0.0, 0.0, 0.0).unsqueeze(1).expand(shape)

    def _lines(self, position: int, row: Tensor, smoothing: float) -> Lines | Planes | Slopes:
        node = self.graph.nodes[position]
        if isinstance(node.op, Joint):
            tangent = self.relaxation.tangent(position, self.dtype)
            return Slopes(tangent, tangent.middle.unsqueeze(1) - row.sign() * tangent.radius.unsqueeze(1))
        if isinstance(node.op, Product):
            u, v = (self._interval(i) for i in node.inputs)
            points = self._point(position, 0, row.shape), self._point(position, 1, row.shape)
            return node.op.planes(u, v, *points, row > 0)
        point = self._point(position, 0, row.shape)
        lines = self.relaxation.envelope(position, self.dtype).lines(point, row > 0, smoothing)
        if position in self.restrictions:
            assert isinstance(node.op, Hinge)
            return self.restrictions[position].lines(node.op, lines, row > 0)
        return lines

    def backward(self, smoothing: float, rigorous: bool) -> Trace:
        """Substitute from the node back to the input with lines at the current points.

        Where `rigorous`, the bound is lowered by what float64 evaluation may have lost.  Sound because: an error E in
        a coefficient of node k's value moves the row by at most E |v_k|; one step of substitution through L errs by
        at most gamma_n |A| |L| in the coefficients and gamma_n |A| |c| in the constant, hence in total by gamma_n
        |A| (|L| |v| + |c|) = gamma_n |A| magnitude_k, with n counting every sum the step takes part in.  What
        `restrictions` take off joins the sums.
        """
        graph, order = self.graph, self.order
        first = self.rows.coefficients
        coefficients: dict[int, Tensor] = {self.node: first.expand(self.boxes, *first.shape[1:])}
        constant = torch.zeros(self.boxes, self.rows.count, dtype=self.dtype)
        slack = torch.zeros_like(constant)
        lines: dict[int, Lines | Planes | Slopes] = {}
        for position in reversed(order[1:]):
            if position in self.coupled and position in self.points and position not in lines:
                shared, price = self._coupled_lines(self.coupled[position], coefficients, smoothing, rigorous)
                lines.update(shared)
                constant = constant - price
                slack = slack + gamma(2 * len(order) + 16) * price
            row = coefficients.pop(position, None)
            if row is None:
                continue
            node = graph.nodes[position]
            if isinstance(node.op, Linear):
                image = None if self.folded is None else self.folded.images.get(position)
                if image is not None:
                    found = (image.adjoint(row),)
                    constant = constant + (row * image.value.unsqueeze(1)).flatten(2).sum(-1)
                    slack = slack + 1.01 * _weighted(row, image.error) if rigorous else slack
                else:
                    found = self._through_linear(position, row)
                if image is None and node.op.offset is not None:
                    constant = constant + (row * node.op.offset).flatten(2).sum(-1)
                if rigorous:
                    steps = node.op.terms + node.size + 2 * len(order) + 16
                    slack = slack + gamma(steps) * _weighted(row, self.relaxation.magnitudes[position])
            else:
                line = lines[position] = lines[position] if position in lines else self._lines(position, row, smoothing)
                found = self._through_lines(line, row)
                if position in self.restrictions:
                    restriction = self.restrictions[position]
                    found = (restriction.pulled(found[0]),)
                    if rigorous:
                        z = self.relaxation.intervals[node.inputs[0]]
                        slack = slack + gamma(node.size + 2 * len(order) + 16) * restriction.size(z.magnitude)
                term = row * line.intercept
                if not all(self.relaxation.finite(i) for i in node.inputs):
                    term = torch.where(row == 0, 0.0, term)
                constant = constant + term.flatten(2).sum(-1)
                if rigorous and isinstance(line, Slopes):
                    steps = line.tangent.terms + node.size + 2 * len(order) + 16
                    slack = slack + gamma(steps) * _weighted(row, line.tangent.size)
                elif rigorous:
                    slack = slack + gamma(node.size + 2 * len(order) + 16) * self._absolute_terms(
                        node.inputs, found, term
                    )
            for i, a in zip(node.inputs, found, strict=True):
                coefficients[i] = coefficients[i] + a if i in coefficients else a
        slope = coefficients.pop(0, None)
        shape = (self.boxes, self.rows.count, *self._box.lower.shape[1:])
        slope = torch.zeros(shape, dtype=self.dtype) if slope is None else slope
        if self.rows.input is not None:
            slope = slope + self.rows.input
        rest, multiplier, lower = self._concretise(slope, constant, slack, rigorous)
        return Trace(slope, rest, constant, slack, lower, lines, multiplier)

    def whole(self, slope: Tensor) -> Tensor:
        """A trace's slope as coefficients (B, R, *S_in) of all inputs."""
        return slope if self.folded is None else self.folded.unfolded(slope)

    def _coupled_lines(
        self, block: Coupled, coefficients: Mapping[int, Tensor], smoothing: float, rigorous: bool
    ) -> tuple[dict[int, Lines], Tensor]:
        """The lines of a block's sites: the rows of all of them are complete, since they are of one level."""
        rows = {i: coefficients[i] for i in block.sites if i in self.points}
        plain = {i: self._lines(i, row, smoothing) for i, row in rows.items()}
        points = {i: self.points[i][0] for i in rows}
        return block.couple(rows, points, {i: x for i, x in plain.items() if isinstance(x, Lines)}, rigorous)

    def _through_linear(self, position: int, row: Tensor) -> tuple[Tensor, ...]:
        op = self.graph.nodes[position].op
        assert isinstance(op, Linear)
        flat = op.adjoint(row.reshape(-1, *row.shape[2:]))
        return tuple(a.reshape(*row.shape[:2], *a.shape[1:]) for a in flat)

    @staticmethod
    def _through_lines(line: Lines | Planes | Slopes, row: Tensor) -> tuple[Tensor, ...]:
        if isinstance(line, Slopes):
            return line.tangent.adjoint(row)
        if isinstance(line, Planes):
            return row * line.slope_u, row * line.slope_v
        return (row * line.slope,)

    def _absolute_terms(self, inputs: tuple[int, ...], found: tuple[Tensor, ...], constant: Tensor) -> Tensor:
        """Upper bound (B, R) on the absolute terms of the coefficients found for the inputs and of the constants."""
        total = constant.abs().flatten(2).sum(-1)
        for i, a in zip(inputs, found, strict=True):
            total = total + _weighted(a, self.relaxation.intervals[i].magnitude)
        return total.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def _concretise(
        self, slope: Tensor, constant: Tensor, slack: Tensor, rigorous: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """min over the box, within its slabs and ball, of slope.x + constant, less the slack; it comes last, after
        what the slabs leave of the slope and the ball's multiplier.

        Sound because: of weak duality, see `slabs` and `balls`, whatever the multipliers; each of their products is
        rounded once, and joins the sums that gamma_n counts.
        """
        box, slabs, balls = self._box, self.relaxation.slabs, self.relaxation.balls
        absolute, terms = slope, constant.abs()
        if slabs is not None:
            first = self.multipliers is None
            self.multipliers = slabs.multipliers(slope, box, self.multipliers, SWEEPS if first else 1)
            eta = self.multipliers.to(slope.dtype)
            slope = slabs.reduced(slope, eta)
            constant = constant + slabs.support(eta)
            if rigorous:
                terms = terms + slabs.size(eta, self.relaxation.box.magnitude)
        rest, multiplier = slope, None
        if balls is not None:
            multiplier = balls.multipliers(slope, box)
            u = balls.share(slope, box, multiplier)
            support, size = balls.support(u)
            rest, constant = slope - u, constant + support
            terms = terms + size + _weighted(u, box.magnitude)
        centre, radius = box.centre.unsqueeze(1), (0.5 * box.width).unsqueeze(1)
        value = (rest * centre - rest.abs() * radius).flatten(2).sum(-1) + constant
        if rigorous:
            n = self.graph.nodes[0].size + 2 * len(self.order) + 16 + 4 * (0 if slabs is None else slabs.count)
            n = n if balls is None else n + 8
            size = self.relaxation.box.magnitude if self.folded is None else self.folded.box.magnitude
            slack = slack + gamma(n) * (_weighted(absolute, size) + terms)
            value = value - (1.01 * slack + TINY)
        return slope, multiplier, value.nan_to_num(nan=-torch.inf, neginf=-torch.inf)

    def forward(self, trace: Trace, step: float) -> None:
        """Move the points towards where the relaxed network takes its minimum over the box."""
        values: dict[int, Tensor] = {0: self._minimiser(trace)}
        for position in self.order[1:]:
            node = self.graph.nodes[position]
            if not all(i in values for i in node.inputs):
                continue
            if self.folded is not None and position in self.folded.images:
                values[position] = self.folded.images[position].forward(values[0])
                continue
            inputs = [values[i] for i in node.inputs]
            if isinstance(node.op, Linear):
                flat = node.op.forward(*(x.reshape(-1, *x.shape[2:]) for x in inputs))
                values[position] = flat.reshape(*inputs[0].shape[:2], *flat.shape[1:])
            elif position in trace.lines:
                line = trace.lines[position]
                if isinstance(line, Slopes):
                    values[position] = line.tangent.linear(*inputs) + line.intercept
                else:
                    values[position] = self._move(position, inputs, line, step)

    def _minimiser(self, trace: Trace) -> Tensor:
        """(B, R, *S_in): where the rows' linear forms are smallest, as far as the multipliers tell."""
        box, balls = self._box, self.relaxation.balls
        if balls is not None and trace.multiplier is not None:
            return balls.minimiser(trace.slope, box, trace.multiplier)
        return torch.where(trace.slope > 0, box.lower.unsqueeze(1), box.upper.unsqueeze(1))

    def _move(self, position: int, inputs: list[Tensor], line: Lines | Planes, step: float) -> Tensor:
        node = self.graph.nodes[position]
        moved = []
        for slot, (i, x) in enumerate(zip(node.inputs, inputs, strict=True)):
            bounds = self._interval(i)
            z = torch.minimum(torch.maximum(x, bounds.lower.unsqueeze(1)), bounds.upper.unsqueeze(1))
            if not self.relaxation.finite(i):
                z = z.nan_to_num(0.0, 0.0, 0.0)
            if position in self.points:
                z = torch.lerp(self.points[position][slot], z, step)
            moved.append(z)
        self.points[position] = tuple(moved)
        if isinstance(line, Planes):
            value = line.slope_u * moved[0] + line.slope_v * moved[1] + line.intercept
        else:
            value = torch.addcmul(line.intercept, line.slope, moved[0])
            if position in self.coupled:
                value = self.coupled[position].relaxed(position, moved[0], value)
        return value if all(self.relaxation.finite(i) for i in node.inputs) else value.nan_to_num(0.0, 0.0, 0.0)


def _weighted(row: Tensor, magnitude: Tensor) -> Tensor:
    """sum |row| magnitude over the entries: (B, R, *S) and (B, *S) -> (B, R); 0 * inf counts as 0."""
    if len(row) == 1 and bool(magnitude.isfinite().all()):
        return (row.abs().flatten(2) @ magnitude.flatten(1).unsqueeze(2)).squeeze(2)
    terms = row.abs() * magnitude.unsqueeze(1)
    if bool(magnitude.isinf().any()):
        terms = torch.where(row == 0, 0.0, terms)
    return terms.flatten(2).sum(-1)
