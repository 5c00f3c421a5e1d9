"""ONNX operators that onnx2torch lacks, restricts, or gets wrong, for all their opsets at once.

These are asked before onnx2torch's registry.  `TYPES_ONLY` names operators whose later versions only admit more data
types, so that onnx2torch's newest converter serves them too.
"""

from __future__ import annotations

from curvverify.graph.onnx_import.converters.attributes import Attributes, Converter
from curvverify.graph.onnx_import.converters.convolutions import CONVOLUTIONS
from curvverify.graph.onnx_import.converters.normalisation import NORMALISATION
from curvverify.graph.onnx_import.converters.resizing import RESIZING
from curvverify.graph.onnx_import.converters.scalar import MICROSOFT, SCALAR
from curvverify.graph.onnx_import.converters.structure import STRUCTURE

__all__ = ["CONVERTERS", "TYPES_ONLY", "Attributes", "Converter"]

CONVERTERS: dict[str, dict[str, Converter]] = {
    "": CONVOLUTIONS | NORMALISATION | RESIZING | SCALAR | STRUCTURE,
    "com.microsoft": MICROSOFT,
}
"""By domain and operator."""

TYPES_ONLY = frozenset(
    {
        *("Acos", "Asin", "Atan", "Cos", "Sin", "Tan", "Softsign", "HardSigmoid", "HardSwish", "Round", "Mod"),
        *("Cast", "ConstantOfShape", "Equal", "EyeLike", "Expand", "GreaterOrEqual", "LessOrEqual", "Range"),
        *("Einsum", "Identity", "InstanceNormalization", "Reshape", "Shape", "TopK", "Transpose"),
    }
)
