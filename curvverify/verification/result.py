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
class Progress:
    """Where a run stands: what a progress callback gets, and what `Result.trace` is made of."""

    stage: str
    seconds: float
    """Since the start of the run."""
    seconds_left: float
    """Until the deadline."""
    margin_lower: float
    """The smallest margin proved so far, over everything that is open; inf where nothing is."""
    open_disjuncts: int
    """When the stage began; how many there still are where it has ended."""
    open_subproblems: int
    """Input boxes, or leaves of the branching, on which a disjunct is open."""
    bounded: int
    """Subproblems bounded by branching so far."""
    share_left: float
    """Mean over the query's input boxes of the shares of their open parts, see `OpenRegion.share`."""


@dataclass(frozen=True)
class Halfspaces:
    """low <= direction . x <= high, x the flat input."""

    direction: tuple[float, ...]
    low: float
    high: float


@dataclass(frozen=True)
class OpenRegion:
    """A part of one input box on which some disjuncts are not refuted.

    The box and the halfspaces hold all of that part (cuts at the arguments of activations narrow it further, and are
    not listed).  lower and upper are None where that is the whole input box of the group.
    """

    group: int
    disjuncts: tuple[int, ...]
    margin_lower: float
    share: float
    """1 / 2 to the number of cuts that made it: its share of the volume where inputs were cut, at their middle."""
    lower: tuple[float, ...] | None
    upper: tuple[float, ...] | None
    halfspaces: tuple[Halfspaces, ...]


@dataclass(frozen=True)
class Remaining:
    """What is open at the end: outside of these regions nothing is unsafe, where all `count` of them are listed."""

    count: int
    share: float
    """Mean over the query's input boxes of the shares of their open regions: 0 where all is proved, 1 at the start."""
    regions: tuple[OpenRegion, ...]
    """The worst of them."""


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
    given: str = ""
    """Where bounds came from that were taken at their word: with its hash, a file's name.  A proof rests on them."""


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
    trace: tuple[Progress, ...] = ()
    """How the run went, at most some hundred points."""
    remaining: Remaining | None = None
    """What is left where the verdict is unknown or timed-out, None otherwise."""
