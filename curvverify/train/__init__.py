"""Networks that are easy to certify: curvature regularisers, losses, low-curvature layers, and the training command."""

from curvverify.train.certificate import CertificateLoss
from curvverify.train.constants import Compositional, LiveEstimates
from curvverify.train.convert import convert_to_low_curvature
from curvverify.train.export import save_onnx, to_onnx
from curvverify.train.layers import (
    CentredSoftplus,
    LipschitzBatchNorm,
    LowCurvatureBlock,
    SpectralConv2d,
    SpectralLinear,
    settle,
)
from curvverify.train.live import LiveModule
from curvverify.train.pairs import PairCurvature, PairEstimates
from curvverify.train.penalties import (
    CompositionalPenalty,
    CrossEntropy,
    CurePenalty,
    CurvatureAttackLoss,
    GradientPenalty,
    LipschitzMarginLoss,
    LowCurvaturePenalty,
    PrimalDual,
    RadiusPenalty,
)
from curvverify.train.sll import SLLConv2d, SLLLinear

__all__ = [
    "CentredSoftplus",
    "CertificateLoss",
    "Compositional",
    "CompositionalPenalty",
    "CrossEntropy",
    "CurePenalty",
    "CurvatureAttackLoss",
    "GradientPenalty",
    "LipschitzBatchNorm",
    "LipschitzMarginLoss",
    "LiveEstimates",
    "LiveModule",
    "LowCurvatureBlock",
    "LowCurvaturePenalty",
    "PairCurvature",
    "PairEstimates",
    "PrimalDual",
    "RadiusPenalty",
    "SLLConv2d",
    "SLLLinear",
    "SpectralConv2d",
    "SpectralLinear",
    "convert_to_low_curvature",
    "save_onnx",
    "settle",
    "to_onnx",
]
