"""Attacks on Lipschitz, curvature and third-order constants: values that a network attains.

For a symmetric D^k f the largest |u . D^k f(x)[p, q, r]| over unit vectors is attained at p = q = r (Banach 1938), so
the norm of D^k f(x) is the maximum of ||D^k f(x)[p, ..., p]|| over unit p.  Every value below is such a norm at one
(x, p): a lower bound on the constant.  For inputs measured in l_inf, p runs over sign vectors.  Derivatives come from
`curvature_series`, which uses autograd alone.  Search runs in float64; `curvature_exact` decides close calls with 50
digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from curvverify.graph.layers import Graph
from tests.soundness.curvature_series import directional, hessians, jacobians, node_norms, owners, unit

INSIDE = 1.0 - 1e-12
"""Projections to a ball stay this factor inside, so that rounding cannot leave it."""


class Region(Protocol):
    """A set of inputs, flattened to (n,)."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, n): points all over the region, its centre first, extreme points included."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """(count, n): points of the region, unchanged where they are."""
        ...

    @property
    def free(self) -> Tensor | float:
        """1 where a coordinate may vary, 0 where it is fixed: derivatives are taken along free coordinates only."""
        ...


@dataclass(frozen=True)
class Space:
    """All of R^n, sampled by Gaussians of several widths."""

    size: int
    scales: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(count, self.size, generator=generator, dtype=torch.float64)
        widths = torch.tensor([self.scales[i % len(self.scales)] for i in range(count)], dtype=torch.float64)
        widths[0] = 0.0
        return x * widths[:, None]

    def project(self, x: Tensor) -> Tensor:
        return x

    @property
    def free(self) -> float:
        return 1.0


