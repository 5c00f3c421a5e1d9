"""What can be read, for the command line to say."""

from __future__ import annotations

CONSTANT_ONLY = frozenset(
    {
        *("ArgMax", "ArgMin", "TopK", "NonZero", "NonMaxSuppression", "RoiAlign", "Round", "Mod", "Acos", "Asin"),
        *("And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN"),
        *("EyeLike", "OneHot"),
    }
)
"""Operators that are evaluated on constants, and have no node for a value that depends on the input."""


def supported_operators() -> list[str]:
    """ONNX operators that may be applied to values that depend on the input, or that make constants, sorted."""
    from curvverify.graph.onnx_import.converters import CONVERTERS
    from curvverify.graph.onnx_import.module import import_onnx2torch

    import_onnx2torch()
    from onnx2torch.node_converters.registry import _CONVERTER_REGISTRY

    theirs = {entry.operation_type for entry in _CONVERTER_REGISTRY if not entry.domain}
    return sorted((theirs | set(CONVERTERS[""])) - CONSTANT_ONLY)


def supported_opsets() -> tuple[int, int]:
    """The oldest and the newest ONNX operator set that models may use."""
    return 7, 23
