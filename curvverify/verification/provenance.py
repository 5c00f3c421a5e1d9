"""Where a result comes from: versions, hashes, options."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

from curvverify.graph import LoadedModel
from curvverify.spec.query import Query
from curvverify.verification.options import Options
from curvverify.verification.result import Provenance

NUMERICS = (
    "real-arithmetic semantics; bounds decided in float64 with a-priori rounding slack; "
    "witnesses replayed in ONNX Runtime on the CPU in float32 with zero tolerance"
)


def provenance(loaded: LoadedModel, query: Query, options: Options, given: str = "") -> Provenance:
    """The record of one run, with the source of bounds that were given to it."""
    return Provenance(
        version=_version("curvverify"),
        model=loaded.name,
        model_sha256=loaded.sha256,
        query=query.path,
        query_sha256=_sha256(query.path),
        numerics=NUMERICS,
        packages={name: _version(name) for name in ("torch", "numpy", "onnx", "onnxruntime", "onnx2torch")},
        options=asdict(options),
        given=given,
    )


def _sha256(path: str) -> str:
    """Hash of the file; empty for a query that came from no file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ""


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
