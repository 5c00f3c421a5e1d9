"""Several methods on one query, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from curvverify.errors import UsageError
from curvverify.graph import LoadedModel, load
from curvverify.spec import load_query
from curvverify.spec.query import Query
from curvverify.verification.bound_methods import METHODS, BoundMethod
from curvverify.verification.driver import verify
from curvverify.verification.options import Options
from curvverify.verification.result import Result

if TYPE_CHECKING:
    import os

    import onnx


def compare(
    model: str | os.PathLike[str] | onnx.ModelProto | torch.nn.Module | LoadedModel,
    query: str | os.PathLike[str] | Query,
    methods: Iterable[str | BoundMethod] = METHODS,
    options: Options | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    progress: Callable[[str, Result], None] | None = None,
) -> dict[str, Result]:
    """What every method proves of the query, by the method's name, each with `options.timeout` of its own.

    Methods, `model`, `query` and `shapes` are those of `verify`.  The model is read once, every method attacks first
    and with the same seed.  `progress` gets every result as it comes.  UsageError where two methods share a name.
    """
    chosen = list(methods)
    names = [method if isinstance(method, str) else method.name for method in chosen]
    if len(set(names)) < len(names):
        raise UsageError(f"every method needs a name of its own, not {', '.join(names)}")
    parsed = query if isinstance(query, Query) else load_query(query)
    if isinstance(model, torch.nn.Module) and shapes is None:
        shapes = (1, parsed.inputs)
    loaded = model if isinstance(model, LoadedModel) else load(model, shapes=shapes)
    found: dict[str, Result] = {}
    for name, method in zip(names, chosen, strict=True):
        found[name] = verify(loaded, parsed, options, method=method)
        if progress is not None:
            progress(name, found[name])
    return found
