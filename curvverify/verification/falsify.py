"""Falsification: projected gradient descent on the property's own loss, and the strict check of what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvverify.graph.layers import Graph
from curvverify.spec.query import Group, Query
from curvverify.types import Deadline
from curvverify.verification.property import Property
from curvverify.verification.result import Witness

Run = Callable[[Tensor], Tensor]
"""The reference execution: flat float32 input -> flat float32 output (ONNX Runtime on the CPU)."""

STEPS = 24
"""Gradient steps from every start."""

NEARLY = 1e-4
"""Candidates this close to unsafe in our own float32 arithmetic are worth a replay, which alone decides."""


@dataclass(eq=False)
class Falsifier:
    """Searches for witnesses in float32; only what the reference execution confirms is ever returned."""

    graph: Graph
    query: Query
    property: Property
    run: Run
    seed: int = 0
    starts: int = 32

    def __post_init__(self) -> None:
        self.groups: list[Group] = [g for g in self.query.groups if not g.box.empty]
        self.search = self.graph.to(torch.float32)
        self.generator = torch.Generator().manual_seed(self.seed)
        self._ranges: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def burst(self, group: Tensor, open_disjuncts: Tensor, deadline: Deadline, rounds: int = 1) -> Witness | None:
        """Attack every open disjunct (B, D) of the groups (B,) from the centre, corners and random points.

        Every round takes new starts.
        """
        pairs = open_disjuncts.nonzero()
        if not pairs.numel():
            return None
        order = torch.randperm(len(pairs), generator=self.generator)
        pairs = pairs[order]
        batch = max(1, 4096 // (self.starts + 2), 2**24 // (self.graph.nodes[0].size * (self.starts + 2) * 8))
        batch = min(batch, 256)
        for round_ in range(rounds):
            for begin in range(0, len(pairs), batch):
                chosen = pairs[begin : begin + batch]
                index, disjunct = group[chosen[:, 0]], chosen[:, 1]
                witness = self.descend(index, disjunct, self._starts(index, round_ == 0), deadline)
                if witness is not None or deadline.passed:
                    return witness
        return None

    def confirm(self, group: int, x: np.ndarray) -> Witness | None:
        """The witness, if the reference execution puts x (flat, float32) strictly into one of the group's polytopes."""
        low, high = self._range(group)
        x = np.clip(x.astype(np.float32), low, high)
        y = self.run(torch.from_numpy(x)).numpy()
        if not np.isfinite(y).all() or self.query.satisfied_by(x, y) is None:
            return None
        return Witness(tuple(map(float, x)), tuple(map(float, y)), replayed=True)

    def descend(self, group: Tensor, disjunct: Tensor, starts: Tensor, deadline: Deadline) -> Witness | None:
        """Projected sign-gradient descent of the violation of disjuncts (P,) of groups (P,) from (P, S, n) points."""
        count = starts.shape[1]
        pairs = group.repeat_interleave(count), disjunct.repeat_interleave(count)
        low, high = (t.repeat_interleave(count, 0) for t in self._bounds(group))
        x = torch.minimum(torch.maximum(starts.flatten(0, 1).float(), low), high)
        best, best_x = torch.full((len(x),), torch.inf), x
        momentum = torch.zeros_like(x)
        for t in range(STEPS):
            violation, gradient = self._gradient(x, *pairs)
            better = violation < best
            best = torch.where(better, violation, best)
            best_x = torch.where(better.unsqueeze(1), x, best_x)
            if bool((best < 0).any()) or deadline.passed:
                break
            scale = gradient.abs().mean(1, keepdim=True).clamp(min=1e-30)
            momentum = 0.75 * momentum + gradient / scale
            size = 0.125 * (high - low) * (1.0 + math.cos(math.pi * t / STEPS))
            x = torch.minimum(torch.maximum(x - size * momentum.sign(), low), high)
        for b in best.argsort()[:8].tolist():
            if best[b] <= NEARLY:
                witness = self.confirm(int(pairs[0][b]), best_x[b].numpy())
                if witness is not None:
                    return witness
        return None

    def _gradient(self, x: Tensor, group: Tensor, disjunct: Tensor) -> tuple[Tensor, Tensor]:
        """The violation (B,) at x (B, n) and its gradient."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            violation = self._violation(x, self._outputs(x), group, disjunct)
            (gradient,) = torch.autograd.grad(violation.sum(), x)
        return violation.detach(), gradient

    def _outputs(self, x: Tensor) -> Tensor:
        return self.search(x.reshape(-1, *self.graph.input_shape)).flatten(1)

    def _violation(self, x: Tensor, y: Tensor, group: Tensor, disjunct: Tensor) -> Tensor:
        """How far (B,) every point is from its disjunct's polytope: <= 0 inside."""
        p = self.property
        values = y @ p.output.float().T
        if p.input is not None:
            values = values + x @ p.input.float().T
        rows, thresholds, present = p.rows[group], p.thresholds[group].float(), p.present[group]
        picked = values.gather(1, rows.clamp(min=0).flatten(1)).reshape(rows.shape) - thresholds
        worst = torch.where(rows >= 0, picked, -torch.inf).amax(2)
        worst = torch.where(present, worst, torch.inf)
        return worst.gather(1, disjunct.unsqueeze(1)).squeeze(1)

    def _starts(self, group: Tensor, first: bool) -> Tensor:
        """(P, S, n): the centre, corners and uniform points of the groups' boxes; fewer in the first round."""
        low, high = self._bounds(group)
        count = max(2, self.starts // 4) if first else self.starts
        t = torch.rand(low.shape[0], count, low.shape[1], generator=self.generator)
        t[:, : count // 2] = t[:, : count // 2].round()
        if first:
            t[:, 0] = 0.5
        return low.unsqueeze(1) + t * (high - low).unsqueeze(1)

    def _range(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        if group not in self._ranges:
            self._ranges[group] = self.groups[group].box.witness_range
        return self._ranges[group]

    def _bounds(self, group: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [self._range(int(g)) for g in group]
        return torch.from_numpy(np.stack([p[0] for p in pairs])), torch.from_numpy(np.stack([p[1] for p in pairs]))
