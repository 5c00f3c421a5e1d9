"""The smallest value of a margin over an l_2 ball intersected with a box: convex dual, its proof, and the attack.

For y in the ball and eta >= 0, h(y) >= F(y) = h(y) + eta/2 (||y - x0||^2 - r^2); where -bend I <= Hessian, at any x,

    F(y) >= F(x) + G.q + (eta - bend)/2 ||q||^2,      q = y - x,  G = grad h(x) + eta (x - x0),

which is separable over a box and minimised exactly.  No convergence is needed for that; a converged x with eta >= bend
loses nothing.  The step d <- clip(s (rho d - grad h)), rho = top / 2, has s so that d lies on the sphere, which gives
the multiplier eta = 1/s - rho; every iterate lies in ball and box, and is an attack where h < 0.

Source: the dual for a ball is that of Singla and Feizi, ICML 2020; the box, exact eta and separable minimum are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvverify.certificates.evaluate import ROUND, Evaluator, length
from curvverify.numerics.rounding import gamma, round_down, round_up

FLOOR = 2e-3
"""The multiplier stays so much (relative) above the bend: below it nothing is proved."""

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-10}
"""What a value must exceed, relative to the scores, before it is worth an exact evaluation."""

STALLED = {torch.float32: 3e-6, torch.float64: 1e-9}
"""Iterations end when no entry moves by more than this share of the radius."""

SPHERE_STEPS = 40


@dataclass(frozen=True, eq=False)
class Problem:
    """N margins h = rows . scores around the points `centre` (N, n), on a domain box.

    -bend I <= Hessian of h <= top I on the whole domain, or on the ball that the caller asks about.
    """

    centre: Tensor
    rows: Tensor
    bend: Tensor
    top: Tensor
    low: Tensor
    """(n), -inf where the domain does not end; likewise `high`.  The centres lie inside."""
    high: Tensor
    sample: Tensor
    """(N): margins of one sample share a number; a counterexample settles all of them."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Problem:
        fields = ("centre", "rows", "bend", "top", "sample")
        return replace(self, **{name: getattr(self, name)[index] for name in fields})

    def box(self, reach: Tensor) -> tuple[Tensor, Tensor]:
        """The displacements (N, n) that domain and the cube of half-width `reach` (N) leave, up to rounding."""
        wide = reach.unsqueeze(1)
        return (self.low - self.centre).maximum(-wide), (self.high - self.centre).minimum(wide)


@dataclass(frozen=True, eq=False)
class Iterate:
    """Of N margins: the best dual point found, and the lowest value of the margin."""

    displacement: Tensor
    """(N, n), of the best bound."""
    multiplier: Tensor
    bound: Tensor
    """(N), an estimate."""
    attack: Tensor
    """(N, n), of the lowest value."""
    value: Tensor
    """(N), an estimate."""


