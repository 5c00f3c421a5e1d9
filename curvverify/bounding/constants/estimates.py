"""Normalised curvature on data, as low-curvature networks report it: estimates, which prove nothing.

For a scalar function f of the outputs, the normalised curvature at x is ||Hessian|| / (||gradient|| + epsilon).  The
norms are those at the given samples, in floating point, the Hessian's from a few products with vectors: at or below
the norm at the sample, and any distance below the supremum over a region.  The types here carry no arithmetic and no
bound accepts them.

Source: Srinivas, Matoba, Lakkaraju, Fleuret, Efficient Training of Low-Curvature Neural Networks, NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.errors import UnsupportedModelError, UnsupportedNode, UsageError
from curvverify.graph.layers import Graph, Node
from curvverify.numerics.norms import Estimate
from curvverify.ops.base import Elementwise
from curvverify.types import Deadline, Interval

# -- what is differentiated ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """z_y - z_t for two classes, the same for every sample."""

    y: int
    t: int


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """log sum exp(z) - z_label, labels (N)."""

    labels: Tensor


@dataclass(frozen=True, eq=False)
class Margin:
    """z_label - z_rival, the rival being the largest other output at the sample, held fixed in the derivatives.

    Labels (N); None stands for the predicted classes.
    """

    labels: Tensor | None = None


Function = Pair | CrossEntropy | Margin


def _described(function: Function) -> str:
    match function:
        case Pair(y, t):
            return f"z_{y} - z_{t}"
        case CrossEntropy():
            return "cross-entropy"
        case Margin(None):
            return "margin of the predicted class"
        case Margin():
            return "margin of the label"


def _value(function: Function, z: Tensor, samples: slice) -> Tensor:
    """f (B) at the outputs z (B, classes) of some of the samples."""
    match function:
        case Pair(y, t):
            return z[:, y] - z[:, t]
        case CrossEntropy(labels):
            return z.logsumexp(1) - _chosen(z, labels[samples])
        case Margin(labels):
            own = z.detach().argmax(1) if labels is None else labels[samples]
            others = z.detach().scatter(1, own.unsqueeze(1), -math.inf)
            return _chosen(z, own) - _chosen(z, others.argmax(1))


def _chosen(z: Tensor, classes: Tensor) -> Tensor:
    return z.gather(1, classes.unsqueeze(1)).squeeze(1)


# -- the records ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SampleEstimates:
    """One number per sample, (N) in float64; deliberately without arithmetic."""

    values: Tensor
    iterations: int

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def mean_estimate(self) -> Estimate:
        return Estimate(float(self.values.mean()), self.iterations)

    @property
    def deviation_estimate(self) -> Estimate:
        """The standard deviation with N - 1 in the denominator; NaN for one sample."""
        deviation = float(self.values.std()) if self.count > 1 else math.nan
        return Estimate(deviation, self.iterations)


@dataclass(frozen=True, eq=False)
class CurvatureEstimates:
    """Gradient norm, Hessian norm and normalised curvature of a scalar function at every sample."""

    function: str
    epsilon: float
    samples: int
    """How many samples were given; each estimate has as many values, fewer where the deadline passed."""
    gradient_norm_estimate: SampleEstimates
    hessian_norm_estimate: SampleEstimates
    """The largest |Ritz value| on the Krylov space of the iterations, at least the next quantity."""
    rayleigh_quotient_estimate: SampleEstimates
    """|v . H v| after as many power iterations from the same start: what is usually reported."""
    residual_estimate: SampleEstimates
    """||H v - theta v|| of the Ritz pair: some eigenvalue is that close to theta, not necessarily the largest."""
    normalised_curvature_estimate: SampleEstimates
    kinks: tuple[str, ...] = ()
    """Nodes with kinks, at which the true curvature is infinite; what is estimated is the part without them."""


# -- smoothness ----------------------------------------------------------------------------------------------------

_POINTS = 1.37 * 1.5 ** torch.arange(-75.0, 75.0, dtype=torch.float64)
_EDGES = torch.cat([-_POINTS.flip(0), _POINTS])
CELLS = Interval(_EDGES[:-2], _EDGES[2:])
"""Overlapping intervals that cover [-1e13, 1e13], so that every point is inside one."""


def kinks(graph: Graph) -> tuple[Node, ...]:
    """The nodes whose function or slope jumps, or may: somewhere sigma^(k-1) is finite and sigma^(k) is not, k = 1, 2.

    A pole is none, for there everything is infinite.
    """
    return tuple(node for node in graph if isinstance(node.op, Elementwise) and _kinked(node.op))


def _kinked(op: Elementwise) -> bool:
    op = op.to(torch.float64)  # type: ignore[assignment]
    rank = max((t.ndim for t in vars(op).values() if isinstance(t, Tensor)), default=0)
    cells = Interval(*(t.reshape(-1, *(1,) * rank) for t in (CELLS.lower, CELLS.upper)))
    orders = [op.interval(cells), op.derivative(1, cells), op.derivative(2, cells)]
    finite = [x.lower.isfinite() & x.upper.isfinite() for x in orders]
    return any(bool((finite[k] & ~finite[k + 1]).any()) for k in (0, 1))


def _refuse(nodes: tuple[Node, ...]) -> None:
    advice = "has kinks, so that the curvature is infinite while second derivatives do not show it; a smooth activation"
    advice += " has one, and almost_everywhere=True ignores the kinks"
    raise UnsupportedModelError(
        "curvature estimate", [UnsupportedNode(n.name, n.op.name, None, n.shape, advice) for n in nodes]
    )


# -- the estimate --------------------------------------------------------------------------------------------------


def curvature_estimates(
    graph: Graph,
    x: Tensor,
    function: Function,
    *,
    iterations: int = 20,
    epsilon: float = 1e-6,
    almost_everywhere: bool = False,
    memory: int = 2**28,
    seed: int = 0,
    deadline: Deadline | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CurvatureEstimates:
    """Gradient norm, Hessian norm and their ratio at the samples x (N, *S_in), in x's dtype.

    `iterations` Hessian-vector products per sample, from one random start (`seed`) for all; `memory` bytes are about
    what a batch may take; `progress(done, total)` is called after every batch; once the deadline has passed, the
    samples done so far are returned, one batch at least.
    Raises UnsupportedModelError, naming the nodes, where the network has kinks, unless `almost_everywhere`.
    """
    _check(graph, x, function, iterations)
    kinked = kinks(graph)
    if kinked and not almost_everywhere:
        _refuse(kinked)
    graph, total = graph.to(x.dtype), len(x)
    start = torch.randn(math.prod(x.shape[1:]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = batch_size(graph, iterations, memory)
    parts: list[tuple[Tensor, ...]] = []
    done = 0
    while done < total and not (parts and deadline is not None and deadline.passed):
        batch = slice(done, min(done + size, total))
        parts.append(_batch(graph, x[batch], lambda z, batch=batch: _value(function, z, batch), start, iterations))
        done = batch.stop
        if progress is not None:
            progress(done, total)
    gradient, hessian, rayleigh, residual = (torch.cat(p) for p in zip(*parts, strict=True))
    return CurvatureEstimates(
        _described(function),
        epsilon,
        total,
        SampleEstimates(gradient, 0),
        *(SampleEstimates(v, iterations) for v in (hessian, rayleigh, residual, hessian / (gradient + epsilon))),
        kinks=tuple(node.name for node in kinked),
    )


def batch_size(graph: Graph, iterations: int, memory: int) -> int:
    """How many samples fit: the values of all nodes with what two derivatives keep, and the Krylov vectors."""
    numbers = 10 * sum(node.size for node in graph) + 2 * (iterations + 4) * graph.nodes[0].size
    return max(1, memory // (8 * numbers))


def _check(graph: Graph, x: Tensor, function: Function, iterations: int) -> None:
    if tuple(x.shape[1:]) != graph.input_shape or not len(x) or x.dtype not in (torch.float32, torch.float64):
        given = f"{tuple(x.shape)} {x.dtype}"
        raise UsageError(f"samples of shape (N, *{graph.input_shape}) in float32 or float64 are needed, not {given}")
    if iterations < 1:
        raise UsageError("at least one iteration is needed")
    classes = graph.nodes[-1].size
    labels = torch.tensor([function.y, function.t]) if isinstance(function, Pair) else function.labels
    if labels is None:
        return
    if not isinstance(function, Pair) and labels.shape != (len(x),):
        raise UsageError(f"{len(x)} samples need as many labels, not {tuple(labels.shape)}")
    if labels.dtype.is_floating_point or not bool(((labels >= 0) & (labels < classes)).all()):
        raise UsageError(f"classes are whole numbers from 0 to {classes - 1}")


def _batch(
    graph: Graph, x: Tensor, function: Callable[[Tensor], Tensor], start: Tensor, iterations: int
) -> tuple[Tensor, ...]:
    """Gradient norm, Hessian norm, Rayleigh quotient and residual, (B) in float64."""
    with torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        values = function(graph(at).flatten(1))
        gradient = _gradient(values.sum(), at, torch.ones((), dtype=x.dtype), create_graph=True)

    def product(v: Tensor) -> Tensor:
        return _gradient(gradient, at, v.reshape(x.shape).to(x.dtype)).flatten(1)

    first = (start / start.norm()).to(x.dtype).expand(len(x), -1)
    norms = gradient.detach().flatten(1).double().norm(dim=1)
    return norms, *ritz(*lanczos(product, first, iterations))


def _gradient(y: Tensor, x: Tensor, weight: Tensor, create_graph: bool = False) -> Tensor:
    """weight . dy/dx, zero where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (g,) = torch.autograd.grad(y, x, weight, retain_graph=True, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(x) if g is None else g


@torch.no_grad()
def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Diagonal and off-diagonal (B, k) in float64 of symmetric matrices on the Krylov spaces of unit vectors (B, n).

    Every vector is orthogonalised twice against all before it; where nothing is left the rest is zero.
    """
    basis, v = torch.empty(len(start), 0, start.shape[1], dtype=start.dtype), start
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    size = torch.zeros(len(start), dtype=start.dtype)
    tiny = 10.0 * torch.finfo(start.dtype).eps
    for _ in range(iterations):
        w = product(v)
        basis = torch.cat([basis, v.unsqueeze(1)], 1)
        diagonal.append((v * w).sum(1))
        size = torch.maximum(size, w.norm(dim=1))
        for _ in range(2):
            w = w - ((basis @ w.unsqueeze(2)).mT @ basis).squeeze(1)
        left = w.norm(dim=1)
        left = torch.where(left > tiny * size, left, 0.0)
        off.append(left)
        v = torch.where((left > 0.0).unsqueeze(1), w / left.clamp(min=torch.finfo(w.dtype).tiny).unsqueeze(1), 0.0)
    return torch.stack(diagonal, 1).double(), torch.stack(off, 1).double()


def ritz(diagonal: Tensor, off: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest |Ritz value|, |v . H v| of power iteration with as many products, and the first one's residual.

    Power iteration: v is along H^(k-1) v0, and on the Krylov space H acts as T up to the power 2 k - 1, so that
    v . H v = e . T^(2k-1) e / e . T^(2k-2) e, e the first unit vector.
    """
    k = diagonal.shape[1]
    bad = ~(diagonal.isfinite().all(1) & off.isfinite().all(1))
    diagonal, last = diagonal.nan_to_num(0.0, 0.0, 0.0), off[:, -1]
    off = off[:, :-1].nan_to_num(0.0, 0.0, 0.0)
    T = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    theta, vectors = torch.linalg.eigh(T)
    largest, place = theta.abs().max(1)
    relative = theta / largest.clamp(min=torch.finfo(theta.dtype).tiny).unsqueeze(1)
    weights = vectors[:, 0].square() * relative.pow(2 * k - 2)
    rayleigh = largest * ((weights * relative).sum(1) / weights.sum(1).clamp(min=1e-300)).abs()
    residual = last * vectors[:, -1].gather(1, place.unsqueeze(1)).squeeze(1).abs()
    found = (torch.where(bad, math.nan, t) for t in (largest, rayleigh, residual))
    return next(found), next(found), next(found)
