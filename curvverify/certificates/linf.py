"""Certified l_inf radii of a batch: Taylor with box curvature, then linear bounds on the box itself, by bisection.

Over the cube of half-width r, h >= h(x0) - r ||grad h(x0)||_1 - r^2 / 2 sup |d^T Hessian d|, ||d||_inf <= 1.  Linear
bounds are proved on the cube intersected with the domain, for all samples of a batch and all their margins at once.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.rows import difference_rows
from curvverify.bounding.linear import Effort, linear_bounds, row_bounds
from curvverify.bounding.substitution import Rows
from curvverify.certificates.closed_form import attack_radius, lipschitz_radius, taylor_radius
from curvverify.certificates.evaluate import ROUND, Enclosed, Evaluator
from curvverify.certificates.pairs import PairTable
from curvverify.certificates.record import RadiusOptions, SampleRadius, is_exact
from curvverify.certificates.witness import Confirmer, descended
from curvverify.numerics.rounding import gamma, round_down, round_up
from curvverify.types import Interval

STEPS = {"fast": 0, "normal": 9, "high": 14}
"""Bisection steps, for radii and for attacks."""

GROWTH = 4.0


@dataclass(eq=False)
class LinfCertifier:
    """Certifies batches of samples of one network."""

    evaluator: Evaluator
    table: PairTable
    confirmer: Confirmer
    options: RadiusOptions

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
            self._linear(x, y, right, rows.reshape(len(right), K - 1, K), certified, attacked, method)
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
            finite = high.isfinite()
            r = radii[step] if radii else torch.where(finite, (low * high).sqrt(), low * GROWTH)
            box = (self.confirmer.low - x[right], self.confirmer.high - x[right])
            d = descended(self.evaluator, x[right], y[right], r, box, "linf", starts=2, seed=self.options.seed)
            for k, b in enumerate(right.tolist()):
                found = self.confirmer.confirm(x[b], d[k], int(y[b]), float(r[k]))
                if found is not None:
                    attacked[b] = min(float(attacked[b]), found.distance)
                    high[k] = min(float(high[k]), found.distance)
                else:
                    low[k] = max(float(low[k]), float(r[k]))

    def _linear(
        self,
        x: Tensor,
        y: Tensor,
        right: Tensor,
        rows: Tensor,
        certified: Tensor,
        attacked: Tensor,
        method: list[str],
    ) -> None:
        """Linear bounds on cubes: at the radii asked for, or by bisection between what is proved and attacked."""
        low, high = certified[right].clone(), attacked[right].clone()
        radii = sorted(self.options.eps, reverse=True)
        for step in range(len(radii) or STEPS[self.options.effort]):
            if radii:
                r = torch.full_like(low, radii[step])
            else:
                start = torch.where(high.isfinite(), (low.clamp(min=1e-6) * high).sqrt(), GROWTH * low.clamp(min=1e-6))
                r = torch.where(low > 0, start, torch.minimum(start, 0.5 * high))
            todo = ((r > low) & (r < high) & (high > low * (1 + 1e-3))).nonzero().squeeze(1)
            if not len(todo):
                continue
            holds = self._holds(x[right[todo]], rows[todo], r[todo])
            for k, ok in zip(todo.tolist(), holds.tolist(), strict=True):
                b = int(right[k])
                if ok:
                    low[k] = certified[b] = float(r[k])
                    method[b] = "linear"
                elif not radii:
                    high[k] = min(float(high[k]), float(r[k]))

    def _holds(self, x: Tensor, rows: Tensor, r: Tensor) -> Tensor:
        """Whether all margins (B, K - 1, K) are proved positive on the cubes of half-width r (B) around x (B, n)."""
        wide = r.unsqueeze(1)
        graph = self.evaluator.graph
        shape = (len(x), *graph.input_shape)
        lower = torch.maximum(round_down(x - wide), self.confirmer.low).reshape(shape)
        upper = torch.minimum(round_up(x + wide), self.confirmer.high).reshape(shape)
        relaxation = linear_bounds(graph, Interval(lower, upper), Effort())
        wanted = Rows(rows.reshape(len(x), -1, *graph.output_shape))
        bounds = row_bounds(relaxation, graph.output, wanted, Effort())
        return (bounds.lower > 0.0).all(1)


def _one_norms(at: Enclosed) -> tuple[Tensor, Tensor]:
    """Bounds (N) from above and below on the gradients' l_1 norms.  ||e||_1 <= sqrt(n) ||e||_2."""
    n = at.gradient.shape[1]
    size = at.gradient.abs().sum(1)
    slack = math.sqrt(n) * ROUND * at.error + gamma(n + 4) * size
    return (size + slack) * ROUND, (size - slack * ROUND).clamp(min=0.0)
