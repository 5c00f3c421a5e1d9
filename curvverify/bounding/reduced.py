"""A network over one box as its unstable hinges see it: every other function is a strip around an affine one there.

With t in [-1, 1]^n for the free inputs, and for the remainders of bent functions and joint operators, the arguments of
the unstable entries of ReLU-like functions are z = J t + H a + c with H strictly lower triangular in blocks and
a = sigma(z), and a row of the output is j.t + h.a + c.
A pass over a batch of parts of the box is two products with J and one with each block of H, whatever the network was
made of.  Everything is in float32, large products in less where that is faster, and nothing here decides:
`phases.decided_lower` does, on the network itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from torch import Tensor

from curvverify.bounding.coupling.generators import node_strip
from curvverify.bounding.relaxation import Relaxation
from curvverify.graph.layers import Node
from curvverify.numerics.rounding import float32_below
from curvverify.ops.base import Linear, Op
from curvverify.ops.elementwise.hinge import Hinge
from curvverify.ops.joint import Joint
from curvverify.types import Columns

ROWS = 256
"""Rows that are composed at once."""


@dataclass(frozen=True, eq=False)
class Site:
    """The entries with kinks of one hinge node: their flat positions, and where they are among all of them."""

    node: int
    entries: Tensor
    place: slice


@dataclass(frozen=True, eq=False)
class Hinges:
    """The U entries of all nodes that have a kink: arguments in [lower, upper] around 0, slopes `left` < `right`; (U,).

    The bounds are exact float32 numbers.  Where one of them is 0, a split has fixed the phase: such a range is tighter
    than the argument's bound, so that a multiplier of it still helps.
    """

    sites: tuple[Site, ...]
    lower: Tensor
    upper: Tensor
    left: Tensor
    right: Tensor
    straight: dict[int, Tensor]
    """By node, the slopes (S,) of its other entries; 0 at these."""

    @property
    def count(self) -> int:
        return len(self.lower)


@dataclass(frozen=True, eq=False)
class Forms(Columns):
    """R affine functions input.t + hinges.a + constant: (R, n), (R, U), (R,); t: the free inputs, then remainders."""

    inputs: Tensor
    hinges: Tensor
    constant: Tensor


@dataclass(frozen=True, eq=False)
class ReducedNetwork:
    """The hinges' arguments as forms in the inputs and in earlier hinges, and so the rows of the output."""

    hinges: Hinges
    arguments: Forms
    rows: Forms

    def coarse(self) -> ReducedNetwork:
        """The same with bfloat16 numbers in all large products."""
        arguments = replace(
            self.arguments, inputs=self.arguments.inputs.bfloat16(), hinges=self.arguments.hinges.bfloat16()
        )
        return replace(self, arguments=arguments, rows=replace(self.rows, inputs=self.rows.inputs.bfloat16()))


def reducible(relaxation: Relaxation, node: int) -> bool:
    """Whether every nonlinear node that a node depends on is bounded, with its arguments."""
    graph = relaxation.graph
    nonlinear = [i for i in graph.ancestors[node] if graph.nodes[i].nonlinear]
    return all(relaxation.finite(j) for i in nonlinear for j in (i, *graph.nodes[i].inputs))


def convex_hinge(op: Op) -> TypeGuard[Hinge]:
    """Whether an operator is a convex hinge, whose phases can be cut."""
    if not isinstance(op, Hinge):
        return False
    left, right = (torch.as_tensor(s) for s in op.slopes)
    return bool((left <= right).all())


def bends(node: Node) -> bool:
    """Whether a node is neither affine nor has phases that can be cut."""
    return node.nonlinear and not convex_hinge(node.op)


def unstable_hinges(relaxation: Relaxation, node: int) -> Hinges:
    """The entries with kinks of the hinge nodes that a node of a reducible network of one box depends on."""
    sites: list[Site] = []
    parts: list[tuple[Tensor, ...]] = []
    straight: dict[int, Tensor] = {}
    start = 0
    for i in relaxation.graph.by_level(node):
        op = relaxation.graph.nodes[i].op
        if not convex_hinge(op):
            continue
        x = relaxation.intervals[relaxation.graph.nodes[i].inputs[0]]
        low, high = x.lower[0], x.upper[0]
        left, right = (torch.as_tensor(s, dtype=low.dtype).expand_as(low) for s in op.slopes)
        kinked = (low <= 0) & (high >= 0) & (low < high) & (left < right)
        straight[i] = torch.where(kinked, 0.0, torch.where(high > 0, right, left)).float().flatten()
        entries = kinked.flatten().nonzero().squeeze(1)
        if len(entries):
            sites.append(Site(i, entries, slice(start, start + len(entries))))
            low, high, left, right = (t.flatten()[entries] for t in (low, high, left, right))
            parts.append((float32_below(low), -float32_below(-high), left.float(), right.float()))
            start += len(entries)
    merged = [torch.cat(ts) for ts in zip(*parts, strict=True)] if parts else [torch.zeros(0)] * 4
    return Hinges(tuple(sites), *merged, straight=straight)


