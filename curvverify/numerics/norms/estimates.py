"""Norms for training and for looking: differentiable, cheap, and no bounds.  Nothing here may enter a certificate.

The values carry types of their own, which no bound accepts: an `Estimate` is no float.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.numerics.norms.operators import LinearOperator, Shape


@dataclass(frozen=True)
class Estimate:
    """A number near the norm, usually below it, after some iterations; deliberately without arithmetic."""

    value: float
    iterations: int


@dataclass(frozen=True, eq=False)
class Trained:
    """A norm's value with its gradient, and the vectors to start the next evaluation from."""

    value: Tensor
    state: Tensor


def _start(shape: Shape, like: Tensor | None, dtype: torch.dtype) -> Tensor:
    if like is not None:
        return like
    size = 1
    for n in shape:
        size *= n
    return torch.cos(torch.arange(size, dtype=torch.float64) * 1.7 + 0.3).to(dtype).reshape(1, *shape)


def _unit(v: Tensor, dims: tuple[int, ...]) -> Tensor:
    return v / torch.linalg.vector_norm(v, dim=dims, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def _singular_vectors(op: LinearOperator, v: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """(u, v) after power iterations on L^T L from v: unit vectors with u along L v."""
    v = v.detach()
    dims = tuple(range(v.dim()))
    v = _unit(v, dims)
    for _ in range(iterations):
        (w,) = op.adjoint(op.forward(v, bias=False))
        v = _unit(w, dims)
    u = op.forward(v, bias=False)
    return _unit(u, tuple(range(u.dim()))), v


@torch.no_grad()
def power_iteration_estimate(
    op: LinearOperator, shape_in: Shape, iterations: int = 100, dtype: torch.dtype = torch.float64
) -> Estimate:
    """Estimate of the spectral norm by power iteration: at or below it, by how much is unknown."""
    u, v = _singular_vectors(op.to(dtype), _start(shape_in, None, dtype), iterations)
    return Estimate(float((u * op.to(dtype).forward(v, bias=False)).sum()), iterations)


def spectral_norm_differentiable(
    op: LinearOperator,
    shape_in: Shape,
    state: Tensor | None = None,
    iterations: int = 1,
    dtype: torch.dtype | None = None,
) -> Trained:
    """The spectral norm as a differentiable function of the operator's constants; no bound.

    Power iterations from `state` (of the previous step; None starts afresh, take more iterations then) find singular
    vectors u, v, held constant; the value is u . L v, whose gradient u v^T is that of a simple singular value.
    """
    weight = getattr(op, "weight", None)
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.float64
    with torch.no_grad():
        u, v = _singular_vectors(op, _start(shape_in, state, dtype), iterations)
    return Trained((u * op.forward(v, bias=False)).sum(), v)


def largest_eigenvalue_differentiable(S: Tensor, state: Tensor | None = None, iterations: int = 1) -> Trained:
    """The largest eigenvalue of symmetric (..., n, n) as a differentiable function of S; no bound.

    Without `state` the eigenvectors v are computed; with it they are those of the previous step after some power
    iterations, for S whose largest eigenvalue is also the largest in magnitude.  The value v . S v has gradient v v^T,
    that of a simple eigenvalue.
    """
    with torch.no_grad():
        if state is None:
            v = torch.linalg.eigh(S).eigenvectors[..., -1]
        else:
            v = state
            for _ in range(iterations):
                v = _unit((S @ v[..., None])[..., 0], (-1,))
    return Trained(((S @ v[..., None])[..., 0] * v).sum(-1), v)


def hadamard_gram_differentiable(G: Tensor, W: Tensor, state: Tensor | None = None, iterations: int = 1) -> Trained:
    """sqrt(lambda_max((G^T G) o (W W^T))) as a differentiable function of G and W; no bound."""
    found = largest_eigenvalue_differentiable((G.mT @ G) * (W @ W.mT), state, iterations)
    return Trained(found.value.clamp(min=torch.finfo(G.dtype).tiny).sqrt(), found.state)


def row_weighted_norm_differentiable(W: Tensor, state: Tensor | None = None, iterations: int = 1) -> Trained:
    """||diag(||w_i||) W||, w_i the rows, as a differentiable function of W; no bound."""
    A = torch.linalg.vector_norm(W, dim=-1, keepdim=True) * W
    found = largest_eigenvalue_differentiable(A @ A.mT if A.shape[-2] <= A.shape[-1] else A.mT @ A, state, iterations)
    return Trained(found.value.clamp(min=torch.finfo(W.dtype).tiny).sqrt(), found.state)
