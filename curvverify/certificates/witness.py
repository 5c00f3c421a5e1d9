"""Counterexamples: inputs in the region, in float32, that the original model classifies otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.rows import difference_rows
from curvverify.certificates.evaluate import ROUND, Evaluator

Run = Callable[[Tensor], Tensor]
"""The original model's scores (K), float32, at a flat float32 input."""

CLEAR = 1e-12
"""Relative to the scores."""

PUSHES = (1.0, 1.0 + 1e-6, 1.0 + 1e-5, 1.0 + 1e-4)
"""The counterexample is moved so much further out until the original model agrees."""


@dataclass(frozen=True, eq=False)
class Confirmed:
    """An input (n) in float32 whose largest score is not the label's, at that distance of the sample, rounded up."""

    x: Tensor
    distance: float
    predicted: int


def distance_upper(x: Tensor, centre: Tensor, norm: str = "l2") -> float:
    """Upper bound on the distance of two points."""
    move = (x.double() - centre.double()).flatten()
    if norm == "linf":
        return float(move.abs().max()) * (1.0 + 4e-16)
    return float(torch.linalg.vector_norm(move)) * ROUND


@dataclass(frozen=True, eq=False)
class Confirmer:
    """Decides whether a candidate is a counterexample: by the original model's own answer, and over the reals.

    Both, because certificates are about real numbers: next to a decision boundary float32 arithmetic alone may err.
    """

    run: Run
    evaluator: Evaluator
    low: Tensor
    high: Tensor
    norm: str = "l2"

    def confirm(self, centre: Tensor, d: Tensor, label: int, within: float = float("inf")) -> Confirmed | None:
        """The counterexample near centre + d, no further from the centre than `within`; None where there is none."""
        for push in PUSHES:
            x = self._inside(centre, d * push, within)
            if x is None:
                return None
            scores = self.run(x)
            if not bool(scores.isfinite().all()):
                return None
            best = int(scores.argmax())
            if best != label and float(scores[best]) > float(scores[label]) and self._beaten(x, label):
                return Confirmed(x, distance_upper(x, centre, self.norm), best)
        return None

    def _beaten(self, x: Tensor, label: int) -> bool:
        """Whether another score is larger in float64, by more than its rounding."""
        scores = self.evaluator.scores(x.double()[None])[0]
        lead = float(scores.max() - scores[label])
        return lead > CLEAR * (1.0 + float(scores.abs().max()))

    def _inside(self, centre: Tensor, d: Tensor, within: float) -> Tensor | None:
        """centre + d rounded to float32 inside the domain, shortened until it is within the distance."""
        low, high = _inward(self.low, up=True), _inward(self.high, up=False)
        for _ in range(4):
            x = (centre + d).to(torch.float32).maximum(low).minimum(high)
            size = distance_upper(x, centre, self.norm)
            if size <= within:
                return x
            d = d * (within / size) * (1.0 - 1e-7)
        return None


def _inward(bound: Tensor, *, up: bool) -> Tensor:
    """The nearest float32 numbers on the inner side of the domain's bounds."""
    near = bound.to(torch.float32)
    wrong = near.double() < bound if up else near.double() > bound
    return torch.where(wrong, torch.nextafter(near, torch.full_like(near, torch.inf if up else -torch.inf)), near)


def descended(
    evaluator: Evaluator,
    centre: Tensor,
    y: Tensor,
    radius: Tensor,
    box: tuple[Tensor, Tensor],
    norm: str,
    *,
    steps: int = 40,
    starts: int = 4,
    seed: int = 0,
) -> Tensor:
    """Displacements (B, n) inside ball and box at which projected gradient descent got the label's lead lowest.

    The lead is the label's score minus the largest other one; searched in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = (t.float() for t in box)
    x0, r = centre.float(), radius.float().unsqueeze(1)
    best, lowest = torch.zeros_like(x0), torch.full((len(x0),), torch.inf)
    for start in range(starts):
        d = torch.zeros_like(x0)
        if start:
            d = _projected(torch.randn(x0.shape, generator=generator), low, high, r, norm)
        for k in range(steps):
            scores = evaluator.scores(x0 + d)
            others = scores.scatter(1, y.unsqueeze(1), -torch.inf)
            lead, g = evaluator.search(x0 + d, difference_rows(scores.shape[1], y, others.argmax(1)))
            better = lead < lowest
            best, lowest = torch.where(better[:, None], d, best), torch.where(better, lead, lowest)
            size = r * (0.5 if k < steps // 3 else 0.15 if k < 2 * steps // 3 else 0.05)
            way = g.sign() if norm == "linf" else g / torch.linalg.vector_norm(g, dim=1, keepdim=True).clamp(min=1e-30)
            d = _projected(d - size * way, low, high, r, norm)
    return best.double()


def _projected(d: Tensor, low: Tensor, high: Tensor, r: Tensor, norm: str) -> Tensor:
    d = d.maximum(low).minimum(high)
    if norm == "linf":
        return d.maximum(-r).minimum(r)
    return d * (r * (1 - 1e-6) / torch.linalg.vector_norm(d, dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
