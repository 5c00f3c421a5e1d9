"""What a trained classifier is worth on a data set: accuracy, certified and attacked shares, curvature."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.estimates import Margin, curvature_estimates
from curvverify.bounding.constants.report import curvature
from curvverify.bounding.constants.setting import Structure
from curvverify.certificates.evaluate import Evaluator
from curvverify.certificates.radius import Certifier
from curvverify.certificates.record import Domain, Effort, RadiusOptions
from curvverify.certificates.witness import descended
from curvverify.errors import UnsupportedModelError
from curvverify.graph import LoadedModel
from curvverify.spec.dataset import Samples


@dataclass(frozen=True)
class AtRadius:
    """Shares of all samples at an l_2 radius: proved, and without a known counterexample."""

    eps: float
    certified: float
    attacked: float


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of samples.  What ends in _estimate proves nothing; NaN where a network has kinks."""

    model: str
    samples: int
    clean: float
    at: tuple[AtRadius, ...]
    linf: float | None
    attacked_linf: float | None
    """Share of samples that projected gradient descent within the l_inf radius does not turn."""
    gradient_norm_estimate: float
    """Mean over the samples, of the label's lead over the closest rival; so are the next two."""
    hessian_norm_estimate: float
    normalised_curvature_estimate: float
    lipschitz_upper: float
    """Of the whole output over all inputs, proved."""
    curvature_upper: float
    seconds: float


def evaluate(
    loaded: LoadedModel,
    samples: Samples,
    eps: tuple[float, ...],
    linf: float | None = None,
    domain: Domain | None = None,
    effort: Effort = "normal",
) -> Evaluation:
    """The record above; radii as `curvverify radius --attack --eps` decides them, with the same `effort`."""
    started = time.monotonic()
    x, y = samples.x, samples.y
    options = RadiusOptions(eps=eps, domain=domain, effort=effort, attack=True)
    found = list(Certifier(loaded, y.tolist(), options).run(x, y)) if eps else []
    evaluator = Evaluator(Structure(loaded.graph.to(torch.float64)))
    right = evaluator.scores(x).argmax(1) == y
    constants = curvature(loaded).output
    return Evaluation(
        model=loaded.name,
        samples=len(x),
        clean=float(right.double().mean()),
        at=tuple(
            AtRadius(
                e,
                sum(s.radius_certified >= e for s in found) / len(x),
                sum(s.radius_attacked > e for s in found) / len(x),
            )
            for e in eps
        ),
        linf=linf,
        attacked_linf=None if linf is None else _standing(evaluator, x, y, linf, domain),
        **_estimates(loaded, x, y),
        lipschitz_upper=constants.lipschitz_upper,
        curvature_upper=constants.curvature_upper,
        seconds=time.monotonic() - started,
    )


def _standing(evaluator: Evaluator, x: Tensor, y: Tensor, linf: float, domain: Domain | None) -> float:
    """The share of samples that are right, and still are at the worst point that descent finds."""
    low, high = (-math.inf, math.inf) if domain is None else domain
    standing = 0
    for xs, ys in zip(x.split(256), y.split(256), strict=True):
        d = descended(evaluator, xs, ys, xs.new_full((len(xs),), linf), (low - xs, high - xs), "linf")
        both = (evaluator.scores(xs).argmax(1) == ys) & (evaluator.scores(xs + d).argmax(1) == ys)
        standing += int(both.sum())
    return standing / len(x)


def _estimates(loaded: LoadedModel, x: Tensor, y: Tensor) -> dict[str, float]:
    """Means over the samples; NaN for all three where the network has kinks."""
    names = ("gradient_norm_estimate", "hessian_norm_estimate", "normalised_curvature_estimate")
    try:
        found = curvature_estimates(loaded.graph, x.reshape(-1, *loaded.graph.input_shape), Margin(y))
    except UnsupportedModelError:
        return dict.fromkeys(names, math.nan)
    return {name: getattr(found, name).mean_estimate.value for name in names}
