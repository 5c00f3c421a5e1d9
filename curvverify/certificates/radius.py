"""`curvverify.certified_radius`: the largest proved radius of every sample of a data set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvverify.bounding.constants.setting import Structure
from curvverify.certificates.evaluate import Evaluator
from curvverify.certificates.l2 import L2Certifier
from curvverify.certificates.linf import LinfCertifier
from curvverify.certificates.local import LocalAnalyser
from curvverify.certificates.pairs import global_pairs
from curvverify.certificates.quadratic import TwoLayers
from curvverify.certificates.record import Domain, Effort, RadiusOptions, RadiusReport, SampleRadius
from curvverify.certificates.region_bounds import RegionBounds
from curvverify.certificates.witness import Confirmer
from curvverify.errors import UnsupportedError, UsageError
from curvverify.graph import LoadedModel, load
from curvverify.graph.layers import Graph
from curvverify.graph.replay import Replayer
from curvverify.spec.dataset import as_array, checked_samples

if TYPE_CHECKING:
    import os

    import onnx

MOST_CLASSES = 64


def network_size(loaded: LoadedModel | Graph) -> tuple[int, int]:
    """(entries of an input, number of classes); UnsupportedError where it is no classifier."""
    graph = loaded if isinstance(loaded, Graph) else loaded.graph
    classes = graph.nodes[graph.output].size
    if not 2 <= classes <= MOST_CLASSES:
        raise UnsupportedError(
            f"radii need a classifier with 2 to {MOST_CLASSES} scores, and the network has {classes}"
        )
    return graph.nodes[0].size, classes


class Certifier:
    """A network prepared for certifying: its constants are computed once, for the labels that occur."""

    def __init__(self, loaded: LoadedModel, labels: Sequence[int], options: RadiusOptions):
        self.options = options
        graph = loaded.graph.to(torch.float64)
        structure = Structure(graph)
        n, _ = network_size(loaded)
        low, high = (-torch.inf, torch.inf) if options.domain is None else options.domain
        lower, upper = (torch.full((n,), float(e), dtype=torch.float64) for e in (low, high))
        self.evaluator = Evaluator(structure)
        confirmer = Confirmer(Replayer(loaded).run, self.evaluator, lower, upper, options.norm)
        table = global_pairs(structure, sorted(set(labels)), options.norm)
        deep = graph.levels[graph.output] > 1  # with two layers the global constants are as good as local ones
        local = LocalAnalyser(graph) if deep and options.effort == "high" else None
        bounds = None if options.effort == "fast" else RegionBounds(graph, options.norm, lower, upper)
        if options.norm == "l2":
            two = TwoLayers.of(self.evaluator) if options.effort != "fast" else None
            kinked = not bool(torch.isfinite(table.bend[table.lipschitz.isfinite()]).all())
            region = bounds if deep or kinked else None  # otherwise the dual is next to exact
            self.worker: L2Certifier | LinfCertifier = L2Certifier(
                self.evaluator, table, confirmer, options, local, two, region
            )
        else:
            self.worker = LinfCertifier(self.evaluator, table, confirmer, options, bounds)

    def run(self, x: Tensor, y: Tensor) -> Iterator[SampleRadius]:
        """The samples' records in order, as their batches are done."""
        for xs, ys in zip(x.split(self.options.batch), y.split(self.options.batch), strict=True):
            yield from self.worker.batch(xs, ys)


def certified_radius(
    model: str | os.PathLike[str] | onnx.ModelProto | torch.nn.Module | LoadedModel,
    x: Any,
    y: Any,
    *,
    norm: str = "l2",
    eps: Sequence[float] = (),
    domain: Domain | str | None = "auto",
    effort: Effort = "normal",
    attack: bool = False,
    shapes: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
) -> RadiusReport:
    """Proved radii of samples: no admissible input closer than that gets another class than the sample's label.

    x: (N, ...) inputs, or one without N; bytes are divided by 255, floating-point numbers are taken as is; y: labels.
    `domain` (low, high) are the values an entry may take; "auto" is [0, 1] for bytes and none for other inputs.  With
    `eps` these radii are decided instead of looking for the largest.  All other classes are rivals, always.
    Radii are 0 where the network already misclassifies the sample.
    Raises UsageError for NaN, wrong shapes, labels out of range and samples outside of the domain.
    """
    started = time.monotonic()
    xs = as_array(x)
    if isinstance(model, torch.nn.Module) and shapes is None:
        shapes = (1, *(xs.shape[1:] if as_array(y).ndim else xs.shape))
    loaded = model if isinstance(model, LoadedModel) else load(model, shapes=shapes)
    chosen: Domain | None = resolve_domain(domain, xs.dtype == "uint8")
    options = RadiusOptions(norm, tuple(float(e) for e in eps), chosen, effort, attack)  # type: ignore[arg-type]
    samples = checked_samples(xs, y, *network_size(loaded), chosen, shape=loaded.graph.input_shape)
    certifier = Certifier(loaded, samples.y.tolist(), options)
    found = tuple(certifier.run(samples.x, samples.y))
    return RadiusReport(loaded.name, options.norm, chosen, options.eps, found, time.monotonic() - started)


def resolve_domain(domain: Domain | str | None, bytes_: bool) -> Domain | None:
    """ "auto" is [0, 1] for bytes and no limit for other inputs."""
    if isinstance(domain, str):
        if domain != "auto":
            raise UsageError(f"domain {domain!r}: give (low, high), None or 'auto'")
        return (0.0, 1.0) if bytes_ else None
    return None if domain is None else (float(domain[0]), float(domain[1]))
