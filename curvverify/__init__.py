"""curvverify: sound, second-order verification of differentiable neural networks.

>>> import curvverify
>>> result = curvverify.verify("model.onnx", "property.vnnlib")  # doctest: +SKIP
>>> result.verdict  # doctest: +SKIP
<Verdict.VERIFIED: 'unsat'>

Everything is imported on first use, so that `import curvverify` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curvverify.bounding.constants.report import CurvatureReport, NodeConstants, OutputConstants, curvature
    from curvverify.certificates.radius import certified_radius
    from curvverify.certificates.record import RadiusOptions, RadiusReport, SampleRadius
    from curvverify.graph import load
    from curvverify.spec import load_query
    from curvverify.types import Ball, Deadline, Interval, Verdict
    from curvverify.verification.bound_methods import BoundMethod, RowProblem
    from curvverify.verification.compare import compare
    from curvverify.verification.driver import verify
    from curvverify.verification.node_bounds import BoundsReport, NodeBounds, bounds
    from curvverify.verification.options import Options
    from curvverify.verification.result import Progress, Result, Witness

__version__ = "0.1.0"

_HOMES = {
    "certified_radius": "curvverify.certificates.radius",
    "RadiusOptions": "curvverify.certificates.record",
    "RadiusReport": "curvverify.certificates.record",
    "SampleRadius": "curvverify.certificates.record",
    "verify": "curvverify.verification.driver",
    "compare": "curvverify.verification.compare",
    "BoundMethod": "curvverify.verification.bound_methods",
    "RowProblem": "curvverify.verification.bound_methods",
    "bounds": "curvverify.verification.node_bounds",
    "BoundsReport": "curvverify.verification.node_bounds",
    "NodeBounds": "curvverify.verification.node_bounds",
    "Options": "curvverify.verification.options",
    "Progress": "curvverify.verification.result",
    "Result": "curvverify.verification.result",
    "Witness": "curvverify.verification.result",
    "curvature": "curvverify.bounding.constants.report",
    "CurvatureReport": "curvverify.bounding.constants.report",
    "NodeConstants": "curvverify.bounding.constants.report",
    "OutputConstants": "curvverify.bounding.constants.report",
    "Ball": "curvverify.types",
    "Deadline": "curvverify.types",
    "Interval": "curvverify.types",
    "Verdict": "curvverify.types",
    "load": "curvverify.graph",
    "load_query": "curvverify.spec",
}

__all__ = [
    "Ball",
    "BoundMethod",
    "BoundsReport",
    "CurvatureReport",
    "Deadline",
    "Interval",
    "NodeBounds",
    "NodeConstants",
    "Options",
    "OutputConstants",
    "Progress",
    "RadiusOptions",
    "RadiusReport",
    "Result",
    "RowProblem",
    "SampleRadius",
    "Verdict",
    "Witness",
    "bounds",
    "certified_radius",
    "compare",
    "curvature",
    "load",
    "load_query",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'curvverify' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
