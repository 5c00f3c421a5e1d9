"""The driver: network and query are read and checked against each other, then a `Run` decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from curvverify.errors import UnreadableError, UsageError
from curvverify.graph import LoadedModel, load
from curvverify.spec import load_query
from curvverify.spec.query import Query
from curvverify.types import Deadline
from curvverify.verification.bound_methods import STAGED, BoundMethod, method_of
from curvverify.verification.given import Given
from curvverify.verification.options import Options
from curvverify.verification.progress import Reporter
from curvverify.verification.result import Progress, Result
from curvverify.verification.run import Run

if TYPE_CHECKING:
    import os

    import onnx

SAFETY = 0.95
"""Fraction of the time limit after which the best bound so far is returned."""


def verify(
    model: str | os.PathLike[str] | onnx.ModelProto | torch.nn.Module | LoadedModel,
    query: str | os.PathLike[str] | Query,
    options: Options | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    deadline: Deadline | None = None,
    progress: Callable[[Progress], None] | None = None,
    given: Given | None = None,
    method: str | BoundMethod | None = None,
) -> Result:
    """Decide whether some input of the query's boxes has its output in an unsafe set.

    `model` is an ONNX path, a ModelProto, a torch module or what `curvverify.graph.load` returned; `query` a VNN-LIB
    path or a parsed Query.  `shapes` is the input shape of a torch module (default: one row, (1, n)), or the shapes of
    dynamic ONNX inputs by name.  `deadline` is when to stop (default: 95 % of `options.timeout` from now).  `progress`
    is called when stages begin and end, and up to ten times a second while branching; what it raises ends the run.
    `deadline.cancel()`, from the callback or another thread, ends the run soon with the verdict unknown
    and the best bounds so far.  Returns verified only on rigorous bounds over every box, falsified only with a witness
    that ONNX Runtime has confirmed, and otherwise unknown (timed-out at the deadline) with the best bounds so far.

    `given` bounds tighten ours; a verdict of verified then rests on them, and the result's provenance says so.
    `method` is what decides beside attacks: the verifier's own stages (None), a bound alone by its name (see
    `bound_methods.METHODS`), or a BoundMethod of your own, whose bounds are then taken for sound.

    Raises UnreadableError for malformed input, UnsupportedError for what this version cannot handle, UsageError for
    given bounds with a bound alone: only the verifier's own stages start from them.
    """
    bound, options = method_of(method, options or Options())
    if bound is not None and given is not None:
        raise UsageError(
            f"method {bound.name!r} makes its own bounds and does not start from those of {given.source}: "
            f"leave one of the two out, or take a method that does ({', '.join(STAGED)})"
        )
    started = time.monotonic()
    deadline = deadline or Deadline.after(SAFETY * options.timeout)
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    parsed = query if isinstance(query, Query) else load_query(query)
    if isinstance(model, torch.nn.Module) and shapes is None:
        shapes = (1, parsed.inputs)
    loaded = model if isinstance(model, LoadedModel) else load(model, shapes=shapes)
    _check_sizes(loaded, parsed)
    run = Run(loaded, parsed, options, deadline, Reporter(started, deadline, progress), started, given, bound)
    return run.decide()


def _check_sizes(loaded: LoadedModel, query: Query) -> None:
    inputs, outputs = loaded.graph.nodes[0].size, loaded.graph.nodes[-1].size
    for what, declared, actual in (("input", query.inputs, inputs), ("output", query.outputs, outputs)):
        if declared != actual:
            raise UnreadableError(
                f"{query.path or 'query'} declares {declared} {what} variables, but the network {loaded.name} has "
                f"{actual}: the two do not belong together"
            )