@dataclass(frozen=True)
class Box:
    """lower <= x <= upper, both (n,): uniform points, corners, and points with some entries at an end."""

    lower: Tensor
    upper: Tensor

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        t = torch.rand(count, self.lower.numel(), generator=generator, dtype=torch.float64)
        extreme = torch.rand(t.shape, generator=generator, dtype=torch.float64)
        share = torch.arange(count, dtype=torch.float64)[:, None] % 3 / 2.0  # of entries at an end: 0, 1/2, 1
        t = torch.where(extreme < share, t.round(), t)
        t[0] = 0.5
        return self.project(self.lower + t * (self.upper - self.lower))

    def project(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    @property
    def free(self) -> Tensor:
        return (self.lower < self.upper).double()


@dataclass(frozen=True)
class Sphere:
    """||x - centre|| <= radius: the centre, points inside and points on the sphere."""

    centre: Tensor
    radius: float

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        n = self.centre.numel()
        p = unit(torch.randn(count, n, generator=generator, dtype=torch.float64))
        t = torch.rand(count, 1, generator=generator, dtype=torch.float64) ** (1.0 / n)
        t[::2] = 1.0
        t[0] = 0.0
        return self.project(self.centre + self.radius * t * p)

    def project(self, x: Tensor) -> Tensor:
        d = x - self.centre
        length = d.norm(dim=1, keepdim=True)
        return self.centre + d * (self.radius * INSIDE / length.clamp(min=1e-300)).clamp(max=1.0)

    @property
    def free(self) -> float:
        return 1.0


@dataclass(frozen=True)
class Effort:
    """How hard to attack: points looked at, directions per point, how many are improved, and for how many steps."""

    points: int = 96
    directions: int = 12
    starts: int = 3
    steps: int = 12


@dataclass(frozen=True)
class Attained:
    """For each of K nodes (or rows) the best value found, (K,), at x (K, n) in direction p (K, n) of norm 1."""

    value: Tensor
    x: Tensor
    p: Tensor
    y: Tensor | None = None
    """The other end point of a difference quotient."""


def _leading(symmetric: Tensor) -> Tensor:
    """(..., n, n) -> (..., n): a unit eigenvector of the eigenvalue of largest absolute value."""
    eigenvalues, vectors = torch.linalg.eigh(symmetric)
    last = eigenvalues[..., -1:] >= -eigenvalues[..., :1]
    return torch.where(last, vectors[..., -1], vectors[..., 0])


def _by_node(graph: Graph, v: Tensor) -> Tensor:
    """Sums (B, M, n, n) over every node's entries: (B, K, n, n)."""
    return torch.zeros(v.shape[0], len(graph), *v.shape[2:], dtype=v.dtype).index_add(1, owners(graph), v)


def jacobian_directions(graph: Graph, jacobian: Tensor) -> Tensor:
    """(B, M, n) -> (B, K, n): the leading right singular vector of every node's Jacobian."""
    return _leading(_by_node(graph, jacobian[..., :, None] * jacobian[..., None, :]))


def hessian_directions(graph: Graph, hessian: Tensor, rounds: int = 3) -> Tensor:
    """(B, M, n, n) -> (B, K, n): unit p with large ||H[p, p]||, by alternating u = H[p, p] and p = leading of u . H."""
    owner = owners(graph)
    p = _leading(_by_node(graph, hessian @ hessian))
    for _ in range(rounds):
        u = _applied(hessian, p[:, owner])
        p = _leading(_by_node(graph, u[..., None, None] * hessian))
    return p


def _applied(tensor: Tensor, p: Tensor) -> Tensor:
    """Jacobians or Hessians (B, M, n[, n]) at p, (B, M, n): (B, M)."""
    return torch.einsum("bmi,bmi->bm" if tensor.dim() == 3 else "bmij,bmi,bmj->bm", tensor, *[p] * (tensor.dim() - 2))


EXACT_SIZE = 16
"""Up to this input size Jacobians and Hessians are formed; beyond, directions are random."""


Norm = Literal["l2", "linf"]
"""Of inputs; values are always measured in l2."""


def aligned(region: Region, p: Tensor, norm: Norm) -> Tensor:
    """Directions of norm 1 along the free coordinates: normalised, or their signs."""
    p = p * region.free
    return unit(p) if norm == "l2" else p.sign()


def _candidates(
    graph: Graph, region: Region, order: int, effort: Effort, generator: torch.Generator, norm: Norm
) -> tuple[Tensor, Tensor, Tensor]:
    """Points (C, n), directions (C, K, n) and norms (C, K) to start from."""
    x = region.sample(effort.points, generator)
    n = x.shape[1]
    if order <= 2 and n <= EXACT_SIZE:
        tensor = jacobians(graph, x) * region.free if order == 1 else hessians(graph, x)
        if order == 2 and isinstance(region.free, Tensor):
            tensor = tensor * region.free * region.free[:, None]
        p = jacobian_directions(graph, tensor) if order == 1 else hessian_directions(graph, tensor)
        p = aligned(region, p, norm)
        return x, p, node_norms(graph, _applied(tensor, p[:, owners(graph)]))
    every = x.repeat_interleave(effort.directions, 0)
    p = aligned(region, torch.randn(len(every), n, generator=generator, dtype=torch.float64), norm)
    value = node_norms(graph, directional(graph, every, p, order))
    return every, p[:, None, :].expand(-1, len(graph), -1), value


def _best(value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(C, K) -> positions (count K,) of the largest values of every column, and their columns."""
    count = min(count, len(value))
    rows = value.topk(count, dim=0).indices.flatten()
    return rows, torch.arange(value.shape[1]).repeat(count)


Score = Callable[[Tensor, Tensor], Tensor]
"""(x, p) -> (R,): what to increase, row by row."""


Turn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(p, gradient, step sizes (R, 1)) -> another p."""


def turner(region: Region, norm: Norm = "l2") -> Turn:
    """A step along the sphere of directions; or the signs flipped whose gradient is largest."""

    def around(p: Tensor, g: Tensor, size: Tensor) -> Tensor:
        return aligned(region, p + size * unit(g - (g * p).sum(1, keepdim=True) * p), "l2")

    def flipped(p: Tensor, g: Tensor, size: Tensor) -> Tensor:
        steepest = torch.where(g * p < 0.0, g.abs(), 0.0).amax(1, keepdim=True).clamp(min=1e-300)
        return aligned(region, p + (1.1 + size) * g / steepest, "linf")

    return around if norm == "l2" else flipped


def ascend(
    score: Score, x: Tensor, p: Tensor, project: Callable[[Tensor], Tensor], turn: Turn, steps: int
) -> tuple[Tensor, ...]:
    """(x, p, score) after projected gradient ascent, every row with its own step sizes and none ever losing.

    One step in three turns p, the others move x: each then has a step size that suits it.
    """

    def at(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, p = x.detach().requires_grad_(True), p.detach().requires_grad_(True)
        value = score(x, p)
        gx, gp = torch.autograd.grad(value.sum(), (x, p), allow_unused=True)
        gx = torch.zeros_like(x) if gx is None else gx.nan_to_num(0.0, 0.0, 0.0)
        gp = torch.zeros_like(p) if gp is None else gp.nan_to_num(0.0, 0.0, 0.0)
        return value.detach(), gx, gp

    value, gx, gp = at(x, p)
    sizes = [torch.full((len(x), 1), s, dtype=x.dtype) for s in (0.3, 0.5)]
    for t in range(steps):
        turning = t % 3 == 0
        new = (x, turn(p, gp, sizes[1])) if turning else (project(x + sizes[0] * unit(gx)), p)
        found = at(*new)
        better = (found[0] > value)[:, None]
        x, p, gx, gp = (
            torch.where(better, a, b) for a, b in ((new[0], x), (new[1], p), (found[1], gx), (found[2], gp))
        )
        value = torch.where(better[:, 0], found[0], value)
        sizes[turning] = sizes[turning] * torch.where(better, 1.5, 0.35)
    return x, p, value


def norms(
    graph: Graph, region: Region, order: int, effort: Effort | None = None, seed: int = 0, norm: Norm = "l2"
) -> Attained:
    """For every node f the largest ||D^order f(x)|| attained on the region: L, C, T from below for order 1, 2, 3."""
    effort = effort or Effort()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        every, directions, value = _candidates(graph, region, order, effort, generator, norm)
    rows, nodes = _best(value, effort.starts)
    mine = nodes[:, None] == owners(graph)

    def score(x: Tensor, p: Tensor) -> Tensor:
        return torch.where(mine, directional(graph, x, p, order), 0.0).square().sum(1)

    start = every[rows], directions[rows, nodes]
    x, p, value = ascend(score, *start, region.project, turner(region, norm), effort.steps)
    return _winners(value.sqrt(), x, p, len(graph))


def _winners(value: Tensor, x: Tensor, p: Tensor, count: int, y: Tensor | None = None) -> Attained:
    """Of rows that come in turns for `count` nodes, each node's best."""
    table = value.reshape(-1, count)
    rows = table.argmax(0) * count + torch.arange(count)
    return Attained(value[rows], x[rows], p[rows], None if y is None else y[rows])


def eigenvalues(
    graph: Graph, region: Region, weights: Tensor, effort: Effort | None = None, seed: int = 0
) -> tuple[Attained, Attained]:
    """The largest and the smallest eigenvalue attained by the Hessian of weights . output, for each row of weights."""
    effort = effort or Effort()
    generator = torch.Generator().manual_seed(seed)
    size, count = graph.nodes[-1].size, len(weights)
    both = torch.cat([weights, -weights])
    points = region.sample(effort.points, generator)
    if points.shape[1] <= EXACT_SIZE:
        hessian = torch.einsum("qm,bmij->bqij", both, hessians(graph, points)[:, -size:])
        if isinstance(region.free, Tensor):
            hessian = hessian * region.free * region.free[:, None]
        spectrum, vectors = torch.linalg.eigh(hessian)
        value, directions = spectrum[..., -1], vectors[..., -1]
    else:
        points = points.repeat_interleave(effort.directions, 0)
        p = aligned(region, torch.randn(points.shape, generator=generator, dtype=torch.float64), "l2")
        value = directional(graph, points, p, 2)[:, -size:] @ both.T
        directions = p[:, None, :].expand(-1, len(both), -1)
    rows, which = _best(value, effort.starts)

    def score(x: Tensor, p: Tensor) -> Tensor:
        return (directional(graph, x, p, 2)[:, -size:] * both[which]).sum(1)

    start = points[rows], directions[rows, which]
    x, p, best = ascend(score, *start, region.project, turner(region), effort.steps)
    found = _winners(best, x, p, len(both))
    top = Attained(found.value[:count], found.x[:count], found.p[:count])
    return top, Attained(-found.value[count:], found.x[count:], found.p[count:])


def quotients(
    graph: Graph,
    region: Region,
    order: int,
    effort: Effort | None = None,
    seed: int = 0,
    anchor: Tensor | None = None,
) -> Attained:
    """The largest ||(D^order f(x) - D^order f(y))[p, ..., p]|| / ||x - y|| attained, for every node f.

    Order 0, 1, 2 attack L, C, T without a further derivative, across kinks too; with `anchor` (n,) the point x is
    fixed there, which attacks the anchored constants.  What rounding may have added is subtracted.
    """
    effort = effort or Effort()
    generator = torch.Generator().manual_seed(seed)
    x = region.sample(effort.points, generator) if anchor is None else anchor.expand(effort.points, -1)
    n = x.shape[1]
    far = region.sample(effort.points, generator)
    lengths = 10.0 ** -(torch.arange(effort.points, dtype=torch.float64) % 5)[:, None]
    near = x + lengths * unit(torch.randn(x.shape, generator=generator, dtype=torch.float64))
    pick = (torch.arange(effort.points) % 2 == 0)[:, None]
    y = region.project(torch.where(pick, far.flip(0), near))
    every = [t.repeat_interleave(effort.directions, 0) for t in (x, y)]
    p = aligned(region, torch.randn(len(every[0]), n, generator=generator, dtype=torch.float64), "l2")
    count = len(graph)
    if order == 1 and n <= EXACT_SIZE:
        p = jacobian_directions(graph, (jacobians(graph, x) - jacobians(graph, y)) * region.free)
        p = aligned(region, p, "l2").reshape(-1, n)  # every node's own direction, tried for all of them
        every = [t.repeat_interleave(count, 0) for t in (x, y)]
    value = node_norms(graph, _difference(graph, every[0], every[1], p, order))
    rows, nodes = _best(value, effort.starts)
    mine = nodes[:, None] == owners(graph)

    def score(ends: Tensor, p: Tensor) -> Tensor:
        x, y = ends[:, :n], ends[:, n:]
        return torch.where(mine, _difference(graph, x, y, p, order), 0.0).square().sum(1)

    def project(ends: Tensor) -> Tensor:
        x = region.project(ends[:, :n]) if anchor is None else anchor.expand(len(ends), -1)
        return torch.cat([x, region.project(ends[:, n:])], 1)

    start = torch.cat([t[rows] for t in every], 1)
    ends, p, value = ascend(score, start, p[rows], project, turner(region), effort.steps)
    x, y = ends[:, :n], ends[:, n:]
    terms = [node_norms(graph, directional(graph, t, p, order)) for t in (x, y)]
    slack = ROUNDING * (terms[0] + terms[1]).gather(1, nodes[:, None])[:, 0] / (x - y).norm(dim=1).clamp(min=1e-300)
    return _winners(value.sqrt() - slack, x, p, count, y)


ROUNDING = 1e-13
"""Relative to the two derivatives whose difference is taken; pairs of points are never closer than SHORTEST."""

SHORTEST = 1e-6


def _difference(graph: Graph, x: Tensor, y: Tensor, p: Tensor, order: int) -> Tensor:
    """(D^order f(x) - D^order f(y))[p, ..., p] / ||x - y|| of all nodes, (R, M); 0 where the points nearly coincide."""
    length = (x - y).norm(dim=1, keepdim=True)
    both = directional(graph, torch.cat([x, y]), torch.cat([p, p]), order)
    a, b = both.chunk(2)
    return torch.where(length > SHORTEST, (a - b) / length.clamp(min=SHORTEST), 0.0)
