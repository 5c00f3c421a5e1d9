"""The convex dual's certificate as a training loss: cross-entropy on lower bounds of the margins over a ball.

For f = z_y - z_t with -P I <= Hessian <= M I, any eta >= P and d,

    min over ||e|| <= eps of f(x + e)  is about  f(x + d) - P/2 max(eps^2 - ||d||^2, 0)

where d minimises f(x + d) + eta/2 (||d||^2 - eps^2): curvature costs only where the minimiser lies inside of the ball.
d comes from a few majorisation steps d <- (M d - grad f)/(M + eta) with eta so that ||d|| = eps, and is held constant.
Source: the dual of Singla and Feizi, ICML 2020; the loss is ours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvverify.train.live import LiveModule
from curvverify.train.pairs import PairCurvature

MEMORY = 0.95
"""What a sample leaves of the running mean of its pair of classes."""

MOST_COUNTED = 20
"""At most so many samples of a pair count in one batch."""


def towards_boundary(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    t: Tensor,
    eps: float,
    bend: Tensor,
    top: Tensor,
    steps: int,
    gradient: Tensor | None = None,
) -> Tensor:
    """Displacements d like x (B, ...) that nearly minimise z_y - z_t over the ball of radius eps; not differentiable.

    bend and top (B) bound the Hessian from both sides; `gradient` is the margin's at x, where it is known.
    """
    wide = (-1, *(1 for _ in x.shape[1:]))
    P, M = bend.detach().reshape(wide), top.detach().reshape(wide)
    d = torch.zeros_like(x)
    for k in range(steps):
        g = gradient if k == 0 and gradient is not None else margin_gradient(model, x + d, y, t)
        q = M * d - g
        size = q.flatten(1).norm(dim=1).reshape(wide)
        eta = torch.maximum(P, size / max(eps, 1e-12) - M)
        d = q / (M + eta).clamp(min=1e-12)
    return d


def margin_gradient(model: nn.Module, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """The gradient of z_y - z_t by x, held constant."""
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(margins(model(at), y, t).sum(), at)
    return g


def dual_value(model: nn.Module, x: Tensor, d: Tensor, y: Tensor, t: Tensor, eps: float, bend: Tensor) -> Tensor:
    """f(x + d) - P/2 max(eps^2 - ||d||^2, 0) (B) for f = z_y - z_t, P = bend."""
    inside = (eps**2 - d.flatten(1).square().sum(1)).clamp(min=0.0)
    return margins(model(x + d), y, t) - 0.5 * bend * inside


def margins(z: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """z_y - z_t (B)."""
    return z.gather(1, y.unsqueeze(1)).squeeze(1) - z.gather(1, t.unsqueeze(1)).squeeze(1)


class CertificateLoss:
    """loss(x, y): cross-entropy on the scores {0 for the label, -D_t for the others}, D_t certified margins.

    One rival per sample gets its own D_t by the dual above: the one whose margin, less the running mean of what
    certifying cost its pair of classes, is the smallest.  The others get their margin less that mean.  `eps` may be
    changed between steps.  `weight` multiplies the curvature: with 1 the loss is what will be certified; somewhat less
    leaves the network more freedom, and certifies more samples in the end although the dual is then not tight for all.
    """

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], classes: int, eps: float, weight: float = 0.85, steps: int = 2
    ):
        self.model, self.live = model, LiveModule(model, shape)
        self.eps, self.weight, self.steps = eps, weight, steps
        self.pairs = PairCurvature()
        self.cost = torch.ones(classes, classes)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        bends = self.weight * self.pairs(self.live.graph()).bend_estimate
        x = x.detach().requires_grad_(True)
        z = self.model(x)
        f = z.gather(1, y.unsqueeze(1)) - z
        self.cost = self.cost.to(x.device)
        with torch.no_grad():
            t = (f - self.cost[y]).scatter(1, y.unsqueeze(1), torch.inf).argmin(1)
        (g,) = torch.autograd.grad(f.gather(1, t.unsqueeze(1)).sum(), x, retain_graph=True)
        P, M = bends[y, t], bends[t, y]
        d = towards_boundary(self.model, x.detach(), y, t, self.eps, P, M, self.steps, g)
        D = dual_value(self.model, x.detach(), d, y, t, self.eps, P)
        self._remember(y, t, (f.gather(1, t.unsqueeze(1)).squeeze(1) - D).detach())
        lowered = (f - self.cost[y]).scatter(1, t.unsqueeze(1), D.unsqueeze(1))
        return F.cross_entropy((-lowered).scatter(1, y.unsqueeze(1), 0.0), y)

    @torch.no_grad()
    def _remember(self, y: Tensor, t: Tensor, gap: Tensor) -> None:
        """Move the running mean of every pair that occurred towards the mean of its samples."""
        cell, flat = y * len(self.cost) + t, self.cost.flatten()
        count = torch.zeros_like(flat).index_add_(0, cell, torch.ones_like(gap))
        mean = torch.zeros_like(flat).index_add_(0, cell, gap) / count.clamp(min=1.0)
        rate = 1.0 - MEMORY ** count.clamp(max=MOST_COUNTED)
        self.cost = torch.where(count > 0, flat + rate * (mean - flat), flat).reshape(self.cost.shape)

    def state_dict(self) -> dict[str, Any]:
        return {"pairs": self.pairs.state_dict(), "cost": self.cost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pairs.load_state_dict(state["pairs"])
        self.cost = state["cost"]


@torch.no_grad()
def certified_estimate(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, bend: Tensor, steps: int = 12
) -> tuple[Tensor, Tensor]:
    """(correct, certified) flags (B) at radius eps by the dual in floating point: estimates, for watching a run.

    bend (K, K) is that of `PairEstimates`.  All classes are rivals; the closed form settles easy ones.
    """
    z = model(x)
    f = z.gather(1, y.unsqueeze(1)) - z
    correct = z.argmax(1) == y
    open_ = correct.clone()
    order = f.scatter(1, y.unsqueeze(1), torch.inf).argsort(1)
    for k in range(z.shape[1] - 1):
        index = open_.nonzero().squeeze(1)
        if not len(index):
            break
        xs, ys, ts = x[index], y[index], order[index, k]
        P, g = bend[ys, ts], margin_gradient(model, xs, ys, ts)
        near = margins(z[index], ys, ts) - eps * g.flatten(1).norm(dim=1) - 0.5 * P * eps**2 <= 0.0
        index, xs, ys, ts, P, g = index[near], xs[near], ys[near], ts[near], P[near], g[near]
        d = towards_boundary(model, xs, ys, ts, eps, P, bend[ts, ys], steps, g)
        open_[index] = dual_value(model, xs, d, ys, ts, eps, P) > 0.0
    return correct, open_
