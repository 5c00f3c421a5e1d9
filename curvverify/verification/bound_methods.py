"""Bound methods: lower bounds on a property's rows over input boxes, ours and anybody's own, in one checker."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from curvverify.bounding.constants.analysis import analyse
from curvverify.bounding.constants.report import setting_over
from curvverify.bounding.constants.setting import Setting, Structure
from curvverify.bounding.interval import interval_bounds
from curvverify.bounding.linear import Effort, linear_bounds, optimised_row_bounds
from curvverify.bounding.region import Region
from curvverify.bounding.relaxation import Part, Relaxation
from curvverify.bounding.substitution import Rows
from curvverify.certificates.evaluate import ROUND, TINY, Evaluator, length
from curvverify.errors import UsageError
from curvverify.graph.layers import Graph
from curvverify.numerics.rounding import gamma, round_down, round_up
from curvverify.ops.linear import Dense
from curvverify.types import Deadline, Interval
from curvverify.verification.options import Options

NODE_SHARE = 0.6
"""Share of the remaining time that bounds on intermediate nodes may take; the rest is for the property's own rows."""


@dataclass(frozen=True, eq=False)
class RowProblem:
    """min over x in box b of output_r . f(x) + input_r . x, for R rows and each of B boxes."""

    graph: Graph
    """f in float64: any nodes before the output, `graph(x)` for x (N, *S_in)."""
    box: Interval
    """B boxes (B, *S_in), float64."""
    output: Tensor
    """(R, m), over the flat output."""
    input: Tensor | None
    """(R, n), over the flat input; None where no row has any."""
    deadline: Deadline
    """When to return, with -inf for what there was no time for."""
    memory: float = 8.0
    """GiB."""
    enough: Callable[[Tensor], bool] = lambda lower: False
    """Whether these bounds (B, R) refute everything already, so that better ones are of no use."""

    @property
    def rows(self) -> Rows:
        """The rows as coefficients of the output node."""
        shift = None if self.input is None else self.input.reshape(1, -1, *self.graph.input_shape)
        return Rows(self.output.reshape(1, -1, *self.graph.output_shape), shift)


@runtime_checkable
class BoundMethod(Protocol):
    """Something that bounds rows of a network's output from below: what the checker can decide a query with.

    Class attributes will do for `name`; `lower` is called without gradients.  The checker subtracts what the decimals
    of the property may be off by; whatever else rounding may take is the method's own to subtract.
    """

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def lower(self, problem: RowProblem) -> Tensor:
        """(B, R): for every box and row, a number that no point of the box is below; -inf and NaN say nothing."""
        ...


@dataclass(frozen=True)
class IntervalBound:
    """Interval arithmetic forward."""

    name: str = "interval"

    def lower(self, problem: RowProblem) -> Tensor:
        """The row's interval over the output's.  Sound because: every step is rounded outward."""
        y = interval_bounds(problem.graph, problem.box)[-1]
        lower = Dense(problem.output).interval(Interval(y.lower.flatten(1), y.upper.flatten(1))).lower
        if problem.input is None:
            return lower
        x = Interval(problem.box.lower.flatten(1), problem.box.upper.flatten(1))
        return round_down(lower + Dense(problem.input).interval(x).lower)


@dataclass(frozen=True)
class LinearBound:
    """Backward substitution of supporting lines, which Frank-Wolfe moves for so many iterations, see `bounding.linear`.

    One iteration is plain CROWN with lines at the middle of every range; otherwise the rows get twice as many.  With
    `coupling` levels the curvature of the activations of so many levels is bounded together.
    """

    iterations: int = 1
    coupling: int = 0
    name: str = "linear"

    def lower(self, problem: RowProblem) -> Tensor:
        """The best over all iterations; the plain bounds come first, so that a deadline never leaves less."""
        first, relaxation = self._pass(problem, 1, 0, Part())
        if (self.iterations == 1 and not self.coupling) or problem.deadline.passed or problem.enough(first):
            return first
        part = Part(dict(enumerate(relaxation.intervals)))
        return torch.fmax(first, self._pass(problem, self.iterations, self.coupling, part)[0])

    def _pass(self, problem: RowProblem, iterations: int, coupling: int, part: Part) -> tuple[Tensor, Relaxation]:
        deadline = problem.deadline
        effort = Effort(iterations, problem.memory, deadline, coupling)
        nodes = replace(effort, deadline=deadline.sooner(NODE_SHARE * deadline.remaining))
        relaxation = linear_bounds(problem.graph, problem.box, nodes, part=part)
        effort = replace(effort, iterations=1 if iterations == 1 else 2 * iterations)
        rows = optimised_row_bounds(relaxation, problem.graph.output, problem.rows, effort, problem.enough)
        return rows.lower, relaxation


