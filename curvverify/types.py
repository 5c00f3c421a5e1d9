"""The frozen records that everybody passes around."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """Elementwise bounds `lower <= v <= upper`: two tensors of one shape and dtype."""

    lower: Tensor
    upper: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.lower.shape

    @property
    def magnitude(self) -> Tensor:
        """Upper bound on |v|."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    @property
    def centre(self) -> Tensor:
        """The midpoint, rounded."""
        return 0.5 * (self.lower + self.upper)

    @property
    def width(self) -> Tensor:
        return self.upper - self.lower

    def intersect(self, other: Interval) -> Interval:
        """Bounds that hold when both do."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def to(self, dtype: torch.dtype) -> Interval:
        return Interval(self.lower.to(dtype), self.upper.to(dtype))

    def __getitem__(self, index: object) -> Interval:
        return Interval(self.lower[index], self.upper[index])  # type: ignore[index]


@dataclass(frozen=True)
class Ball:
    """The inputs within an l_2 distance `radius` of `centre`, which has the input's size; the radius may be inf."""

    centre: Tensor
    radius: float


class Verdict(StrEnum):
    """The answers, spelled as the VNN-LIB 2.0 standard prescribes them on stdout."""

    VERIFIED = "unsat"
    FALSIFIED = "sat"
    UNKNOWN = "unknown"
    TIMEOUT = "timed-out"


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock; created once per run and handed down."""

    at: float

    @classmethod
    def after(cls, seconds: float, start: float | None = None) -> Deadline:
        return cls((time.monotonic() if start is None else start) + seconds)

    @classmethod
    def never(cls) -> Deadline:
        return cls(float("inf"))

    @property
    def remaining(self) -> float:
        """Seconds left, negative once it has passed."""
        return self.at - time.monotonic()

    @property
    def passed(self) -> bool:
        return self.remaining <= 0.0

    def sooner(self, seconds: float) -> Deadline:
        """The earlier of this deadline and `seconds` from now."""
        return Deadline(min(self.at, time.monotonic() + seconds))
