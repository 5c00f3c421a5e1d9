"""Upper bounds on quadratic forms d^T Hessian d of scalar outputs, from both sides.

With F_j = dy / d(output of nonlinear node j) in [F_j-, F_j+] and p_j = F_j o sigma_j''(z_j) in [p_j-, p_j+],

    Hessian = sum_j Dz_j^T diag(p_j) Dz_j <= sum_j Dz_j^T diag(p_j+) Dz_j.

Two bounds on the right-hand side: term by term, sup ||diag(sqrt(max(p_j+, 0))) Dz_j||^2; and as one matrix, the maps
M_j of the centred network in the place of Dz_j = M_j + E_j, which keeps the signs and what cancels between neurons:
what is left is 2 ||E_j|| ||diag(p_j+) M_j|| + max(p_j+, 0) ||E_j||^2, small on small regions.  Where z_j is affine,
E_j = 0: with two layers this is the exact lambda_max(W^T diag(p+) W).

Sources: Singla and Feizi, ICML 2020, lemma 1, theorems 3 and 4, and the sign-split paths of their code; the centred
form is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.gradients import Derivatives, interval_product
from curvverify.bounding.constants.maps import CentredMaps
from curvverify.bounding.constants.second_order import Bends, weighted_upper
from curvverify.bounding.constants.setting import Setting
from curvverify.bounding.constants.values import Constants, plus, scaled, times, total
from curvverify.numerics.norms import largest_eigenvalue_upper, matrix_weighted_norm_upper
from curvverify.numerics.norms.scaling import enlarge
from curvverify.numerics.rounding import TINY, gamma
from curvverify.ops.product import Product
from curvverify.types import Interval

WORK_GLOBAL, WORK_LOCAL = 2**30, 2**33
"""Largest cost, rows times the cube of the number of inputs, for which forms are bounded as one matrix."""


@dataclass(frozen=True, eq=False)
class Term:
    """One elementwise node's part of the form: p_j <= edge (R, size_j), and the norm (R) of F_j."""

    node: int
    edge: Tensor
    norm: Tensor


@dataclass(frozen=True, eq=False)
class Forms:
    """Bounds on the quadratic forms of one setting."""

    setting: Setting
    known: dict[int, Constants]
    maps: CentredMaps | None
    bends: Bends

    def upper(self, backward: Derivatives, sign: int) -> tuple[Tensor, bool]:
        """Upper bounds (R) >= 0 on sign * d^T Hessian d over ||d|| <= 1; and whether they are the two-layer formula."""
        terms, rest = self._terms(backward, sign)
        count = len(rest)
        affine = [t for t in terms if self._affine(t)]
        others = [t for t in terms if not self._affine(t)]
        work = count * self.setting.graph.nodes[0].size ** 3
        if self.setting.norm != 2.0 or work > (WORK_LOCAL if self._local else WORK_GLOBAL):
            return total(rest, *(self._alone(t) for t in terms)), False
        apart = total(rest, self._together(affine, count), *(self._alone(t) for t in others))
        if others and self._local:
            worth = (total(rest, self._away(terms, count)) < apart).nonzero().squeeze(1)
            if len(worth):
                some = [Term(t.node, t.edge[worth], t.norm[worth]) for t in terms]
                apart[worth] = torch.minimum(apart[worth], total(rest[worth], self._together(some, len(worth))))
        return apart, len(terms) == 1 == len(affine) and not bool(rest.any())

    @property
    def _local(self) -> bool:
        """Whether the region is bounded, so that slopes may be nearly known."""
        return bool(self.setting.ranges[0].magnitude.isfinite().all())

    def _affine(self, term: Term) -> bool:
        (z,) = self.setting.graph.nodes[term.node].inputs
        known = self.maps is not None and z in self.maps.targets
        return known and self.maps.affine(z) and bool(term.edge.isfinite().all())  # type: ignore[union-attr]

    def _terms(self, backward: Derivatives, sign: int) -> tuple[list[Term], Tensor]:
        """The elementwise nodes, and the sum (R) of what products and blocks contribute at most."""
        graph = self.setting.graph
        rest = torch.zeros(len(next(iter(backward.norms.values()))), dtype=torch.float64)
        terms = []
        for j, F in backward.ranges.items():
            if j in self.setting.structure.blocks or isinstance(graph.nodes[j].op, Product):
                rest = total(rest, scaled(backward.norms[j], self.bends[j]))
            elif j in self.setting.second:
                second = self.setting.second[j]
                p = interval_product(F, Interval(second.lower.unsqueeze(0), second.upper.unsqueeze(0)))
                terms.append(Term(j, (p.upper if sign > 0 else -p.lower).flatten(1), backward.norms[j]))
        return terms, rest

    def _alone(self, term: Term) -> Tensor:
        """Upper bounds (R) on one term: by weighted norms, by the entries' own constants, or by norms alone."""
        (z,) = self.setting.graph.nodes[term.node].inputs
        edge = term.edge.clamp(min=0.0)
        whole = weighted_upper(self.setting, self.known, self.maps, z, enlarge(edge.sqrt(), gamma(4)))
        by_entry = scaled(edge, self.known[z].entries.lipschitz.flatten(), self.known[z].entries.lipschitz.flatten())
        form = torch.minimum(scaled(whole, whole), enlarge(by_entry.sum(1), gamma(edge.shape[1] + 8)))
        return torch.minimum(form, scaled(term.norm, self.bends[term.node]))

    def _away(self, terms: list[Term], count: int) -> Tensor:
        """Upper bounds (R) on sum_j sup E_j^T diag(p_j) E_j: what the form as one matrix costs at least."""
        amount = torch.zeros(count, dtype=torch.float64)
        for term in terms:
            (z,) = self.setting.graph.nodes[term.node].inputs
            if self.maps is None or z not in self.maps.targets:
                return torch.full((count,), torch.inf, dtype=torch.float64)
            away = self.maps.remainder(z, self.known)
            amount = total(amount, scaled(term.edge.clamp(min=0.0).amax(1), away, away))
        return amount

    def _together(self, terms: list[Term], count: int) -> Tensor:
        """Upper bounds (R) on the sum of several terms as one matrix; inf where a term has no map or is unbounded."""
        maps = self.maps
        if not terms:
            return torch.zeros(count, dtype=torch.float64)
        if maps is None or not all(bool(t.edge.isfinite().all()) for t in terms):
            return torch.full((count,), torch.inf, dtype=torch.float64)
        inputs = [self.setting.graph.nodes[t.node].inputs[0] for t in terms]
        found = [maps.maps.get((z, 0)) for z in inputs]
        basis = _basis([m.matrix for m in found if m is not None])
        n = self.setting.graph.nodes[0].size if basis is None else basis.columns.shape[1]
        matrix, error = torch.zeros(count, n, n, dtype=torch.float64), self._away(terms, count)
        for term, z, map_ in zip(terms, inputs, found, strict=True):
            if map_ is None:
                continue
            W, off = (map_.matrix, map_.error) if basis is None else basis.coordinates(map_.matrix, map_.error)
            size = term.edge.abs()
            norms = total(matrix_weighted_norm_upper(W.unsqueeze(0), left=size), scaled(size.amax(1), off))
            matrix = matrix + _grams(W, term.edge)
            rounding = 2.0**-52 * matrix.flatten(1).square().sum(1).sqrt()
            away = maps.remainder(z, self.known)
            error = total(error, rounding, _gram_errors(W, off, term.edge), scaled(norms, 2.0, away))
        top = torch.full((count,), torch.inf, dtype=torch.float64)
        finite = error.isfinite()
        if bool(finite.any()):
            top[finite] = largest_eigenvalue_upper(matrix[finite], error[finite]).clamp(min=0.0)
        return top if basis is None else scaled(top, basis.stretch)