@dataclass(frozen=True)
class TaylorBound:
    """Second-order expansion at the centre x0 of the box of radii r: value, gradient, and a bound on the Hessian.

    h(x) >= h(x0) + g.d - 1/2 c(d) on |d| <= r, with -c(d) below d^T Hessian d anywhere on the box: lambda ||d||^2, with
    the curvature measured in x itself (spectral), or lambda ||d / r||^2 <= lambda n and lambda' ||d / r||_inf^2 with
    the curvature measured in units of the radii (diagonal).  The least of the three for every row; nothing where the
    curvature is not finite, such as at a ReLU that is not stable on the box.
    """

    name: str = "taylor"

    def lower(self, problem: RowProblem) -> Tensor:
        """Sound because: value and gradient are enclosed at a float64 point, the eigenvalues of the Hessian rigorous
        for every form, and sums of absolute terms enlarged by ROUND."""
        structure = Structure(problem.graph)
        shape = len(problem.box.lower), len(problem.output)
        found = torch.full(shape, -torch.inf, dtype=torch.float64)
        for b in range(shape[0]):
            if problem.deadline.passed:
                break
            found[b] = _taylor(structure, problem, problem.box[b])
        return found


def _taylor(structure: Structure, problem: RowProblem, box: Interval) -> Tensor:
    """(R,) for one box (*S_in)."""
    nothing = torch.full((len(problem.output),), -torch.inf, dtype=torch.float64)
    if not bool(box.lower.isfinite().all() and box.upper.isfinite().all()):
        return nothing
    x0 = box.centre
    radius = torch.where(box.lower < box.upper, round_up(torch.maximum(box.upper - x0, x0 - box.lower)), 0.0)
    price = _curvature_price(structure, problem, Region(box), radius)
    point, r = x0.reshape(1, -1), radius.flatten()
    at = Evaluator(structure).enclose(point, problem.output, torch.zeros(len(problem.output), dtype=torch.long))
    value, gradient = at.lower, at.gradient
    if problem.input is not None:
        terms = problem.input * point
        slack = gamma(terms.shape[1] + 4) * terms.abs().sum(1)
        value = round_down(round_down(value + terms.sum(1)) - ROUND * slack)
        gradient = gradient + problem.input
    drop = (gradient.abs() * r).sum(1) + at.error * length(r.unsqueeze(0)) + 0.5 * price
    return round_down(value - ROUND**2 * drop - TINY).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def _curvature_price(structure: Structure, problem: RowProblem, region: Region, radius: Tensor) -> Tensor:
    """(R,): upper bounds on -d^T Hessian d over all |d| <= r and all points of the box, at least 0."""
    effort = Effort(memory=problem.memory, deadline=problem.deadline)
    setting = setting_over(structure, region, effort=effort)
    free = radius > 0
    forms: list[tuple[Setting, float]] = [
        (replace(setting, scale=free.to(torch.float64)), float(length(radius.reshape(1, -1))) ** 2),
        (replace(setting, scale=radius), float(free.sum())),
        (replace(setting, scale=radius, norm=math.inf), 1.0),
    ]
    best = torch.full((len(problem.output),), torch.inf, dtype=torch.float64)
    for form, square in forms:
        if problem.deadline.passed:
            break
        least = analyse(form).of_rows(problem.output).lower.clamp(max=0.0)
        amount = ROUND * -least * square if square else torch.zeros_like(least)
        best = torch.fmin(best, amount)
        if not bool(best.isfinite().any()):
            break  # a kink: in no units is its curvature finite
    return best


def _named(options: Options) -> dict[str, BoundMethod]:
    return {
        "interval": IntervalBound(),
        "linear": LinearBound(),
        "optimised": LinearBound(options.refine_iterations, name="optimised"),
        "taylor": TaylorBound(),
    }


STAGED: dict[str, dict[str, object]] = {
    "coupled": {"branch": False, "coupling_inputs": 0},
    "uncoupled": {"coupling": False},
    "branching": {},
}
"""Methods that are the verifier's own stages, by the options that make them: all bounds up to coupled ones without
branching; branching without coupling; everything."""

METHODS = (*_named(Options()), *STAGED)
"""Every method by name: bounds alone, then the verifier's stages."""


def method_of(method: str | BoundMethod | None, options: Options) -> tuple[BoundMethod | None, Options]:
    """The bound that decides alone, None for the verifier's own stages; and the options that go with it.

    `method` is one of METHODS, MODULE:NAME of a bound method or of a class of them, or a bound method itself.
    UsageError for an unknown name, and for what is no bound method.
    """
    if method is None or (isinstance(method, str) and method in STAGED):
        return None, replace(options, **STAGED[method or "branching"])  # type: ignore[arg-type]
    named = _named(options)
    if not isinstance(method, str):
        return _checked(method, repr(method)), options
    if method in named:
        return named[method], options
    if ":" not in method:
        raise UsageError(
            f"unknown method {method!r}: choose from {', '.join(METHODS)}, or write MODULE:NAME for your own"
        )
    module, _, name = method.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"method {method!r}: {error}; it is looked for as MODULE:NAME on Python's path") from error
    return _checked(found() if isinstance(found, type) else found, method), options


def _checked(found: object, what: str) -> BoundMethod:
    if not isinstance(found, BoundMethod) or not isinstance(found.name, str):
        raise UsageError(
            f"{what} is no bound method: it needs a `name` and `lower(problem)`, see curvverify.BoundMethod"
        )
    return found
