"""Matrices that are hard on norm bounds, and the exact answers in arbitrary precision."""

from __future__ import annotations

import mpmath
import torch
from torch import Tensor


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal entries in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hilbert(n: int) -> Tensor:
    """1 / (i + j + 1): condition number beyond 1e16 from n = 12."""
    i = torch.arange(n, dtype=torch.float64)
    return 1.0 / (i[:, None] + i + 1.0)


HARD: dict[str, Tensor] = {
    "hilbert": hilbert(14),
    "rank one": gaussian(30, 1) @ gaussian(1, 20, seed=1),
    "nearly rank one": gaussian(30, 1) @ gaussian(1, 20, seed=1) + 1e-9 * gaussian(30, 20),
    "identity": torch.eye(25, dtype=torch.float64),
    "orthogonal": torch.linalg.qr(gaussian(40, 40)).Q,
    "wide": gaussian(3, 400),
    "tall": gaussian(400, 3),
    "row": gaussian(1, 50),
    "column": gaussian(50, 1),
    "ones": torch.ones(17, 31, dtype=torch.float64),
    "graded": gaussian(20, 20) * torch.logspace(-200, 200, 20, dtype=torch.float64)[:, None],
    "huge": gaussian(10, 12) * 2.0**1015,
    "tiny": gaussian(10, 12) * 2.0**-1010,
    "subnormal": torch.full((4, 5), 5e-324, dtype=torch.float64),
    "large": gaussian(220, 260),
}


def exact_norm(W: Tensor, digits: int = 60) -> mpmath.mpf:
    """The largest singular value of the matrix of floats, to `digits` digits."""
    with mpmath.workdps(digits):
        values = mpmath.svd_r(mpmath.matrix(W.tolist()), compute_uv=False)
        return max(values)


def scaled_norm(W: Tensor) -> tuple[float, int]:
    """(s, e) with the largest singular value of W at s 2^e, to about 1e-13, for any scale; (0, 0) for W = 0."""
    if not bool(W.any()):
        return 0.0, 0
    _, exponent = torch.frexp(W.abs().max())
    e = int(exponent)
    half = e // 2
    unit = W * 2.0**-half * 2.0 ** (half - e)
    return float(torch.linalg.svdvals(unit)[0]), e
