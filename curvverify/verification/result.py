"""What a run proved: a frozen record that serialises and loads back."""

from __future__ import annotations

from dataclasses import dataclass

from curvverify.types import Verdict


@dataclass(frozen=True)
class Witness:
    """A counterexample: the float32 input (flat) and the output the model's own runtime computed for it (flat)."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    replayed: bool
    """True where ONNX Runtime (CPU, float32, zero tolerance) confirmed it, or a torch module itself where the model is
    one; a verdict rests only on such a witness."""


@dataclass(frozen=True)
class DisjunctBound:
    """How far one disjunct of one input box got.

    `margin_lower` is the largest proved lower bound over its rows of min a.f(x) - b over the box: positive means that
    the disjunct is refuted.  `rows` holds every row's own bound.
    """

    group: int
    disjunct: int
    margin_lower: float
    rows: tuple[float, ...]
    settled_by: str | None
    """The stage that refuted it, None while it is open."""


@dataclass(frozen=True)
class Stage:
    """One step of the driver."""

    name: str
    seconds: float
    open_before: int
    open_after: int
    detail: str = ""


@dataclass(frozen=True)
class Provenance:
    """Enough to run it again: versions, hashes of both inputs, numerics, options."""

    version: str
    model: str
    model_sha256: str
    query: str
    query_sha256: str
    numerics: str
    packages: dict[str, str]
    options: dict[str, object]


@dataclass(frozen=True)
class Result:
    """The verdict on one query, and everything that supports it."""

    verdict: Verdict
    margin_lower: float
    """Smallest `margin_lower` over all disjuncts: positive exactly when everything is proved; -inf where nothing is."""
    disjuncts: tuple[DisjunctBound, ...]
    witness: Witness | None
    stages: tuple[Stage, ...]
    seconds: float
    provenance: Provenance
    subproblems: int = 0
    notes: tuple[str, ...] = ()
