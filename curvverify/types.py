"""The frozen records that everybody passes around."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Columns:
    """Base of records whose fields, tensors or such records, are indexed together."""

    def __getitem__(self, index: Tensor | slice | int) -> Self:
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @classmethod
    def concatenated(cls, parts: Sequence[Self]) -> Self:
        """All of the parts, in order."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: _joined(column) for name, column in columns.items()})


def _joined(column: list[Any]) -> Any:
    return torch.cat(column) if isinstance(column[0], Tensor) else type(column[0]).concatenated(column)


@dataclass(frozen=True)
class Interval(Columns):
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
    def both(self) -> tuple[Tensor, Tensor]:
        """(lower, upper)."""
        return self.lower, self.upper

    @property
    def width(self) -> Tensor:
        return self.upper - self.lower

    def intersect(self, other: Interval) -> Interval:
        """Bounds that hold when both do."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def to(self, dtype: torch.dtype) -> Interval:
        return Interval(self.lower.to(dtype), self.upper.to(dtype))


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
    """A moment on the monotonic clock; created once per run and handed down.

    `cancel` brings it about at once, from any thread: whoever works towards it ends with the best found so far.
    """

    at: float
    _stop: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    @classmethod
    def after(cls, seconds: float, start: float | None = None) -> Deadline:
        return cls((time.monotonic() if start is None else start) + seconds)

    @classmethod
    def never(cls) -> Deadline:
        return cls(float("inf"))

    @property
    def remaining(self) -> float:
        """Seconds left, not positive once it has passed."""
        left = self.at - time.monotonic()
        return min(left, 0.0) if self.cancelled else left

    @property
    def passed(self) -> bool:
        return self.remaining <= 0.0

    def cancel(self) -> None:
        """Pass now; so do the deadlines that were made of this one, and those it was made of."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    def sooner(self, seconds: float) -> Deadline:
        """The earlier of this deadline and `seconds` from now; cancelled with it."""
        return Deadline(min(self.at, time.monotonic() + seconds), self._stop)
