"""Exact scaling by powers of two, and sums rounded up: what every rigorous norm needs before and after its products.

Matrices are brought to a largest entry in [1/2, 1) before anything is multiplied, so that no intermediate result
overflows and underflow costs at most `UNDERFLOW` per matrix, which every bound at that scale adds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvverify.numerics.rounding import gamma, round_up

UNDERFLOW = 1e-150
"""Absolute slack at unit scale: more than the root of everything that underflow can lose in sums of squares."""


def as_wide(x: Tensor) -> Tensor:
    """The same numbers in float64 or complex128; exact from every narrower type."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def magnitude_upper(x: Tensor) -> Tensor:
    """Upper bound on |x|, entry by entry; exact for real x."""
    return round_up(round_up(x.abs())) if x.is_complex() else x.abs()


def squares(x: Tensor) -> Tensor:
    """|x|^2 entry by entry, within three roundings."""
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent exactly, for integers in [-1022, 1023]; assembled from its bits, since pow may be an ulp off."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def times_power_of_two(x: Tensor, exponent: Tensor) -> Tensor:
    """x 2^exponent, exact but for underflow and overflow; |exponent| <= 2044."""
    half = exponent.to(torch.int64) // 2
    return x * power_of_two(half) * power_of_two(exponent - half)


def to_unit(x: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """(x 2^-e, e) with the largest magnitude over the last `dims` axes in [1/2, 1) (to sqrt 2 for complex x), or x = 0.

    e has those axes kept with length 1.  NaN and inf must have been taken out.
    """
    parts = torch.maximum(x.real.abs(), x.imag.abs()) if x.is_complex() else x.abs()
    largest = parts.amax(tuple(range(-dims, 0)), keepdim=True)
    exponent = torch.frexp(largest).exponent.to(torch.int64)
    return times_power_of_two(x, -exponent), exponent


def from_unit_upper(bound: Tensor, exponent: Tensor) -> Tensor:
    """Upper bound on bound 2^exponent for either sign, exactly 0 for 0."""
    return torch.where(bound == 0, bound, round_up(times_power_of_two(bound, exponent)))


def enlarge(x: Tensor, relative: float) -> Tensor:
    """Upper bound on x (1 + relative) for x >= 0, exactly 0 for 0; NaN becomes inf."""
    larger = torch.where(x == 0, x, round_up(round_up(x * (1.0 + relative))))
    return torch.where(larger.isnan(), torch.inf, larger)


def times_upper(*factors: float) -> float:
    """Upper bound on the product of nonnegative numbers: exactly 0 where one is 0 and all are finite, never NaN."""
    product = 1.0
    for f in factors:
        product = math.nextafter(product * f, math.inf) if product and f else 0.0 * product * f
    return math.inf if math.isnan(product) else product


def sum_upper(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Upper bound on the sum of nonnegative entries over the axes."""
    axes = (dim,) if isinstance(dim, int) else dim
    count = 1
    for a in axes:
        count *= x.shape[a]
    return enlarge(x.sum(axes), gamma(count + 1))


def dot_gamma(n: int, *, wide: bool) -> float:
    """Relative error of a dot product of length n, with respect to the sum of |products|; `wide` for complex numbers.

    Sound because: real and imaginary part of a complex dot product are real ones of length 2n, each within gamma(2n)
    of its exact value, and sqrt(2) gamma(2n) <= gamma(4n).
    """
    return gamma(4 * n + 16) if wide else gamma(n + 8)


def frobenius_upper(W: Tensor) -> Tensor:
    """Upper bound on the Frobenius norm of every matrix (..., m, n); inf where an entry is not finite."""
    W = as_wide(W)
    if 0 in W.shape[-2:]:
        return torch.zeros(W.shape[:-2], dtype=torch.float64)
    finite = W.isfinite().all(-1).all(-1)
    scaled, exponent = to_unit(torch.where(finite[..., None, None], W, 0.0), 2)
    square = squares(scaled)
    bound = enlarge(enlarge(square.sum((-2, -1)), gamma(W.shape[-2] * W.shape[-1] + 4)).sqrt(), gamma(2))
    return torch.where(finite, from_unit_upper(bound, exponent[..., 0, 0]), torch.inf)