def reduced_network(relaxation: Relaxation, node: int, coefficients: Tensor, inputs: Tensor | None) -> ReducedNetwork:
    """The network of one box, for the rows coefficients.v + inputs.x of a node: (R, *S) and (R, *S_in).

    The relaxation must be reducible.  What bends is a strip there.
    """
    hinges = unstable_hinges(relaxation, node)
    compose = _Composition(relaxation, node, hinges)
    found = [compose.entries(site) for site in hinges.sites]
    arguments = Forms.concatenated(found) if found else compose.rows(0, torch.zeros(0, *relaxation.graph.input_shape))
    shift = None if inputs is None else inputs.float()
    return ReducedNetwork(hinges, arguments, compose.rows(node, coefficients.float(), shift))


@dataclass(eq=False)
class _Composition:
    """Substitutes rows back to the input and to the hinges in between."""

    relaxation: Relaxation
    node: int
    hinges: Hinges

    def __post_init__(self) -> None:
        self.graph, box = self.relaxation.graph.to(torch.float32), self.relaxation.box
        lower, upper = box.lower[0].flatten(), box.upper[0].flatten()
        self.centre, self.radius = (0.5 * (lower + upper)).float(), (0.5 * (upper - lower)).float()
        self.free = self.radius.nonzero().squeeze(1)
        self.sites = {site.node: site for site in self.hinges.sites}
        bent = [i for i in self.graph.by_level(self.node) if bends(self.graph.nodes[i])]
        self.strips = {i: node_strip(self.relaxation, i) for i in bent if not isinstance(self.graph.nodes[i].op, Joint)}
        self.wide = {i: self._radius(i).nonzero().squeeze(1) for i in bent}

    def entries(self, site: Site) -> Forms:
        """The arguments of a site's entries."""
        position = self.graph.nodes[site.node].inputs[0]
        node = self.graph.nodes[position]
        parts = []
        for chosen in site.entries.split(ROWS):
            rows = torch.zeros(len(chosen), node.size)
            rows[torch.arange(len(chosen)), chosen] = 1.0
            parts.append(self.rows(position, rows.reshape(-1, *node.shape)))
        return Forms.concatenated(parts)

    def rows(self, node: int, coefficients: Tensor, shift: Tensor | None = None) -> Forms:
        """Rows coefficients.v + shift.x of a node."""
        count = len(coefficients)
        constant, hinges = torch.zeros(count), torch.zeros(count, self.hinges.count)
        held: dict[int, Tensor] = {node: coefficients}
        remainders = {i: torch.zeros(count, len(wide)) for i, wide in self.wide.items()}
        for position in reversed(self.graph.ancestors[node][1:]):
            row = held.pop(position, None)
            if row is None:
                continue
            op = self.graph.nodes[position].op
            if isinstance(op, Linear):
                if op.offset is not None:
                    constant = constant + (row * op.offset).flatten(1).sum(1)
                found = op.adjoint(row)
            elif isinstance(op, Joint):
                tangent = self.relaxation.tangent(position, torch.float32)
                constant = constant + (row * tangent.middle).flatten(1).sum(1)
                remainders[position] = (row * tangent.radius).flatten(1)[:, self.wide[position]]
                found = tuple(a.squeeze(0) for a in tangent.adjoint(row.unsqueeze(0)))
            elif position in self.strips:
                strip = self.strips[position]
                constant = constant + (row * strip.middle.float()).flatten(1).sum(1)
                remainders[position] = (row * strip.radius.float()).flatten(1)[:, self.wide[position]]
                found = tuple(row * slope.float() for slope in strip.slopes)
            else:
                flat = row.flatten(1)
                if position in self.sites:
                    site = self.sites[position]
                    hinges[:, site.place] = flat[:, site.entries]
                found = ((flat * self.hinges.straight[position]).reshape(row.shape),)
            for i, a in zip(self.graph.nodes[position].inputs, found, strict=True):
                held[i] = held[i] + a if i in held else a
        slope = held.pop(0, torch.zeros(count, len(self.centre))).flatten(1)
        if shift is not None:
            slope = slope + shift.flatten(1)
        moving = torch.cat([(slope * self.radius)[:, self.free], *remainders.values()], 1)
        return Forms(moving, hinges, constant + slope @ self.centre)

    def _radius(self, position: int) -> Tensor:
        around = self.strips[position] if position in self.strips else self.relaxation.tangent(position, torch.float32)
        return around.radius.float().flatten()
