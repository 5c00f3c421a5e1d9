"""The coefficients c of the squares and the shares p of the budget, row by row, and the price of the squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from curvverify.bounding.coupling.block import Block, Site
from curvverify.bounding.coupling.hulls import Support
from curvverify.bounding.resume import Weights
from curvverify.numerics.norms.eigenvalues import certify, lanczos_estimates
from curvverify.numerics.norms.scaling import from_unit_upper, times_power_of_two
from curvverify.numerics.rounding import gamma
from curvverify.ops.base import Lines

POWER = 0.3
"""Exponent of every multiplicative update; larger ones oscillate."""

FLOOR = 1e-4
"""Smallest coefficient relative to the full one: what is 0 would stay 0."""

FIRST = 0.25
"""First coefficients c_k |G_k|_1^2 at most this share of the largest full one."""

OVERLAP = 1.06
"""What the trace estimate of the largest eigenvalue is multiplied by."""

FACTORS = (1.0, 0.6, 0.36, 0.2, 0.1, 0.05, 0.025)
"""By what first coefficients that were not started with caution may be multiplied."""

LANCZOS = 12
"""Lanczos steps for the estimate that is tried to be certified."""

STEPS = (1e-3, 1e-2, 0.1)
"""Relative distances above the estimate at which the largest eigenvalue is tried to be certified."""


class CoupledRows:
    """A block's state for the rows of one substitution; see `substitution.Coupled`.

    c (B, R, n) and p (B, R, G) are found in float32 by a fixed-point rule: with M = C G diag(1/p) G^T C and the weights
    B = M^4 / tr M^4 on its large eigenvalues, the price spreads delta with second moments budget lambda_max B_kk / c_k;
    c_k grows where the hull's own second moment is larger, p_i follows sqrt(x_i^T C B C x_i).
    """

    def __init__(self, block: Block):
        self.block = block
        self.search = block.to(torch.float32)
        self.c: Tensor | None = None
        self.p = torch.empty(0)
        self._row: dict[int, tuple[Tensor, Tensor]] = {}
        self._parts = dict(
            zip(
                (site.node for site in block.sites),
                torch.arange(block.size).split([site.entries.shape[1] for site in block.sites]),
                strict=True,
            )
        )

    @property
    def sites(self) -> tuple[int, ...]:
        return tuple(site.node for site in self.block.sites)

    def resume(self, weights: Weights) -> None:
        """Start from the weights that similar rows had on the same frame; those of another size are ignored."""
        c, p = weights
        if c.shape[2] == self.block.size and p.shape[2] == self.block.gram.shape[1]:
            self.c, self.p = c, p

    @property
    def weights(self) -> Weights | None:
        return None if self.c is None else (self.c, self.p)

    def couple(
        self, rows: Mapping[int, Tensor], points: Mapping[int, Tensor], lines: Mapping[int, Lines], rigorous: bool
    ) -> tuple[dict[int, Lines], Tensor]:
        """The protocol's: one update of (c, p), two at first, then the lines of the hulls and their price."""
        dtype = next(iter(rows.values())).dtype
        row, point = self._gather(rows), self._gather(points)
        if not bool(row.any()):
            return dict(lines), row.new_zeros(row.shape[:2])
        for _ in range(2 if self.c is None else 1):
            self._update(row.float(), point.float())
        assert self.c is not None
        size, below = row.abs(), row > 0
        kappa = torch.where(size > 0, self.c.to(dtype) / size, 0.0)
        block = self.block.to(dtype)
        found, used = dict(lines), torch.zeros_like(row)
        for site in block.sites:
            if site.node in rows:
                part = self._parts[site.node]
                support = site.hulls.support(point[..., part], below[..., part], kappa[..., part])
                used[..., part] = support.kappa
                self._row[site.node] = row[..., part], support.kappa
                found[site.node] = _overwritten(lines[site.node], site, support, below[..., part])
        c = size * used
        return found, self._price(c) if rigorous else c.new_zeros(c.shape[:2])

    def relaxed(self, site: int, point: Tensor, value: Tensor) -> Tensor:
        """The protocol's: the hull's mixture of values of sigma, that is the hull less kappa/2 times the square."""
        if site not in self._row:
            return value
        row, kappa = self._row[site]
        block = self.block.to(value.dtype)
        place = next(s for s in block.sites if s.node == site)
        index = _entries(place, value)
        z = point.flatten(2).gather(2, index)
        below = row > 0
        support = place.hulls.support(z, below, kappa)
        hull = support.slope * z + support.intercept - 0.5 * support.kappa * support.square
        sigma = torch.where(below, hull, -hull).maximum(place.image.lower).minimum(place.image.upper)
        flat = value.flatten(2)
        sigma = torch.where(support.kappa > 0, sigma, flat.gather(2, index))
        return flat.scatter(2, index, sigma).reshape(value.shape)

    def _gather(self, values: Mapping[int, Tensor]) -> Tensor:
        """(B, R, n): the sites' entries side by side, 0 for sites the rows do not depend on."""
        first = next(iter(values.values()))
        found = []
        for site in self.block.sites:
            if site.node in values:
                found.append(values[site.node].flatten(2).gather(2, _entries(site, values[site.node])))
            else:
                found.append(first.new_zeros(*first.shape[:2], site.entries.shape[1]))
        return torch.cat(found, 2)

    def _update(self, row: Tensor, point: Tensor) -> None:
        """One step of the fixed-point rule at the points."""
        block, below, size = self.search, row > 0, row.abs()
        full = size * self._each(lambda s, part: s.hulls.full(below[..., part]))
        first = self.c is None
        if first:
            self._begin(full)
        assert self.c is not None
        c = torch.minimum(torch.maximum(self.c, FLOOR * full), full)
        kappa = torch.where(size > 0, c / size.clamp(min=1e-30), 0.0)
        square = self._each(
            lambda s, part: s.hulls.support(point[..., part], below[..., part], kappa[..., part]).square
        )
        shares = torch.bmm(self.p.reciprocal(), block.gram).reshape(*c.shape, block.size)
        trace = (c * shares.diagonal(dim1=-2, dim2=-1)).sum(2, keepdim=True).clamp(min=1e-30)
        root = (c / trace).sqrt()
        M = _scaled(shares, root)
        B = M @ M
        B = B @ B
        weight = B.diagonal(dim1=-2, dim2=-1)
        norm = weight.sum(2, keepdim=True).clamp(min=1e-30)
        largest = OVERLAP * (trace * torch.linalg.vecdot(B.flatten(2), M.flatten(2)).unsqueeze(2) / norm).squeeze(2)
        total = self.p @ block.budget
        moment = (total * largest).unsqueeze(2) * weight / norm / c.clamp(min=1e-30)
        wish = torch.bmm(_scaled(B, root).flatten(2), block.gram.mT).clamp(min=0.0) / block.budget
        if first and bool((block.start[0] == 1.0).all()):
            factor = self._best_factor(size, below, point, kappa, 0.5 * total * largest)
            c, total = c * factor.unsqueeze(2), total * factor.sqrt()
            self.p = self.p * factor.sqrt().unsqueeze(2)
        change = ((square + 1e-9) / moment.clamp(min=1e-9)).clamp(0.3, 3.0) ** POWER
        self.c = torch.minimum(torch.maximum(c * change, FLOOR * full), full)
        self.p = self._share(wish.sqrt(), total)

    def _each(self, what: Callable[[Site, Tensor], Tensor]) -> Tensor:
        """(B, R, n): what is asked of every site and its entries, side by side."""
        return torch.cat([what(site, self._parts[site.node]) for site in self.search.sites], 2)

    def _begin(self, full: Tensor) -> None:
        """First coefficients: the full ones, less where the price per coefficient is high; p_i follows |x_i|."""
        reach = self.search.reach.square().unsqueeze(1)
        curved = (full * reach).amax(2, keepdim=True)
        share, most = self.search.start
        self.c = share * torch.minimum(most * full, FIRST * curved / reach.clamp(min=1e-30))
        self.p = (torch.bmm(self.c, self.search.diagonal.mT) / self.search.budget).sqrt()
        self.p = self.p.maximum(1e-4 * self.p.amax(2, keepdim=True)).clamp(min=1e-20)

    def _best_factor(self, size: Tensor, below: Tensor, point: Tensor, kappa: Tensor, price: Tensor) -> Tensor:
        """(B, R): by what to multiply c so that the hulls at the points, less the price, are highest."""
        best, factor = torch.full_like(price, -torch.inf), torch.ones_like(price)
        for f in FACTORS:
            support = [
                site.hulls.support(point[..., part], below[..., part], f * kappa[..., part])
                for site, part in ((s, self._parts[s.node]) for s in self.search.sites)
            ]
            hull = torch.cat([s.slope for s in support], 2) * point + torch.cat([s.intercept for s in support], 2)
            height = (size * hull).sum(2) - f * price
            factor = torch.where(height > best, f, factor)
            best = torch.maximum(best, height)
        return factor

    def _share(self, wish: Tensor, total: Tensor) -> Tensor:
        """p moved towards the wish, whose budget is made `total`."""
        budget = self.search.budget
        wish = wish * (total / (wish @ budget).clamp(min=1e-30)).unsqueeze(2)
        wish = wish.maximum(1e-3 * (total / budget.sum()).unsqueeze(2)).clamp(min=1e-20)
        return self.p ** (1.0 - POWER) * wish**POWER

    def _price(self, c: Tensor) -> Tensor:
        """Upper bound (B, R) on 1/2 sum_k c_k (z_k - z0_k)^2 over the box, in float64.

        Sound because: |C (z - z0)| <= |C G xi| + |C eps|, and |C G xi|^2 <= lambda_max(S) sum_i p_i xi_i^2 with
        S = C G diag(1/p) G^T C.  The computed S is off by at most gamma sum_g |C G_g| |C G_g|^T / p_g entry by entry,
        whose norm is at most its trace, and that is the trace of S.
        """
        block, p, c = self.block, self.p.double(), c.double()
        shares = torch.bmm(p.reciprocal(), block.gram).reshape(*c.shape, block.size)
        trace = (c * shares.diagonal(dim1=-2, dim2=-1)).sum(2)
        exponent = torch.frexp(trace).exponent.to(torch.int64).clamp(-1000, 1000)
        S = _scaled(shares, times_power_of_two(c, -exponent.unsqueeze(2)).sqrt())
        largest = largest_upper(S.flatten(0, 1)).reshape(trace.shape)
        rounding = gamma(block.frame.terms + 2 * block.size + 16) * 1.01 * trace
        largest = from_unit_upper(largest.clamp(min=0.0), exponent) + rounding
        budget = (p * block.budget).sum(2)
        stray = (c * block.error.square().unsqueeze(1)).sum(2)
        price = 0.5 * ((largest * budget).sqrt() + stray.sqrt()) ** 2
        return (price * (1.0 + 1e-11)).nan_to_num(nan=torch.inf, posinf=torch.inf)


