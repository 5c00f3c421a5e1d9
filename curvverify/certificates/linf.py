"""Certified l_inf radii of a batch: Taylor with box curvature, then linear and coupled bounds on the box itself.

Over the cube of half-width r, h >= h(x0) - r ||grad h(x0)||_1 - r^2 / 2 sup |d^T Hessian d|, ||d||_inf <= 1.  Linear
and coupled bounds hold on the cube intersected with the domain.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.rows import difference_rows
from curvverify.certificates.closed_form import attack_radius, lipschitz_radius, taylor_radius
from curvverify.certificates.evaluate import ROUND, Enclosed, Evaluator
from curvverify.certificates.pairs import PairTable
from curvverify.certificates.record import RadiusOptions, SampleRadius, is_exact
from curvverify.certificates.region_bounds import Bracket, RegionBounds
from curvverify.certificates.witness import Confirmer, descended
from curvverify.numerics.rounding import gamma

STEPS = {"fast": 0, "normal": 9, "high": 14}
"""Bisection steps, for radii and for attacks."""

GROWTH = 4.0

FURTHER = 10.0
"""Bounds are tried up to this many times margin / slope where no counterexample is known."""


@dataclass(eq=False)
class LinfCertifier:
    """Certifies batches of samples of one network."""

    evaluator: Evaluator
    table: PairTable
    confirmer: Confirmer
    options: RadiusOptions
    bounds: RegionBounds | None

    @torch.no_grad()
    def batch(self, x: Tensor, y: Tensor) -> list[SampleRadius]:
        """Radii of the samples x (B, n), float64, of classes y (B)."""
        started = time.perf_counter()
        scores = self.evaluator.scores(x)
        predicted = scores.argmax(1)
        right = (predicted == y).nonzero().squeeze(1)
        B, K = len(x), self.evaluator.classes
        zero, inf = torch.zeros(B, dtype=torch.float64), torch.full((B,), torch.inf, dtype=torch.float64)
        certified, attacked = zero.clone(), torch.where(predicted == y, inf, zero)
        first, second, certain = zero.clone(), zero.clone(), attacked.clone()
        method = ["misclassified"] * B
        if len(right):
            t = torch.arange(K).expand(len(right), K)[torch.arange(K) != y[right, None]]
            labels = y[right].repeat_interleave(K - 1)
            rows = difference_rows(K, labels, t)
            at = self.evaluator.enclose(x[right], rows, torch.arange(len(right)).repeat_interleave(K - 1))
            L, bend, top = self.table.of(labels, t)
            upper, lower = _one_norms(at)
            least = [lipschitz_radius(at.lower, L), taylor_radius(at.lower, upper, bend)]
            first[right], second[right] = (r.reshape(len(right), -1).amin(1) for r in least)
            certain[right] = attack_radius(at.upper, lower, top).reshape(len(right), -1).amin(1)
            certified[right] = torch.maximum(*least).reshape(len(right), -1).amin(1)
            for b in right.tolist():
                method[b] = "none" if not certified[b] > 0 else "taylor" if second[b] >= first[b] else "lipschitz"
            self._attack(x, y, right, certified, attacked)
            margin, reach = (t.reshape(len(right), -1) for t in (at.lower, at.lower / upper.clamp(min=1e-12)))
            shaped = rows.reshape(len(right), K - 1, K)
            self._bounded(x[right], right, shaped, margin, reach, certified, attacked, method)
            if self.options.attack:
                self._descend(x, y, right, certified[right], attacked)
        seconds = (time.perf_counter() - started) / B
        columns = (y, predicted, certified, attacked, first, second, certain)
        found = []
        for b, (label, p, c, a, one, two, sure) in enumerate(zip(*(v.tolist() for v in columns), strict=True)):
            found.append(SampleRadius(label, p, c, a, method[b], is_exact(c, a), one, two, sure, seconds))
        return found

    def _attack(self, x: Tensor, y: Tensor, right: Tensor, certified: Tensor, attacked: Tensor) -> None:
        """Counterexamples by bisection over the radius, or within the radii asked for."""
        low = certified[right].clamp(min=1e-6)
        high = torch.full_like(low, torch.inf)
        radii = [torch.full_like(low, e) for e in sorted(self.options.eps, reverse=True)]
        for step in range(len(radii) or STEPS[self.options.effort]):
            r = radii[step] if radii else torch.where(high.isfinite(), (low * high).sqrt(), low * GROWTH)
            found = self._descend(x, y, right, r, attacked)
            high, low = torch.where(found, attacked[right], high), torch.where(found, low, torch.maximum(low, r))

    def _descend(self, x: Tensor, y: Tensor, right: Tensor, r: Tensor, attacked: Tensor) -> Tensor:
        """Whether there is a counterexample within r (b) of the correct samples; the closest are taken over."""
        box = (self.confirmer.low - x[right], self.confirmer.high - x[right])
        d = descended(self.evaluator, x[right], y[right], r, box, "linf", starts=2, seed=self.options.seed)
        met = torch.zeros(len(right), dtype=torch.bool)
        for k, b in enumerate(right.tolist()):
            found = self.confirmer.confirm(x[b], d[k], int(y[b]), float(r[k]))
            if found is not None:
                attacked[b], met[k] = min(float(attacked[b]), found.distance), True
        return met

    def _bounded(
        self,
        x: Tensor,
        right: Tensor,
        rows: Tensor,
        margin: Tensor,
        reach: Tensor,
        certified: Tensor,
        attacked: Tensor,
        method: list[str],
    ) -> None:
        """Linear and coupled bounds on cubes: at the radii asked for, or in search of the largest.

        margin (b, K - 1) are the margins at the samples, reach what they are over their gradients' l_1 norms.
        """
        if self.bounds is None:
            return

        def note(k: int, radius: float, name: str) -> None:
            b = int(right[k])
            if radius > float(certified[b]):
                certified[b], method[b] = radius, name

        for eps in sorted(self.options.eps, reverse=True):
            left = ((certified[right] < eps) & (attacked[right] > eps)).nonzero().squeeze(1)
            nothing = torch.zeros(len(left), rows.shape[1], dtype=torch.bool)
            names = self.bounds.decided(x[left], rows[left], eps, nothing, self.options.effort) if len(left) else []
            for k, name in zip(left.tolist(), names, strict=True):
                if name is not None:
                    note(k, eps, name)
        if not self.options.eps:
            known = certified[right]
            limit = torch.where(
                attacked[right].isfinite(), attacked[right], torch.maximum(FURTHER * reach.amin(1), known)
            )
            self.bounds.largest(x, rows, Bracket.of(margin.amin(1), known, limit), self.options.effort, note)


def _one_norms(at: Enclosed) -> tuple[Tensor, Tensor]:
    """Bounds (N) from above and below on the gradients' l_1 norms.  ||e||_1 <= sqrt(n) ||e||_2."""
    n = at.gradient.shape[1]
    size = at.gradient.abs().sum(1)
    slack = math.sqrt(n) * ROUND * at.error + gamma(n + 4) * size
    return (size + slack) * ROUND, (size - slack * ROUND).clamp(min=0.0)
