"""The property checker: bounds on the rows that open disjuncts ask for, over a batch of subproblems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from curvverify.bounding.interval import interval_bounds
from curvverify.bounding.linear import Effort, RowBounds, linear_bounds, optimised_row_bounds
from curvverify.bounding.relaxation import Part, Relaxation
from curvverify.errors import UsageError
from curvverify.graph.layers import Graph
from curvverify.numerics.rounding import round_down
from curvverify.ops.linear import Dense
from curvverify.types import Deadline, Interval
from curvverify.verification.bound_methods import NODE_SHARE, BoundMethod, RowProblem
from curvverify.verification.property import Property
from curvverify.verification.state import Subproblems

PROPERTY = -1
"""Where a relaxation keeps the state of the property's own rows."""


@dataclass(frozen=True, eq=False)
class Checked:
    """Subproblems after a bound, with the distinct rows that were bounded and their linear forms."""

    problems: Subproblems
    rows: Tensor
    bounds: RowBounds
    relaxation: Relaxation

    def unsettled(self, remember: bool) -> Checked:
        """The subproblems that are still open; `remember` what helps to bound parts of them."""
        return self._some(self.problems.unsettled, remember)

    def __getitem__(self, index: Tensor) -> Checked:
        """Some of the subproblems."""
        return self._some(index, True)

    def _some(self, index: Tensor, remember: bool) -> Checked:
        return Checked(self.problems[index], self.rows, self.bounds[index], self.relaxation.select(index, remember))


@dataclass(frozen=True, eq=False)
class Checker:
    """Bounds one property of one network; every method returns proved margins only."""

    graph: Graph
    property: Property

    def interval(self, problems: Subproblems) -> Subproblems:
        """Refute disjuncts by interval bounds on the outputs."""
        y = interval_bounds(self.graph, self.box(problems))[-1]
        rows = self.property.wanted(problems.group, problems.open)
        flat = Interval(y.lower.flatten(1), y.upper.flatten(1))
        lower = Dense(self.property.output[rows]).interval(flat).lower
        if self.property.input is not None:
            lower = round_down(lower + Dense(self.property.input[rows]).interval(problems.box).lower)
        return self._settle(problems, rows, lower, y)

    def linear(
        self,
        problems: Subproblems,
        effort: Effort,
        row_iterations: int,
        part: Part | None = None,
    ) -> Checked:
        """Refute disjuncts by linear bounds, the property's own rows with more Frank-Wolfe iterations."""
        part = part or Part()
        nodes = replace(effort, deadline=effort.deadline.sooner(NODE_SHARE * effort.deadline.remaining))
        relaxation = linear_bounds(self.graph, self.box(problems), nodes, part=part)
        rows = self.property.wanted(problems.group, problems.open)
        wanted = self.property.select_rows(rows, self.graph.output_shape, self.graph.input_shape)
        row_effort = replace(effort, iterations=row_iterations)
        numbers = rows.expand(len(problems), -1)
        start = part.states.get(PROPERTY)
        bounds = optimised_row_bounds(
            relaxation,
            self.graph.output,
            wanted,
            row_effort,
            partial(self._settles, problems, rows, relaxation.intervals[-1]),
            None if start is None else start.of(numbers),
        )
        relaxation.keep(PROPERTY, len(self.property.output), [(numbers, bounds.state)])
        settled = self._settle(problems, rows, bounds.lower, relaxation.intervals[-1])
        return Checked(settled, rows, bounds, relaxation)

    def by_method(self, problems: Subproblems, method: BoundMethod, memory: float, deadline: Deadline) -> Subproblems:
        """Refute disjuncts by the method's bounds alone, as far as they are finite; UsageError for a wrong shape."""
        box, rows = self.box(problems), self.property.wanted(problems.group, problems.open)
        y = interval_bounds(self.graph, box)[-1]
        shift = None if self.property.input is None else self.property.input[rows]
        enough = partial(self._settles, problems, rows, y)
        problem = RowProblem(self.graph, box, self.property.output[rows], shift, deadline, memory, enough)
        lower = method.lower(problem)
        wanted = (len(problems), len(rows))
        if not isinstance(lower, Tensor) or lower.shape != wanted or lower.dtype != torch.float64:
            got = f"{lower.dtype} {tuple(lower.shape)}" if isinstance(lower, Tensor) else type(lower).__name__
            raise UsageError(
                f"bound method {method.name!r} returned {got}: a float64 tensor {wanted} is wanted, (B, R)"
            )
        return self._settle(problems, rows, torch.where(lower.isfinite(), lower, -torch.inf), y)

    def _settles(self, problems: Subproblems, rows: Tensor, y: Interval, lower: Tensor) -> bool:
        """Whether the bounds refute everything, the output's range being y."""
        return not bool(self._settle(problems, rows, lower, y).open.any())

    def slack(self, problems: Subproblems, rows: Tensor, output: Interval) -> Tensor:
        """How much (B, R) the rows may be off because their decimals are not float64 numbers."""
        return self.property.coefficient_slack(rows, output.magnitude.flatten(1), problems.box.magnitude)

    def settled(self, problems: Subproblems, rows: Tensor, lower: Tensor) -> Subproblems:
        """The problems with proved lower bounds (B, R) on the distinct rows of those positions, `slack` taken off."""
        every = torch.full((len(problems), len(self.property.output)), -torch.inf, dtype=torch.float64)
        every[:, rows] = lower.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        return problems.proved(self.property.margins(problems.group, every))

    def _settle(self, problems: Subproblems, rows: Tensor, lower: Tensor, output: Interval) -> Subproblems:
        return self.settled(problems, rows, lower - self.slack(problems, rows, output))

    def box(self, problems: Subproblems) -> Interval:
        """The subproblems' boxes in the shape of the network's input."""
        shape = (-1, *self.graph.input_shape)
        return Interval(problems.box.lower.reshape(shape), problems.box.upper.reshape(shape))