def largest_upper(S: Tensor) -> Tensor:
    """Upper bounds (K) on the largest eigenvalues of symmetric positive semidefinite (K, n, n) of unit scale.

    A little loose.  S stands for its Hermitian part, and may miss to be semidefinite by rounding: 1e-9 of its trace.
    Sound because: of `certify`; where that fails, the trace is a bound.
    """
    bound = S.diagonal(dim1=-2, dim2=-1).sum(1) * 1.000001 + 1e-100
    left = torch.arange(len(S))
    if S.shape[-1] > 1:
        estimate = lanczos_estimates(S, LANCZOS)
        for step in STEPS:
            some = S if len(left) == len(S) else S[left]
            upper = certify(some, estimate[left] * (1.0 + step) + 1e-12)
            bound[left] = torch.minimum(bound[left], upper)
            left = left[~upper.isfinite()]
            if not left.numel():
                break
    return torch.where(bound.isnan(), torch.inf, bound)


def _scaled(S: Tensor, root: Tensor) -> Tensor:
    """diag(root) S diag(root) in the place of S."""
    return S.mul_(root.unsqueeze(3)).mul_(root.unsqueeze(2))


def _entries(site: Site, value: Tensor) -> Tensor:
    """(B, R, n): the site's flat positions for every row."""
    boxes, n = site.entries.shape
    return site.entries.unsqueeze(1).expand(boxes, value.shape[1], n)


def _overwritten(lines: Lines, site: Site, support: Support, below: Tensor) -> Lines:
    """The plain lines with those of the hulls in their places; kappa = 0 keeps the plain one."""
    take = support.kappa > 0
    shape = lines.slope.shape
    index = _entries(site, lines.slope)
    parts = []
    for plain, line in ((lines.slope, support.slope), (lines.intercept, support.intercept)):
        flat = plain.expand(shape).flatten(2)
        shared = torch.where(below, line, -line)
        parts.append(flat.scatter(2, index, torch.where(take, shared, flat.gather(2, index))).reshape(shape))
    return Lines(*parts)
