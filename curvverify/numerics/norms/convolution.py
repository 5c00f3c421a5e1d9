"""Upper bounds on the spectral norm of convolutions at their exact input size, zero padding included.

The zero-padded convolution T is a compression of a convolution C on a torus: extend the input by zeros to the torus,
apply C, keep the outputs of T.  Hence ||T|| <= ||C||, as long as nothing wraps around the torus into the input
(`Axis.torus`).  The same holds when whatever wraps is multiplied by a phase of modulus 1: the twisted torus, whose
frequencies are (f + twist) / M.  A Fourier transform block-diagonalises C: ||C|| = max_f ||A(f)|| over finitely many
frequencies, A(f) = sum_a w_a exp(2 pi i q_a . (f + twist) / M) with one column block for every phase of the stride.
Every twist gives a bound; twists 0 and 1/2 keep the symmetry A(-f) = conj A(f), and the best of them is nearly exact:
for the kernel (b, a, b) the half twist gives the norm of the tridiagonal matrix itself.

Sources: Sedghi, Gupta, Long, ICLR 2019 (circular convolutions); Delattre et al., ICML 2023 (zero padding, strides).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.numerics.norms.dense import schur_upper, spectral_norm_upper
from curvverify.numerics.norms.eigenvalues import common_eigenvalue_upper, gram
from curvverify.numerics.norms.geometry import Axis, Geometry
from curvverify.numerics.norms.scaling import UNDERFLOW, as_wide, enlarge, frobenius_upper, from_unit_upper, to_unit
from curvverify.numerics.rounding import gamma, round_up

DENSE_SIDE, DENSE_ENTRIES = 1024, 2**24
"""An operator at most this large (shorter side of a group's block, entries of all) is bounded as a dense matrix."""

COARSE = 70
"""Frequencies per degree of the symbol on a long axis: the norm is then at most 0.05 % too large per axis."""

CHUNK = 2**23
"""Complex entries held at once (128 MiB)."""

WORTH = 0.99
"""A further torus is followed to its end only where it promises to lower the bound to this part of it."""

PHASE_ERROR = 2e-14
"""More than the error of a computed product of three phases exp(2 pi i k / M), each within 40 u of the exact one."""


@dataclass(frozen=True)
class Grid:
    """Frequencies (f + twist / 2) / M along every axis, f in [0, M), twist in {0, 1}."""

    sizes: tuple[int, ...]
    twists: tuple[int, ...]

    def frequencies(self) -> Tensor:
        """(F, d) numerators 2 f + twist of f in units of 1 / (2 M): one of every pair f, -f.

        Sound because: the weight is real, so A(-f) = conj A(f) has the same singular values.
        """
        own = torch.cartesian_prod(*(torch.arange(m) for m in self.sizes)).reshape(-1, len(self.sizes))
        sizes, twists = torch.tensor(self.sizes), torch.tensor(self.twists)
        mirror = (-own - twists) % sizes
        place = torch.tensor([math.prod(self.sizes[i + 1 :]) for i in range(len(self.sizes))])
        return (2 * own + twists)[(own * place).sum(1) <= (mirror * place).sum(1)]

    def excess(self, axes: tuple[Axis, ...]) -> float:
        """Factor >= 1 by which the square of the norm on the torus may exceed the maximum over this grid.

        1 where the grid is the torus's own.  Sound because: u^* A(t) v is a trigonometric polynomial of degree at most
        q along an axis, its squared modulus a real one, and those exceed their maximum over M > 2q equispaced points
        by at most 1 / cos(pi q / M) (Ehlich and Zeller, 1964; one axis after the other).
        """
        factor = 1.0
        for axis, size in zip(axes, self.sizes, strict=True):
            if size < axis.torus:
                factor = math.nextafter(factor / (math.cos(math.pi * axis.span / size) - 1e-15), math.inf)
        return factor


def grids(axes: tuple[Axis, ...]) -> list[Grid]:
    """Tori to try, the likely best first: half twists on all axes, then every other combination."""
    sizes = tuple(min(a.torus, max(COARSE * a.span, 1)) for a in axes)
    twisted = [(1, 0) if 1 < m == a.torus else (0,) for m, a in zip(sizes, axes, strict=True)]
    return [Grid(sizes, choice) for choice in itertools.product(*twisted)]


def _symbols(blocks: Tensor, axes: tuple[Axis, ...], grid: Grid, frequencies: Tensor) -> Tensor:
    """A(f) for every frequency and group: (F g, c_out / g, phases c_in / g), complex."""
    g, co, ci = blocks.shape[:3]
    weight = blocks
    for k, axis in enumerate(axes):
        weight = weight.index_select(3 + k, torch.tensor(axis.taps, dtype=torch.long))
    taps = weight.reshape(g * co * ci, -1).T
    waves = torch.ones(frequencies.shape[0], 1, dtype=torch.complex128)
    phase = torch.zeros(1, dtype=torch.long)
    for k, (axis, size) in enumerate(zip(axes, grid.sizes, strict=True)):
        turns = frequencies[:, k, None] * torch.tensor(axis.shifts) % (2 * size)
        angle = turns.double() * (math.pi / size)
        waves = (waves[:, :, None] * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(1)
        phase = (phase[:, None] * axis.stride + torch.tensor(axis.phases)).flatten()
    parts = []
    for p in phase.unique():
        mine = (phase == p).nonzero().squeeze(1)
        wave = waves[:, mine]
        parts.append(torch.complex(wave.real @ taps[mine], wave.imag @ taps[mine]).reshape(-1, co, ci))
    return torch.cat(parts, 2)


def _symbol_error(blocks: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """Upper bound on the spectral norm of the rounding error of any A(f).

    Sound because: each entry is a sum of |T| products w_a z_a, its error at most
    (2 gamma(|T| + 2) + 2 PHASE_ERROR) sum |w_a| over the taps of its phase; a row of nonnegative blocks has at most
    the norm of the blocks' sum, which the Frobenius norm and Schur's test bound.
    """
    count = math.prod(len(a.taps) for a in axes)
    sums = blocks.abs().flatten(3).sum(3)
    size = torch.minimum(frobenius_upper(sums), schur_upper(sums)).max()
    return enlarge(size, gamma(count + 8)) * (2 * gamma(count + 2) + 2 * PHASE_ERROR) + UNDERFLOW


@dataclass(frozen=True)
class TorusNorm:
    """An upper bound on the norm on a torus, and the frequency (in turns) that seems to attain it."""

    upper: float
    peak: Tensor | None


def torus_norm_upper(
    blocks: Tensor, axes: tuple[Axis, ...], grid: Grid, give_up_above: float = math.inf, near: Tensor | None = None
) -> TorusNorm:
    """Upper bound on the norm of the convolution on the grid's torus, for blocks of unit scale.

    inf as soon as it is seen to exceed `give_up_above`; frequencies close to `near` are looked at first, so that this
    is seen early.  Memory does not grow with the number of frequencies.
    """
    frequencies, turns = grid.frequencies(), 1.0 / (2.0 * torch.tensor(grid.sizes))
    error, factor = float(_symbol_error(blocks, axes)), grid.excess(axes)
    g, co, ci = blocks.shape[:3]
    phases = math.prod(len(set(a.phases)) for a in axes)
    chunk = max(1, CHUNK // (g * (2 * co * ci * phases + 4 * min(co, ci * phases) ** 2)))
    parts = list(frequencies.split(chunk))
    if near is not None:
        angles = 2 * math.pi * frequencies * turns
        gap = torch.stack([(angles - 2 * math.pi * sign * near).cos().sum(1) for sign in (1, -1)]).amax(0)
        frequencies = frequencies[gap.argsort(descending=True)]
        parts = [frequencies[: min(chunk, 4)], *frequencies[min(chunk, 4) :].split(chunk)]
    limit = max(give_up_above - error, 0.0) ** 2 / factor
    square, rounding, peak = 0.0, 0.0, None
    for part in parts:
        if not part.numel():
            continue
        A = _symbols(blocks, axes, grid, part)
        S, e = gram(A if A.shape[1] <= A.shape[2] else A.mH)
        rounding = max(rounding, float(e.max()))
        square, top = common_eigenvalue_upper(S, square, limit)
        peak = peak if top is None else part[top // g] * turns
        if square == math.inf:
            return TorusNorm(math.inf, peak)
    root = enlarge(torch.tensor((square + rounding) * factor, dtype=torch.float64), gamma(4)).sqrt()
    return TorusNorm(float(round_up(enlarge(root, gamma(2)) + error)), peak)


@torch.no_grad()
def convolution_norm_upper(weight: Tensor, geometry: Geometry, dense: bool = True) -> float:
    """Upper bound on the spectral norm of the zero-padded convolution with this weight (c_out, c_in / groups, *kernel).

    `dense` allows small operators to be bounded as matrices, which is exact up to rounding; otherwise, and for all
    large ones, the least bound over several tori and Schur's test.  inf if an entry is not finite.
    Sound because: a block-diagonal operator's norm is the largest of its blocks' (groups); for the rest see above.
    """
    weight = as_wide(weight)
    if not bool(weight.isfinite().all()):
        return math.inf
    axes = geometry.axes(tuple(weight.shape[2:]))
    if not bool(weight.any()) or any(not a.taps for a in axes):
        return 0.0
    scaled, exponent = to_unit(weight, weight.dim())
    blocks = geometry.blocks(scaled)
    g, rows, columns = geometry.dense_shape(weight)
    if dense and min(rows, columns) <= DENSE_SIDE and g * rows * columns <= DENSE_ENTRIES:
        best = float(spectral_norm_upper(geometry.dense(scaled)).max())
    else:
        best, peak = _schur_upper(blocks, axes), None
        for grid in grids(axes):
            found = torus_norm_upper(blocks, axes, grid, best * WORTH, peak)
            best, peak = min(best, found.upper), found.peak if found.peak is not None else peak
    return float(from_unit_upper(torch.tensor(best + UNDERFLOW, dtype=torch.float64), exponent.flatten()[0]))


@torch.no_grad()
def convolution_schur_upper(weight: Tensor, geometry: Geometry) -> float:
    """Upper bound sqrt(||T||_1 ||T||_inf) on the norm of the convolution with |weight|; inf if not finite."""
    weight = as_wide(weight)
    axes = geometry.axes(tuple(weight.shape[2:]))
    if not bool(weight.isfinite().all()):
        return math.inf
    if not bool(weight.any()) or any(not a.taps for a in axes):
        return 0.0
    scaled, exponent = to_unit(weight, weight.dim())
    best = torch.tensor(_schur_upper(geometry.blocks(scaled), axes) + UNDERFLOW, dtype=torch.float64)
    return float(from_unit_upper(best, exponent.flatten()[0]))


def _schur_upper(blocks: Tensor, axes: tuple[Axis, ...]) -> float:
    """Upper bound sqrt(||T||_1 ||T||_inf) that ignores the borders, for blocks of unit scale.

    Sound because: an output reads each tap at most once, an input is read by each tap at most once, and only by the
    taps of its own phase.
    """
    magnitude = blocks.abs()
    for k, axis in enumerate(axes):
        magnitude = magnitude.index_select(3 + k, torch.tensor(axis.taps, dtype=torch.long))
    magnitude = magnitude.flatten(3)
    phase = torch.zeros(1, dtype=torch.long)
    for axis in axes:
        phase = (phase[:, None] * axis.stride + torch.tensor(axis.phases)).flatten()
    rows = float(magnitude.sum((2, 3)).max())
    columns = max(float(magnitude[..., phase == p].sum((1, 3)).max()) for p in phase.unique())
    return math.sqrt(rows) * math.sqrt(columns) * (1 + 2 * gamma(magnitude.numel() + 8))
