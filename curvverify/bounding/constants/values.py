"""Lipschitz, curvature and third-order constants of one node, with the formulas that gave them.

Arithmetic on upper bounds: every operand is nonnegative, so that a relative enlargement covers all rounding, and
0 * inf is 0, because a factor that is exactly 0 says that the term is absent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.numerics.norms.scaling import enlarge
from curvverify.numerics.rounding import gamma


@dataclass(frozen=True)
class Bound:
    """A proved upper bound and the name of the formula it comes from."""

    value: float
    formula: str

    def least(self, *others: Bound) -> Bound:
        """The smallest; the first of equals."""
        return min((self, *others), key=lambda bound: bound.value)


UNBOUNDED = Bound(math.inf, "unbounded")


@dataclass(frozen=True, eq=False)
class Entries:
    """Constants of every entry of a node on its own: tensors of the node's shape."""

    lipschitz: Tensor
    curvature: Tensor
    third_order: Tensor


@dataclass(frozen=True, eq=False)
class Constants:
    """Upper bounds for the map from the input to one node.

    lipschitz: sup ||Df||; curvature: Lipschitz constant of Df, sup ||D^2 f|| where that exists; third_order: Lipschitz
    constant of D^2 f.  Norms: the input's, chosen by the caller, to l_2 of the node's value; for an entry, its absolute
    value.
    """

    lipschitz: Bound
    curvature: Bound
    third_order: Bound
    entries: Entries

    def least(self, other: Constants) -> Constants:
        """The better of two for every constant."""
        mine, theirs = self.entries, other.entries
        return Constants(
            self.lipschitz.least(other.lipschitz),
            self.curvature.least(other.curvature),
            self.third_order.least(other.third_order),
            Entries(
                torch.minimum(mine.lipschitz, theirs.lipschitz),
                torch.minimum(mine.curvature, theirs.curvature),
                torch.minimum(mine.third_order, theirs.third_order),
            ),
        )

    def consistent(self) -> Constants:
        """With what the entries and the whole say of each other.

        Sound because: one entry is at most the norm of all, and the norm of all at most the l_2 norm of the entries'.
        """
        e = self.entries
        pairs = [(self.lipschitz, e.lipschitz), (self.curvature, e.curvature), (self.third_order, e.third_order)]
        whole = [bound.least(Bound(length(x), "entries")) for bound, x in pairs]
        lipschitz, curvature, third = (x.clamp(max=b.value) for b, (_, x) in zip(whole, pairs, strict=True))
        return Constants(whole[0], whole[1], whole[2], Entries(lipschitz, curvature, third))


def plus(*terms: float) -> float:
    """Upper bound on the sum."""
    total = 0.0
    for t in terms:
        total = math.nextafter(total + t, math.inf) if t else total
    return math.inf if math.isnan(total) else total


def times(*factors: float) -> float:
    """Upper bound on the product; 0 where a factor is 0."""
    if any(f == 0.0 for f in factors):
        return 0.0
    product = 1.0
    for f in factors:
        product = math.nextafter(product * f, math.inf)
    return math.inf if math.isnan(product) else product


def scaled(x: Tensor, *factors: Tensor | float) -> Tensor:
    """Upper bound on the product entry by entry; 0 where a factor is 0."""
    product = x
    for f in factors:
        f = torch.as_tensor(f, dtype=torch.float64)
        product = torch.where((product == 0) | (f == 0), 0.0, product * f)
    return enlarge(product, gamma(2 * len(factors) + 4))


def total(*terms: Tensor) -> Tensor:
    """Upper bound on the sum entry by entry."""
    return enlarge(torch.stack([t.expand(terms[0].shape) for t in terms]).sum(0), gamma(len(terms) + 4))


def largest(x: Tensor) -> float:
    """The largest entry; inf for NaN, 0 where there is none."""
    value = float(x.max()) if x.numel() else 0.0
    return math.inf if math.isnan(value) else value


def length(x: Tensor) -> float:
    """Upper bound on the l_2 norm of a nonnegative tensor."""
    top = largest(x)
    if top in (0.0, math.inf):
        return top
    square = (x / top).square().sum()
    return float(enlarge(square.sqrt() * top, gamma(x.numel() + 8)))
