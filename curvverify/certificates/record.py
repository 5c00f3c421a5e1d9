"""What is asked for, and what is found: frozen records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from curvverify.errors import UsageError

Domain = tuple[float, float]

Effort = Literal["fast", "normal", "high"]


@dataclass(frozen=True)
class RadiusOptions:
    """How radii are searched for."""

    norm: Literal["l2", "linf"] = "l2"
    eps: tuple[float, ...] = ()
    """Radii to decide; empty: find the largest.  The search of a sample ends once the largest is proved, or some are
    proved and the others refuted."""
    domain: Domain | None = None
    """Every entry of an admissible input lies between these; None: there is no such limit."""
    effort: Effort = "normal"
    """fast: closed forms with global constants; normal: then the dual, and linear bounds on the region itself for l_inf
    and wherever a network has kinks or more than two layers (with eps, coupled ones too); high: then coupled bounds,
    constants of the ball and the anchored quadratic, with more iterations wherever a gap is left."""
    attack: bool = False
    """Also attack every sample by projected gradient descent at its certified radius and at the radii asked for."""
    batch: int = 64
    """Samples that are worked on together."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "linf"):
            raise UsageError(f"unknown norm {self.norm!r}: choose l2 or linf")
        if self.effort not in ("fast", "normal", "high"):
            raise UsageError(f"unknown effort {self.effort!r}: choose fast, normal or high")
        if any(not (e > 0.0 and math.isfinite(e)) for e in self.eps):
            raise UsageError("every eps must be a positive number")
        if self.domain is not None and not self.domain[0] < self.domain[1]:
            raise UsageError(f"the domain {self.domain[0]:g},{self.domain[1]:g} is empty")
        if self.batch < 1:
            raise UsageError("batch must be at least 1")


@dataclass(frozen=True)
class SampleRadius:
    """One sample: every admissible input closer than radius_certified gets its label.

    All radii are 0 where the sample itself is misclassified.  radius_attacked is the distance of the closest
    counterexample found, confirmed by the original model and over the reals; inf where none was found.
    """

    label: int
    predicted: int
    radius_certified: float
    radius_attacked: float
    method: str
    """What gave the certified radius."""
    exact: bool
    """Whether the two radii are within 1e-3 of each other, absolutely and relatively."""
    radius_lipschitz: float
    """By the global Lipschitz constants alone."""
    radius_taylor: float
    """By the gradient at the sample and global curvature alone."""
    attack_certificate: float
    """Within this distance (of the norm, without the domain) a counterexample certainly exists; inf if not known."""
    seconds: float
    """Shared out evenly among the samples of a batch."""

    def decided(self, eps: float) -> bool | None:
        """True where eps is certified, False where a counterexample is known within it, None where it is open."""
        if self.radius_certified >= eps:
            return True
        return False if self.radius_attacked <= eps else None


@dataclass(frozen=True)
class RadiusReport:
    """Certified radii of a set of samples, in their order."""

    model: str
    norm: str
    domain: Domain | None
    eps: tuple[float, ...]
    samples: tuple[SampleRadius, ...]
    seconds: float
    """Including the constants of the network."""

    @property
    def radii(self) -> tuple[float, ...]:
        return tuple(s.radius_certified for s in self.samples)

    @property
    def clean_accuracy(self) -> float:
        return _share([s.label == s.predicted for s in self.samples])

    def certified_accuracy(self, eps: float) -> float:
        """Share of samples that are proved to keep their label within eps."""
        return _share([s.radius_certified >= eps for s in self.samples])

    def attacked_accuracy(self, eps: float) -> float:
        """Share of samples without a known counterexample within eps: true robust accuracy lies between the two."""
        return _share([s.radius_attacked > eps for s in self.samples])


def is_exact(certified: float, attacked: float) -> bool:
    """Whether two proved radii are within 1e-3 of each other, absolutely and relatively."""
    return attacked - certified <= 1e-3 * min(1.0, attacked)


def _share(found: list[bool]) -> float:
    return sum(found) / len(found) if found else math.nan