def on_sphere(q: Tensor, low: Tensor, high: Tensor, radius: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """(d, s): d = clip(s q, low, high) of length `radius` (N), or shorter with s = largest (N) where that is reached.

    The length grows with s, and the set of clipped entries too: solve for s with the entries clipped so far, repeat.
    """
    square = radius * radius
    size = torch.linalg.vector_norm(q, dim=1)
    s = torch.minimum(radius / size.clamp(min=1e-30), largest)
    end = torch.where(q > 0, high, low)
    reach = torch.where(q != 0, end / torch.where(q != 0, q, 1.0), torch.inf)  # the s at which an entry is clipped
    ends, parts = end * end, q * q
    for _ in range(SPHERE_STEPS):
        clipped = reach <= s.unsqueeze(1)
        fixed = torch.where(clipped, ends, 0.0).sum(1)
        free = torch.where(clipped, 0.0, parts).sum(1)
        new = ((square - fixed).clamp(min=0.0) / free.clamp(min=1e-30)).sqrt()
        new = torch.where(free > 0.0, new, largest).minimum(largest).maximum(s)
        moved = bool((new > s * (1.0 + 1e-6)).any())
        s = new
        if not moved:
            break
    return torch.minimum(torch.maximum(s.unsqueeze(1) * q, low), high), s


def minimised(
    evaluator: Evaluator,
    problem: Problem,
    radius: Tensor,
    *,
    dtype: torch.dtype,
    steps: int,
    floor: bool = True,
    start: Tensor | None = None,
    enough: float = 0.0,
) -> Iterate:
    """Iterates of all margins until each is proved above `enough`, attacked or stalled; estimates only.

    With the `floor` the multiplier stays above the bend and the bound is sought, without it the lowest value.
    """
    N, n = problem.centre.shape
    centre, bend, top, r = (t.to(dtype) for t in (problem.centre, problem.bend, problem.top, radius))
    low, high = (t.to(dtype) for t in problem.box(radius))
    rho = torch.maximum(0.5 * top, 1e-3 * bend).clamp(min=1e-12)
    least = bend * (1.0 + FLOOR) + 1e-9 if floor else torch.zeros_like(bend)
    inner = r * (1.0 - (2e-7 if dtype == torch.float32 else 1e-12))
    d = torch.zeros(N, n, dtype=dtype) if start is None else start.to(dtype)
    best = Iterate(d.clone(), least.clone(), torch.full_like(r, -torch.inf), d.clone(), torch.full_like(r, torch.inf))
    active = torch.arange(N)
    scale = TOLERANCE[dtype]
    for k in range(steps):
        a, b, here = low[active], high[active], d[active]
        h, g = evaluator.search(centre[active] + here, problem.rows[active])
        first = k == 0 and start is None
        q = -g if first else rho[active, None] * here - g
        most = torch.full_like(h, 1e9) if first else (least[active] + rho[active]).reciprocal()
        new, s = on_sphere(q, a, b, inner[active], most)
        eta = s.reciprocal() + (bend[active] if first else -rho[active])
        eta = eta.maximum(least[active])
        _keep(best, active, here, h, eta, _model(h, g, here, eta, bend[active], r[active], a, b) if floor else None)
        tolerance = scale * (1.0 + evaluator.magnitude)
        moving = (new - here).abs().amax(1) > STALLED[dtype] * r[active]
        settled = best.bound[active] > enough + tolerance
        beaten = problem.sample[active][best.value[active] < -tolerance]
        attacked = torch.isin(problem.sample[active], beaten)
        d[active] = new
        active = active[moving & ~settled & ~attacked & h.isfinite()]
        if not len(active):
            break
    return best


def _model(h: Tensor, g: Tensor, d: Tensor, eta: Tensor, bend: Tensor, r: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The dual bound at (d, eta), rounding aside."""
    G = g + eta.unsqueeze(1) * d
    sigma = (eta - bend).unsqueeze(1)
    q = (-G / sigma).maximum(low - d).minimum(high - d)
    return h + 0.5 * eta * (d.square().sum(1) - r * r) + ((G + 0.5 * sigma * q) * q).sum(1)


def _keep(best: Iterate, active: Tensor, d: Tensor, h: Tensor, eta: Tensor, bound: Tensor | None) -> None:
    if bound is not None:
        better = active[bound > best.bound[active]]
        mask = bound > best.bound[active]
        best.displacement[better], best.multiplier[better], best.bound[better] = d[mask], eta[mask], bound[mask]
    mask = h < best.value[active]
    best.attack[active[mask]], best.value[active[mask]] = d[mask], h[mask]


def proved_value(
    evaluator: Evaluator, problem: Problem, d: Tensor, eta: Tensor, radius: Tensor, reach: Tensor
) -> Tensor:
    """Lower bounds (N) on h(y) + eta/2 (||y - x0||^2 - radius^2) for y in the domain with |y - x0| <= reach.

    Hence on h itself where ||y - x0|| <= radius = reach.  eta > bend, otherwise -inf; d (N, n) any displacement within
    the region on which the bend holds.
    Sound because: of the inequality above with the gradient's error times the largest ||q||; the separable minimum is
    evaluated at a rounded minimiser, which is off by its own rounding squared; every sum errs by gamma_n times the sum
    of its absolute terms, bounded with |q| <= w, the largest move within the box.
    """
    x = problem.centre + d
    h = evaluator.enclose(x, problem.rows)
    D = x - problem.centre
    low = round_down(torch.maximum(problem.low.expand_as(x), round_down(problem.centre - reach.unsqueeze(1))) - x)
    high = round_up(torch.minimum(problem.high.expand_as(x), round_up(problem.centre + reach.unsqueeze(1))) - x)
    sigma = round_down(eta - problem.bend)
    G = h.gradient + eta.unsqueeze(1) * D
    s = sigma.clamp(min=1e-300).unsqueeze(1)
    q = (-G / s).maximum(low).minimum(high)
    wide = torch.maximum(low.abs(), high.abs())
    value = h.lower + 0.5 * eta * (D.square().sum(1) - radius * radius) + ((G + 0.5 * s * q) * q).sum(1)
    terms = ((h.gradient.abs() + (eta.unsqueeze(1) * D).abs() + s * wide) * wide).sum(1)
    terms = terms + h.lower.abs() + eta * (D.square().sum(1) + radius * radius)
    slack = gamma(x.shape[1] + 64) * terms + ROUND * h.error * length(wide) + 1e-300
    found = value - ROUND * slack
    return torch.where((sigma > 0.0) & found.isfinite(), found, -torch.inf)


def proved_radius(evaluator: Evaluator, problem: Problem, d: Tensor, eta: Tensor, reach: Tensor) -> Tensor:
    """Radii (N) of balls in which, within the domain, h > 0; at most `reach`, which must be finite.

    Sound because: h(y) <= 0 with |y - x0| <= reach implies eta/2 ||y - x0||^2 >= the bound with radius 0.
    """
    bound = proved_value(evaluator, problem, d, eta, torch.zeros_like(eta), reach)
    found = (2.0 * bound.clamp(min=0.0) / eta).sqrt() * (1.0 - 1e-15)
    return torch.where(found > 0.0, torch.minimum(found, reach), 0.0)
