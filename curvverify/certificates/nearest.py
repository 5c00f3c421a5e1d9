"""The largest radius directly: the closest counterexample and the best dual radius of every margin, found together.

The sphere's radius moves by Newton's method on the smallest value over it, whose derivative is -eta r; the iterates are
those of `ball_box`.  At (x, eta) every y of the domain with h(y) <= 0 has eta/2 ||y - x0||^2 >= the dual bound, which
is a radius.  Where eta settles above the bend, radius and counterexample meet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.certificates.ball_box import FLOOR, Problem, on_sphere
from curvverify.certificates.evaluate import Evaluator

CLOSED = 1e-4
"""Radius and counterexample this close (relative) have met."""

OVERSHOOT = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Counterexamples are sought where the margin is so far below 0, relative to the scores."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """Estimates for N margins."""

    displacement: Tensor
    """(N, n), of the best dual radius."""
    multiplier: Tensor
    radius: Tensor
    """(N), at least `known`."""
    attack: Tensor
    """(N, n)."""
    distance: Tensor
    """(N) of the attack, inf where none was found."""


@dataclass(eq=False)
class _Search:
    """The state of all margins; `least` is the smallest multiplier that proves anything."""

    evaluator: Evaluator
    problem: Problem
    best: Nearest
    reach: Tensor
    dtype: torch.dtype

    def __post_init__(self) -> None:
        p, dtype = self.problem, self.dtype
        self.centre, self.bend, self.top = p.centre.to(dtype), p.bend.to(dtype), p.top.to(dtype)
        self.low, self.high = (t.to(dtype) for t in p.box(self.reach))
        self.rho = torch.maximum(0.5 * self.top, 1e-3 * self.bend).clamp(min=1e-12)
        self.adaptive = torch.zeros_like(self.rho, dtype=torch.bool)
        self.least = self.bend * (1.0 + FLOOR) + 1e-9
        self.over = OVERSHOOT[dtype] * (1.0 + self.evaluator.magnitude)

    def limit(self) -> Tensor:
        """(N) distance of the closest counterexample known for the margin's sample."""
        closest = torch.full((int(self.problem.sample.max()) + 1,), torch.inf, dtype=self.best.distance.dtype)
        closest.scatter_reduce_(0, self.problem.sample, self.best.distance, "amin")
        return closest[self.problem.sample]

    def run(self, radius: Tensor, d: Tensor, steps: int, floor: bool) -> tuple[Tensor, Tensor]:
        """(radius, d) after the steps: of the sphere and on it."""
        active = (self.best.radius < self.limit() * (1.0 - CLOSED)).nonzero().squeeze(1)
        r, d = radius.clone(), d.clone()
        if floor:
            active = active[self.bend[active].isfinite()]
        first = not floor
        before = d[active], d[active]
        eta = self.least.clone()
        for _ in range(steps):
            if not len(active):
                break
            a, b, here = self.low[active], self.high[active], d[active]
            h, g = self.evaluator.search(self.centre[active] + here, self.problem.rows[active])
            self._attacks(active, here, h)
            if not first:
                self._radii(active, here, h, g, eta[active].maximum(self.least[active]), a, b)
                if not floor:
                    r[active] = self._moved(r[active], h, eta[active], active)
            if first:
                self._soften(active, torch.linalg.vector_norm(g, dim=1) / r[active])
            elif not floor:
                self._follow(active, here - before[0], g - before[1])
            rho = self.rho[active]
            q = -g if first else rho[:, None] * here - g
            most = (self.least[active] + rho).reciprocal() if floor else torch.full_like(rho, 1e9)
            most = torch.minimum(most, (1e-3 * rho + rho).reciprocal()) if not first and not floor else most
            new, s = on_sphere(q, a, b, r[active], most)
            eta[active] = s.reciprocal() + (self.bend[active] if first else -rho)
            if first:
                self._radii(active, here, h, g, eta[active].maximum(self.least[active]), a, b)
                eta[active] = s.reciprocal()
            change = (new - here).abs().amax(1)
            d[active] = new
            first = False
            limit = self.limit()[active]
            stalled = (change < 1e-6 * r[active]) & (floor | (h.abs() < 3 * self.over))
            done = self.best.radius[active] >= torch.minimum(limit, self.reach[active]) * (1.0 - CLOSED)
            keep = ~done & ~stalled & h.isfinite()
            before = here[keep], g[keep]
            active = active[keep]
        return r, d

    def _soften(self, active: Tensor, typical: Tensor) -> None:
        """Where half the proved curvature is far above gradient over radius, the step size follows what is met."""
        much = self.rho[active] > 4.0 * typical
        self.adaptive[active] = much
        self.rho[active] = torch.where(much, 0.5 * typical, self.rho[active])

    def _follow(self, active: Tensor, moved: Tensor, turned: Tensor) -> None:
        """Half the curvature along the last step, if that is larger, for margins without a useful constant."""
        met = 0.5 * torch.linalg.vector_norm(turned, dim=1) / torch.linalg.vector_norm(moved, dim=1).clamp(min=1e-30)
        new = torch.maximum(met, 0.8 * self.rho[active])
        self.rho[active] = torch.where(self.adaptive[active] & new.isfinite(), new, self.rho[active])

    def _moved(self, r: Tensor, h: Tensor, eta: Tensor, active: Tensor) -> Tensor:
        """Newton's step towards h = -over, damped, and not past the counterexample known for the sample."""
        step = (h + self.over) / (eta.clamp(min=1e-9) * r)
        moved = (r + step).maximum(0.75 * r).minimum(1.35 * r)
        return torch.minimum(moved, torch.minimum(self.limit()[active].to(r.dtype), self.reach[active].to(r.dtype)))

    def _attacks(self, active: Tensor, d: Tensor, h: Tensor) -> None:
        distance = torch.linalg.vector_norm(d, dim=1).double()
        mask = (h < -0.25 * self.over) & (distance < self.best.distance[active])
        index = active[mask]
        self.best.attack[index], self.best.distance[index] = d[mask].double(), distance[mask]

    def _radii(self, active: Tensor, d: Tensor, h: Tensor, g: Tensor, eta: Tensor, low: Tensor, high: Tensor) -> None:
        """The dual radius at (d, eta): sqrt(2 / eta times the bound with radius 0)."""
        G = g + eta.unsqueeze(1) * d
        sigma = (eta - self.bend[active]).unsqueeze(1)
        q = (-G / sigma).maximum(low - d).minimum(high - d)
        bound = h + 0.5 * eta * d.square().sum(1) + ((G + 0.5 * sigma * q) * q).sum(1)
        found = (2.0 * bound.clamp(min=0.0) / eta).sqrt().double()
        mask = found > self.best.radius[active]
        index = active[mask]
        self.best.displacement[index], self.best.multiplier[index] = d[mask].double(), eta[mask].double()
        self.best.radius[index] = found[mask]


def nearest(
    evaluator: Evaluator,
    problem: Problem,
    known: Tensor,
    guess: Tensor,
    reach: Tensor,
    *,
    steps: int = 60,
    dtype: torch.dtype = torch.float32,
) -> Nearest:
    """Radius and counterexample of every margin, searched within `reach` (N); `known` (N) radii are proved already.

    `guess` (N) is where the search starts, such as margin / slope.  Margins that cannot decide their sample's radius
    are given up early.
    """
    N, n = problem.centre.shape
    zero = torch.zeros(N, n, dtype=torch.float64)
    best = Nearest(
        zero.clone(),
        torch.full((N,), torch.inf, dtype=torch.float64),
        known.clone(),
        zero.clone(),
        torch.full((N,), torch.inf, dtype=torch.float64),
    )
    search = _Search(evaluator, problem, best, reach, dtype)
    start = torch.minimum(torch.maximum(guess, known), reach).to(dtype)
    radius, d = search.run(start, zero.to(dtype), steps, floor=False)
    search.run(radius, d, steps, floor=True)
    return best
