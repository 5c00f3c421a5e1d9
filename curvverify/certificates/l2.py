"""Certified l_2 radii of a batch: closed forms, the dual on ball and box, constants of the ball, anchored quadratics.

Every stage only raises what is proved, or lowers the distance of the closest confirmed counterexample.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvverify.bounding.constants.rows import difference_rows
from curvverify.certificates.ball_box import Problem, minimised, proved_radius, proved_value
from curvverify.certificates.closed_form import attack_radius, lipschitz_radius, taylor_radius
from curvverify.certificates.evaluate import Enclosed, Evaluator
from curvverify.certificates.local import LocalAnalyser
from curvverify.certificates.nearest import nearest
from curvverify.certificates.pairs import PairTable
from curvverify.certificates.quadratic import TwoLayers
from curvverify.certificates.record import RadiusOptions, SampleRadius, is_exact
from curvverify.certificates.region_bounds import Bracket, RegionBounds
from curvverify.certificates.witness import Confirmer, descended

FAR = 1e6
"""Radii are looked for up to this distance where nothing else limits them."""

FURTHER = 10.0
"""Bounds over the ball are tried up to this many times margin / slope where no counterexample is known."""

TRUST = 1.0 - 1e-9

STAGES = ((torch.float32, 40, True), (torch.float64, 80, True), (torch.float64, 250, False))
"""Arithmetic, steps and whether the multiplier is kept above the bend, stage by stage of a decision."""

BEYOND = 1.001
"""Radii are proved a little beyond the closest counterexample, so that a contradiction would show."""


CLOSER = 4
"""Radii below that of the closest counterexample at which others are sought by gradient descent, where asked for."""


WORTH = 0.02
"""Relative gap between certified and attacked radius above which that is done."""


@dataclass(eq=False)
class State:
    """What is known of the B samples of a batch."""

    x: Tensor
    y: Tensor
    certified: Tensor
    attacked: Tensor
    method: list[str]
    witness: Tensor
    """(B, n) float32, where a counterexample is known."""

    def raise_to(self, b: int, radius: float, method: str) -> None:
        """Take a proved radius if it is larger."""
        if radius > float(self.certified[b]):
            self.certified[b], self.method[b] = radius, method

    def lower_to(self, b: int, x: Tensor, distance: float) -> None:
        """Take a confirmed counterexample if it is closer."""
        if distance < float(self.attacked[b]):
            self.attacked[b], self.witness[b] = distance, x


@dataclass(frozen=True, eq=False)
class Pairs:
    """The margins of a batch, sample after sample and K - 1 each, with their closed forms."""

    problem: Problem
    at: Enclosed
    t: Tensor
    lipschitz: Tensor
    taylor: Tensor
    attack: Tensor

    @property
    def closed(self) -> Tensor:
        return torch.maximum(self.lipschitz, self.taylor)


@dataclass(eq=False)
class L2Certifier:
    """Certifies batches of samples of one network."""

    evaluator: Evaluator
    table: PairTable
    confirmer: Confirmer
    options: RadiusOptions
    local: LocalAnalyser | None
    two_layers: TwoLayers | None = None
    bounds: RegionBounds | None = None
    _quadratic: set[int] = field(default_factory=set)
    """Samples of the decision at work in which an anchored quadratic was needed."""

    @torch.no_grad()
    def batch(self, x: Tensor, y: Tensor) -> list[SampleRadius]:
        """Radii of the samples x (B, n), float64, of classes y (B)."""
        started = time.perf_counter()
        scores = self.evaluator.scores(x)
        self.evaluator.magnitude = float(scores.abs().max())
        predicted = scores.argmax(1)
        B, wrong = len(x), predicted != y
        inf = torch.full((B,), math.inf, dtype=torch.float64)
        state = State(
            x, y, torch.zeros(B).double(), torch.where(wrong, 0.0, inf), ["none"] * B, torch.zeros_like(x).float()
        )
        right = (~wrong).nonzero().squeeze(1)
        lipschitz, taylor, attack = torch.zeros(B).double(), torch.zeros(B).double(), inf.clone()
        if len(right):
            pairs = self._pairs(x, y, right)
            lipschitz[right], taylor[right] = (_least(r, len(right)) for r in (pairs.lipschitz, pairs.taylor))
            attack[right] = _least(pairs.attack, len(right))
            self._closed(state, right, pairs)
            if self.options.effort != "fast":
                self._search(state, right, pairs)
        if self.options.attack:
            self._attack(state, right)
        seconds = (time.perf_counter() - started) / B
        found = []
        for b in range(B):
            c, a = float(state.certified[b]), float(state.attacked[b])
            method = "misclassified" if bool(wrong[b]) else state.method[b]
            numbers = (float(lipschitz[b]), float(taylor[b]), 0.0 if bool(wrong[b]) else float(attack[b]))
            found.append(SampleRadius(int(y[b]), int(predicted[b]), c, a, method, is_exact(c, a), *numbers, seconds))
        return found

    def _pairs(self, x: Tensor, y: Tensor, right: Tensor) -> Pairs:
        K = self.evaluator.classes
        labels = y[right].repeat_interleave(K - 1)
        t = torch.arange(K).expand(len(right), K)[torch.arange(K) != y[right, None]]
        owner = torch.arange(len(right)).repeat_interleave(K - 1)
        rows = difference_rows(K, labels, t)
        at = self.evaluator.enclose(x[right], rows, owner)
        L, bend, top = self.table.of(labels, t)
        problem = Problem(x[right][owner], rows, bend, top, self.confirmer.low, self.confirmer.high, owner)
        return Pairs(
            problem,
            at,
            t,
            lipschitz_radius(at.lower, L),
            taylor_radius(at.lower, at.slope_upper, bend),
            attack_radius(at.upper, at.slope_lower, top),
        )

    def _closed(self, state: State, right: Tensor, pairs: Pairs) -> None:
        best = pairs.closed.reshape(len(right), -1)
        radius, which = best.min(1)
        first = pairs.lipschitz.reshape(best.shape).gather(1, which[:, None]).squeeze(1)
        for k, b in enumerate(right.tolist()):
            state.raise_to(b, float(radius[k]), "lipschitz" if float(first[k]) >= float(radius[k]) else "taylor")

    def _search(self, state: State, right: Tensor, pairs: Pairs) -> None:
        if self.options.eps:
            if self.bounds is not None:
                self._nearest(state, right, pairs)  # its steps do not depend on useful constants
            for eps in sorted(self.options.eps, reverse=True):
                self._decide(state, right, pairs, eps)
        else:
            self._nearest(state, right, pairs)
            self._bounds(state, right, pairs)
            self._local(state, right, pairs)
            self._close_gaps(state, right, pairs)

    # ---- decisions at one radius

    def _decide(self, state: State, right: Tensor, pairs: Pairs, eps: float) -> None:
        """Certify or refute the radius for every sample that is still open there."""
        problem = pairs.problem
        open_ = (state.certified[right] < eps) & (state.attacked[right] > eps)
        if not bool(open_.any()):
            return
        proved = ~open_[problem.sample] | (pairs.closed >= eps)
        self._bounded(state, right, pairs, eps, proved, open_)
        places = self._dual(state, right, problem, eps, proved, open_)
        self._deep(state, right, pairs, eps, proved, open_, places)
        complete = torch.ones(len(right), dtype=torch.bool)
        complete[problem.sample[~proved]] = False
        for k in (complete & open_).nonzero().squeeze(1).tolist():
            b = int(right[k])
            state.raise_to(b, eps, "quadratic" if k in self._quadratic else "dual")
        if self.local is not None:
            for k in (~complete & open_).nonzero().squeeze(1).tolist():
                self._local_one(state, right, pairs, k, eps)

    def _bounded(self, state: State, right: Tensor, pairs: Pairs, eps: float, proved: Tensor, open_: Tensor) -> None:
        """Linear and coupled bounds over the ball; samples that they settle are no longer open."""
        left = open_.nonzero().squeeze(1)
        if self.bounds is None or not len(left):
            return
        rows, settled = (
            t.reshape(len(right), self.evaluator.classes - 1, -1)[left] for t in (pairs.problem.rows, proved)
        )
        found = self.bounds.decided(state.x[right[left]], rows, eps, settled.squeeze(2), self.options.effort)
        for k, method in zip(left.tolist(), found, strict=True):
            if method is not None:
                state.raise_to(int(right[k]), eps, method)
                open_[k], proved[pairs.problem.sample == k] = False, True

    def _dual(
        self, state: State, right: Tensor, problem: Problem, eps: float, proved: Tensor, open_: Tensor
    ) -> dict[int, Tensor]:
        """The dual for all margins that are not proved: fast, then in float64, then as an attack alone.

        Marks what it proves and refutes; returns the lowest points of what is left.
        """
        places: dict[int, Tensor] = {}
        for dtype, steps, floor in STAGES:
            useful = problem.bend.isfinite() & problem.top.isfinite()
            index = (~proved & open_[problem.sample] & useful).nonzero().squeeze(1)
            if not len(index):
                break
            part = problem[index]
            r = torch.full((len(part),), eps, dtype=torch.float64)
            found = minimised(self.evaluator, part, r, dtype=dtype, steps=steps, floor=floor)
            self._try_attacks(state, right, part, found.attack.double(), found.value, eps, open_)
            if not floor:
                places = {int(i): found.attack[k].double() for k, i in enumerate(index)}
                continue
            alive = open_[part.sample]
            if bool(alive.any()):
                d, eta = found.displacement[alive].double(), found.multiplier[alive].double()
                value = proved_value(self.evaluator, part[alive], d, eta, r[alive], r[alive])
                proved[index[alive][value > 0.0]] = True
        return places

    def _try_attacks(
        self, state: State, right: Tensor, part: Problem, d: Tensor, value: Tensor, eps: float, open_: Tensor
    ) -> None:
        """Have the lowest negative margin of every sample confirmed; samples that are refuted are no longer open."""
        for p in value.argsort().tolist():
            if not float(value[p]) < 0.0:
                break
            k = int(part.sample[p])
            if bool(open_[k]) and self._confirm(state, int(right[k]), d[p], eps):
                open_[k] = False

    def _confirm(self, state: State, b: int, d: Tensor, within: float = math.inf) -> bool:
        found = self.confirmer.confirm(state.x[b], d, int(state.y[b]), within)
        if found is None:
            return False
        state.lower_to(b, found.x, found.distance)
        return True

    def _deep(
        self,
        state: State,
        right: Tensor,
        pairs: Pairs,
        eps: float,
        proved: Tensor,
        open_: Tensor,
        places: dict[int, Tensor],
    ) -> None:
        """Anchored quadratics for what the dual leaves open, anchored at the lowest point found."""
        self._quadratic = set()
        if self.two_layers is None:
            return
        for i, d in places.items():
            k = int(pairs.problem.sample[i])
            if not bool(open_[k]) or bool(proved[i]):
                continue
            if self.two_layers.certified(pairs.problem[torch.tensor([i])], eps, d):
                proved[i] = True
                self._quadratic.add(k)
            else:
                open_[k] = False  # one open margin leaves the sample open

    # ---- the largest radius

    def _nearest(self, state: State, right: Tensor, pairs: Pairs) -> None:
        problem, known = pairs.problem, pairs.closed
        reach = torch.full_like(known, FAR)
        if bool(problem.low.isfinite().all() and problem.high.isfinite().all()):
            reach = torch.full_like(known, float((problem.high - problem.low).square().sum().sqrt()) * (1 + 1e-9))
        guess = pairs.at.lower / pairs.at.slope_upper.clamp(min=1e-12)
        found = nearest(self.evaluator, problem, known, torch.minimum(guess, reach), reach)
        distance = found.distance.reshape(len(right), -1)
        for k, p in enumerate(distance.argmin(1).tolist()):
            i = k * distance.shape[1] + p
            if math.isfinite(float(distance[k, p])):
                self._confirm(state, int(right[k]), found.attack[i])
        asked = found.radius > known
        radius = known.clone()
        index = asked.nonzero().squeeze(1)
        if len(index):
            limits = torch.where(state.attacked[right].isfinite(), state.attacked[right], FAR)[problem.sample[index]]
            within = torch.minimum(BEYOND * limits, reach[index])
            part = problem[index]
            dual = proved_radius(self.evaluator, part, found.displacement[index], found.multiplier[index], within)
            radius[index] = torch.maximum(radius[index], dual)
        best = _least(radius, len(right))
        for k, b in enumerate(right.tolist()):
            state.raise_to(b, float(best[k]), "dual")

    def _bounds(self, state: State, right: Tensor, pairs: Pairs) -> None:
        """The largest radii by linear bounds over the ball, and by coupled ones where much effort is asked for."""
        if self.bounds is None:
            return
        each = len(right), self.evaluator.classes - 1
        margin = pairs.at.lower.reshape(each)
        limit = (FURTHER * margin / pairs.at.slope_upper.reshape(each).clamp(min=1e-12)).amin(1)
        known, attacked = state.certified[right], state.attacked[right]
        limit = torch.where(attacked.isfinite(), attacked, torch.maximum(limit, known))
        bracket = Bracket.of(margin.amin(1), known, limit)
        rows = pairs.problem.rows.reshape(*each, -1)

        def note(k: int, radius: float, method: str) -> None:
            state.raise_to(int(right[k]), radius, method)

        self.bounds.largest(state.x[right], rows, bracket, self.options.effort, note)

    def _local(self, state: State, right: Tensor, pairs: Pairs) -> None:
        for k in range(len(right)):
            self._local_one(state, right, pairs, k, float(state.attacked[right[k]]))

    def _local_one(self, state: State, right: Tensor, pairs: Pairs, k: int, limit: float) -> None:
        """Constants of the ball: the fixed point, up to the limit."""
        if self.local is None:
            return
        b, K = int(right[k]), self.evaluator.classes
        part = slice(k * (K - 1), (k + 1) * (K - 1))
        known = float(state.certified[b])
        if not math.isfinite(limit):
            limit = FAR
        if known >= limit * TRUST:
            return
        tries = 12 if self.options.effort == "high" else 7
        margin, slope = pairs.at.lower[part], pairs.at.slope_upper[part]
        decide = bool(self.options.eps)
        sample = state.x[b], int(state.y[b])
        found = self.local.radius(*sample, margin, slope, known, limit, tries=tries, decide=decide)
        state.raise_to(b, found.radius, found.method)

    def _close_gaps(self, state: State, right: Tensor, pairs: Pairs) -> None:
        """Bisection with decisions between radius and counterexample, for networks of two layers."""
        if self.options.effort != "high" or self.two_layers is None:
            return
        for k, b in enumerate(right.tolist()):
            index = (pairs.problem.sample == k).nonzero().squeeze(1)
            own = replace_pairs(pairs, index)
            for _ in range(6):
                c, a = float(state.certified[b]), float(state.attacked[b])
                if is_exact(c, a) or not math.isfinite(a):
                    break
                eps = max(0.5 * (c + a), a - 8e-4 * min(1.0, a))
                self._decide(state, torch.tensor([b]), own, eps)
                if float(state.certified[b]) < eps and float(state.attacked[b]) > eps:
                    break

    def _attack(self, state: State, right: Tensor) -> None:
        """Projected gradient descent at every radius asked for, and at every certified one, to refute it.

        Where no radii are asked for, then by bisection for counterexamples closer than the closest known.
        """
        for eps in sorted(self.options.eps):
            self._descend(state, right, torch.full((len(right),), eps).double())
        floor = state.certified[right].clone()
        self._descend(state, right, floor)
        for step in range(0 if self.options.eps else CLOSER):
            known = state.attacked[right]
            gap = known - floor
            r = known - 0.02 * gap if not step else floor + 0.5 * gap
            self._descend(state, right, torch.where(gap > WORTH * known, r, 0.0))
            floor = torch.where(state.attacked[right] > r, r, floor)

    def _descend(self, state: State, right: Tensor, r: Tensor) -> None:
        """Attack the correct samples within r, where no counterexample is known there; not where r is 0."""
        left = (r <= state.attacked[right]) & (r > 0) & r.isfinite()
        chosen, r = right[left], r[left]
        if not len(chosen):
            return
        x = state.x[chosen]
        box = (self.confirmer.low - x, self.confirmer.high - x)
        d = descended(self.evaluator, x, state.y[chosen], r, box, "l2", seed=self.options.seed)
        for k, b in enumerate(chosen.tolist()):
            self._confirm(state, b, d[k], float(r[k]))


def replace_pairs(pairs: Pairs, index: Tensor) -> Pairs:
    """The margins of one sample on their own."""
    problem = pairs.problem[index]
    problem = replace(problem, sample=torch.zeros_like(problem.sample))
    at = Enclosed(*(getattr(pairs.at, f)[index] for f in ("lower", "upper", "gradient", "error")))
    rest = (getattr(pairs, f)[index] for f in ("t", "lipschitz", "taylor", "attack"))
    return Pairs(problem, at, *rest)


def _least(values: Tensor, samples: int) -> Tensor:
    return values.reshape(samples, -1).amin(1)