@dataclass(frozen=True, eq=False)
class _Basis:
    """Nearly orthonormal columns (n, k) that span the rows of some matrices; ||columns||^2 <= stretch."""

    columns: Tensor
    stretch: float

    def coordinates(self, M: Tensor, error: float) -> tuple[Tensor, float]:
        """(B, e): M = B columns^T up to e in spectral norm, `error` in M included."""
        B = M @ self.columns
        rest = M - B @ self.columns.T
        size = float(M.norm()) + float(B.norm()) * float(self.columns.norm())
        return B, plus(error, times(float(rest.norm()), 1.001), times(size, gamma(2 * M.shape[1] + 16)))


def _basis(matrices: list[Tensor]) -> _Basis | None:
    """A basis of fewer directions than there are inputs, where the matrices have so few rows; else None."""
    n = matrices[0].shape[1] if matrices else 0
    if not matrices or sum(len(m) for m in matrices) > 0.7 * n:
        return None
    columns = torch.linalg.qr(torch.cat(matrices).T).Q
    gap = columns.T @ columns
    gap.diagonal().sub_(1.0)
    slack = gamma(2 * n + 16) * float(columns.norm()) ** 2
    return _Basis(columns, plus(1.0, times(float(gap.norm()), 1.001), slack))


def _grams(W: Tensor, weights: Tensor) -> Tensor:
    """W^T diag(p) W for every p of the weights (R, k)."""
    return torch.stack([(W.T * p) @ W for p in weights])


def _gram_errors(W: Tensor, error: float, weights: Tensor) -> Tensor:
    """Bounds (R) on what W^T diag(p) W lost, W being off by `error`.

    Sound because: rounding of a sum of k products is at most gamma times sum_k |p_k| |w_ki| |w_kl|, a matrix of norm at
    most sum_k |p_k| ||w_k||^2; the error E of W enters as E^T P W + W^T P E + E^T P E.
    """
    size = weights.abs()
    rounding = scaled(size @ W.square().sum(1), gamma(2 * len(W) + 16))
    mixed = scaled(size.amax(1), error, 2.1 * float(W.norm()) + error)
    return total(rounding, mixed, torch.full_like(mixed, TINY))
