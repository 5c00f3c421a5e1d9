"""Ways to split a subproblem, and which of them is expected to close it soonest."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

REMEMBERED = 24
"""Gains that an estimate is made of: the latest ones."""

LEAST = 0.01
"""Smaller gains count as this: a cut may pay only together with later ones."""


@dataclass(eq=False)
class Method:
    """One kind of cut with the bounds for its children, and what it has gained so far.

    A gain is the share of a parent's shortfall that a child no longer has: 1 where it is settled.
    """

    kind: str
    """"input", "neuron" or "slab"."""
    coupling: int = 0
    """Levels coupled in the children."""
    batch: int = 1
    """Subproblems split at once."""
    seconds: float = 0.0
    """Per subproblem split, lately."""
    gains: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def __str__(self) -> str:
        return f"{self.kind} coupled {self.coupling}" if self.coupling else self.kind

    def record(self, gains: list[float], seconds: float, split: int) -> None:
        """What one batch of so many subproblems brought, and took."""
        self.gains.extend(gains)
        each = seconds / max(1, split)
        self.seconds = each if self.seconds == 0.0 else 0.7 * self.seconds + 0.3 * each

    @property
    def expected(self) -> float:
        """Logarithm of the seconds that closing a subproblem is expected to take; -inf before the first trial.

        Where every split leaves children with the shares 1 - g of the shortfall, a tree whose size grows with the
        shortfall like exp(k s) has k with mean exp(-k g) = 1/2.
        """
        if not self.gains:
            return -math.inf
        gains = [max(g, LEAST) for g in self.gains]
        low, high = 0.0, math.log(2.0) / LEAST
        for _ in range(40):
            k = 0.5 * (low + high)
            if sum(math.exp(-k * g) for g in gains) > 0.5 * len(gains):
                low = k
            else:
                high = k
        return math.log(max(self.seconds, 1e-6)) + high


def best(methods: list[Method]) -> Method:
    """The method that is expected to close a subproblem soonest; each is tried once first, in order."""
    return min(methods, key=lambda method: method.expected)


def shares(parents: list[float], children: list[float]) -> list[float]:
    """The share of each parent's shortfall that its child no longer has."""
    gains = []
    for parent, child in zip(parents, children, strict=True):
        settled, finite = child > 0.0, -math.inf < parent < 0.0
        gains.append(1.0 if settled else min(max((child - parent) / -parent, 0.0), 1.0) if finite else 0.0)
    return gains
