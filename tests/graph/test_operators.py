"""Every ONNX operator at every version of its definition: the layer graph against ONNX Runtime.

`load` itself compares the float64 graph with the converted module and with ONNX Runtime; these tests give it 40
inputs, make sure that something was compared, and that nothing was left as it should not be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from curvverify.graph import load
from curvverify.graph.replay import random_inputs
from tests.graph.onnx_models import array, floats, ints, single, versions

IMAGE = (1, 4, 7, 6)
SAMPLES = 40


@dataclass(frozen=True)
class Case:
    """One operator on an input of the given shape, with constants after (or around) it."""

    operator: str
    shape: tuple[int, ...] = (1, 3, 5)
    constants: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    since: int = 1
    until: int = 99
    x_at: int = 0
    outputs: int = 1
    label: str = ""
    domain: str = ""


def a(**attributes: Any) -> dict[str, Any]:
    return attributes


SCALAR = [
    *(Case(n) for n in ("Relu", "Sigmoid", "Tanh", "Softplus", "Exp", "Log", "Sqrt", "Reciprocal", "Abs", "Neg")),
    *(Case(n) for n in ("Sin", "Cos", "Atan", "Erf", "Softsign", "Floor", "Ceil", "Sign", "Sinh", "Cosh", "Tan")),
    *(Case(n) for n in ("HardSwish", "Mish", "Identity", "Dropout")),
    Case("LeakyRelu", attributes=a(alpha=0.2)),
    Case("Elu", attributes=a(alpha=0.7)),
    Case("Celu", attributes=a(alpha=0.7)),
    Case("Selu"),
    Case("Selu", attributes=a(alpha=1.5, gamma=2.0), label="own"),
    Case("Gelu", attributes=a(approximate="none"), since=20),
    Case("Gelu", attributes=a(approximate="tanh"), since=20, label="tanh"),
    Case("Gelu", domain="com.microsoft", label="microsoft", since=17, until=17),
    Case("QuickGelu", domain="com.microsoft", label="microsoft", since=17, until=17),
    Case("HardSigmoid"),
    Case("HardSigmoid", attributes=a(alpha=0.3, beta=0.4), label="own"),
    Case("PRelu", (1, 4, 3), (array(4, 1),), since=9),
    Case("PRelu", (1, 4, 3), (array(1),), since=9, label="one"),
    Case("PRelu", (1, 4, 3), (array(4, 3),), since=9, label="full"),
    Case("ThresholdedRelu", attributes=a(alpha=0.0)),
    Case("Shrink", attributes=a(lambd=0.3, bias=0.3)),
    Case("Clip", attributes=a(min=-0.5, max=0.7), until=10),
    Case("Clip", constants=(floats(-0.5)[0], floats(0.7)[0]), since=11),
    Case("Clip", constants=(None, floats(0.7)[0]), since=11, label="max"),
    Case("Clip", constants=(floats(-0.5)[0],), since=11, label="min"),
    *(Case("Pow", constants=(floats(p)[0],), label=str(p)) for p in (0.5, 1.0, 2.0, 3.0, -1.0, -2.0, 1.5)),
    Case("Pow", constants=(floats(2.0)[0],), x_at=1, label="base"),
]

ARITHMETIC = [
    *(Case(n, constants=(array(5),), since=7) for n in ("Add", "Sub", "Mul", "Div")),
    *(Case(n, constants=(array(2, 1, 3, 1),), since=7, label="wide") for n in ("Add", "Sub", "Mul", "Div")),
    *(Case(n, constants=(array(3, 5),), since=7, x_at=1, label="left") for n in ("Add", "Sub", "Mul", "Div")),
    *(Case(n, constants=(array(3, 5), array(5)), since=8) for n in ("Sum", "Mean", "Max", "Min")),
    *(Case(n, constants=(array(3, 5),), since=8, x_at=1, label="left") for n in ("Max", "Min")),
    Case("MatMul", (1, 3, 5), (array(5, 4),)),
    Case("MatMul", (3, 5), (array(4, 3),), x_at=1, label="left"),
    Case("MatMul", (5,), (array(5, 4),), label="vector"),
    Case("MatMul", (5,), (array(4, 5),), x_at=1, label="left vector"),
    Case("MatMul", (2, 3, 5), (array(2, 5, 4),), label="batch"),
    Case("MatMul", (1, 2, 3, 5), (array(1, 2, 4, 3),), x_at=1, label="left batch"),
    Case("MatMul", (2, 3, 5), (np.repeat(array(1, 5, 4), 2, axis=0),), label="same batch"),
    Case("Gemm", (1, 5), (array(5, 4), array(4))),
    Case("Gemm", (1, 5), (array(4, 5), array(1, 4)), a(transB=1, alpha=0.3, beta=1.7), label="scaled"),
    Case("Gemm", (5, 2), (array(5, 4),), a(transA=1), since=11, label="transposed"),
    Case("Gemm", (4, 5), (array(3, 4), array(3, 5)), since=11, x_at=1, label="left"),
    Case("Einsum", (1, 3, 5), (array(5, 4),), a(equation="bij,jk->bik"), since=12),
]

CONVOLUTIONS = [
    Case("Conv", (1, 4, 9), (array(6, 4, 3), array(6)), label="1d"),
    Case("Conv", IMAGE, (array(6, 4, 3, 3), array(6)), a(pads=[1, 1, 1, 1])),
    Case("Conv", IMAGE, (array(6, 2, 3, 2),), a(group=2, strides=[2, 1], dilations=[1, 2]), label="grouped"),
    Case("Conv", IMAGE, (array(4, 1, 3, 3),), a(group=4, pads=[0, 2, 1, 0], strides=[2, 2]), label="depthwise"),
    Case("Conv", IMAGE, (array(6, 4, 3, 3),), a(auto_pad="SAME_UPPER", strides=[2, 2]), label="upper"),
    Case("Conv", IMAGE, (array(6, 4, 2, 2),), a(auto_pad="SAME_LOWER"), label="lower"),
    Case("Conv", (1, 2, 4, 5, 3), (array(3, 2, 2, 3, 2), array(3)), a(pads=[0, 1, 0, 0, 1, 0]), label="3d"),
    Case("ConvTranspose", (1, 4, 5), (array(4, 3, 3), array(3)), a(strides=[2]), label="1d"),
    Case("ConvTranspose", IMAGE, (array(4, 3, 3, 2), array(3)), a(strides=[2, 3], pads=[1, 0, 1, 0])),
    Case("ConvTranspose", IMAGE, (array(4, 3, 3, 3),), a(strides=[2, 2], output_padding=[1, 1]), label="more"),
    Case(
        "ConvTranspose", IMAGE, (array(4, 2, 3, 3),), a(group=2, pads=[1, 0, 0, 2], dilations=[2, 1]), label="unequal"
    ),
    Case("BatchNormalization", IMAGE, (array(4), array(4), array(4), array(4, low=0.3)), a(epsilon=1e-3)),
    Case("BatchNormalization", (1, 4), (array(4), array(4), array(4), array(4, low=0.3)), label="flat"),
    Case("InstanceNormalization", IMAGE, (array(4), array(4))),
    Case("LayerNormalization", (1, 3, 8), (array(8), array(8)), since=17),
    Case("LayerNormalization", (1, 3, 8), (array(3, 8),), a(axis=1), since=17, label="axis"),
    Case("GroupNormalization", IMAGE, (array(4), array(4)), a(num_groups=2), since=21),
    Case("LpNormalization", (1, 3, 5), attributes=a(axis=1, p=2)),
    Case("MeanVarianceNormalization", IMAGE),
    Case("LRN", IMAGE, attributes=a(size=3)),
    Case("AveragePool", IMAGE, attributes=a(kernel_shape=[3, 2])),
    Case("AveragePool", IMAGE, attributes=a(kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]), label="padded"),
    Case(
        "AveragePool", IMAGE, attributes=a(kernel_shape=[2, 2], pads=[0, 1, 1, 0], count_include_pad=1), label="count"
    ),
    Case("AveragePool", IMAGE, attributes=a(kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), since=19, label="ceil"),
    Case("AveragePool", (1, 2, 9), attributes=a(kernel_shape=[4], auto_pad="SAME_UPPER"), label="1d"),
    Case("MaxPool", IMAGE, attributes=a(kernel_shape=[2, 2], strides=[2, 2])),
    Case("MaxPool", IMAGE, attributes=a(kernel_shape=[3, 3], pads=[1, 0, 0, 1], strides=[2, 2]), label="padded"),
    Case("MaxPool", IMAGE, attributes=a(kernel_shape=[3, 3], ceil_mode=1, strides=[2, 2]), since=11, label="ceil"),
    Case("MaxPool", IMAGE, attributes=a(kernel_shape=[2, 2], dilations=[2, 3]), since=11, label="dilated"),
    Case("MaxPool", (1, 2, 9), attributes=a(kernel_shape=[3], pads=[1, 1]), label="1d"),
    Case("GlobalAveragePool", IMAGE),
    Case("GlobalMaxPool", IMAGE),
]

REDUCTIONS = [
    *(
        Case(n, attributes=a(axes=[1, -1], keepdims=k), until=12 if n == "ReduceSum" else 17, label=f"keep{k}")
        for n in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")
        for k in (0, 1)
    ),
    *(Case(n, attributes=a(axes=[1]), until=17) for n in ("ReduceSumSquare", "ReduceLogSumExp", "ReduceLogSum")),
    *(Case(n, (1, 3, 5), (ints(2),), since=18) for n in ("ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp")),
    Case("ReduceSum", (1, 3, 5), (ints(1, 2),), a(keepdims=0), since=13),
    Case("ReduceSum", (1, 3, 5), (), a(keepdims=0), label="all"),
    Case("ReduceSum", (1, 3, 5), (ints(),), a(noop_with_empty_axes=1), since=13, label="noop"),
    *(Case(n, (1, 3, 4), attributes=a(axis=2)) for n in ("Softmax", "LogSoftmax")),
    *(Case(n, (1, 3, 4), attributes=a(axis=1), label="axis1") for n in ("Softmax", "LogSoftmax")),
    Case("Softmax", (1, 1), label="one"),
    Case("CumSum", (1, 3, 4), (ints(1)[0],), since=11),
    Case("CumSum", (1, 3, 4), (ints(-1)[0],), a(exclusive=1, reverse=1), since=11, label="exclusive"),
]

X4 = (1, 2, 3, 4)

STRUCTURE = [
    Case("Reshape", X4, (ints(0, 6, -1),)),
    Case("Transpose", X4, attributes=a(perm=[0, 2, 3, 1])),
    Case("Transpose", X4, label="reversed"),
    *(Case("Flatten", X4, attributes=a(axis=k), label=str(k)) for k in (0, 1, 2)),
    Case("Flatten", X4, attributes=a(axis=-1), since=11, label="-1"),
    Case("Squeeze", (1, 3, 1), attributes=a(axes=[2]), until=12),
    Case("Squeeze", (1, 3, 1), (ints(-1),), since=13),
    Case("Squeeze", (1, 3, 1), label="all"),
    Case("Unsqueeze", (1, 3), attributes=a(axes=[0, 2]), until=12),
    Case("Unsqueeze", (1, 3), (ints(-1, -3),), since=13),
    Case("Expand", (1, 3, 1), (ints(2, 1, 4),), since=8),
    Case("Tile", X4, (ints(1, 2, 1, 3),)),
    Case("Slice", X4, attributes=a(starts=[1, -3], ends=[2, -1], axes=[1, 3]), until=9),
    Case("Slice", X4, (ints(1, 0), ints(9, -1), ints(2, 3), ints(1, 2)), since=10),
    Case("Slice", X4, (ints(-1, 3), ints(-99, 0), ints(2, 3), ints(-1, -2)), since=10, label="backwards"),
    Case("Gather", X4, (ints(1, 0, 1),), a(axis=1)),
    Case("Gather", X4, (ints(-1)[0],), a(axis=2), since=11, label="scalar"),
    Case("GatherElements", (3, 4), (np.array([[1, 0, 2, -1]]),), a(axis=0), since=11),
    Case("GatherND", (3, 4), (np.array([[1, 0], [2, 3]]),), since=11),
    Case("ScatterND", (3, 4), (np.array([[1], [2]]), array(2, 4)), since=11),
    Case("ScatterElements", (3, 4), (np.array([[1, 0, 2, 0]]), array(1, 4)), since=11),
    Case("ScatterElements", (1, 4), (array(3, 4), np.array([[1, 0, 2, 0]])), since=11, x_at=2, label="updates"),
    Case("Concat", X4, (array(1, 3, 3, 4),), a(axis=1)),
    Case("Concat", X4, (array(1, 3, 3, 4),), a(axis=1), x_at=1, label="left"),
    Case("Split", (1, 6, 2), attributes=a(axis=1), outputs=3, until=17),
    Case("Split", (1, 6, 2), attributes=a(axis=1, split=[1, 5]), outputs=2, until=12, label="sizes"),
    Case("Split", (1, 6, 2), (ints(1, 5),), a(axis=1), outputs=2, since=13, label="sizes"),
    Case("Split", (1, 7, 2), attributes=a(axis=1, num_outputs=3), outputs=3, since=18),
    Case("Pad", X4, attributes=a(pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.3), until=10),
    Case("Pad", X4, (ints(0, 0, 1, 2, 0, 0, 0, 1), floats(0.3)[0]), since=11),
    Case("Pad", X4, (ints(0, 0, 1, -1, 0, 0, -1, 1),), since=11, label="negative"),
    *(Case("Pad", X4, (ints(0, 0, 1, 2, 0, 0, 2, 1),), a(mode=m), since=11, label=m) for m in ("reflect", "edge")),
    Case("Pad", X4, (ints(1, 2), floats(0.0)[0], ints(3)), since=18, label="axes"),
    Case("Pad", X4, (ints(0, 0, 1, 2, 0, 0, 2, 1),), a(mode="wrap"), since=19, label="wrap"),
    *(Case("DepthToSpace", (1, 8, 2, 3), attributes=a(blocksize=2, mode=m), since=11, label=m) for m in ("DCR", "CRD")),
    Case("SpaceToDepth", (1, 2, 4, 6), attributes=a(blocksize=2)),
    Case("Trilu", (1, 4, 4), (ints(1)[0],), a(upper=0), since=14),
    Case("Where", (1, 3), (np.array([True, False, True]), array(2, 3)), x_at=1, since=9),
    Case("Where", (1, 3), (np.array([[True, False, True]]), array(1, 3)), x_at=2, since=9, label="else"),
    Case("Cast", attributes=a(to=1)),
    Case("Upsample", (1, 2, 3, 3), attributes=a(scales=[1.0, 1.0, 2.0, 3.0], mode="nearest"), until=8),
    Case("Upsample", (1, 2, 3, 3), (floats(1, 1, 2, 3),), a(mode="nearest"), since=9, until=9),
    Case("Upsample", (1, 2, 3, 3), (floats(1, 1, 2, 3),), a(mode="linear"), since=9, until=9, label="linear"),
    Case("Resize", (1, 2, 3, 3), (floats(1, 1, 2, 3),), a(mode="nearest"), since=10, until=10),
]

RESIZE = [
    Case("Resize", (1, 2, 4, 5), (floats(), floats(1, 1, 2, 1.5)), a(mode=m, **k), since=11, label=f"{m} {k}")
    for m, k in [
        ("nearest", a(coordinate_transformation_mode="asymmetric", nearest_mode="floor")),
        ("nearest", a(coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil")),
        ("nearest", a(coordinate_transformation_mode="align_corners", nearest_mode="ceil")),
        ("linear", a(coordinate_transformation_mode="half_pixel")),
        ("linear", a(coordinate_transformation_mode="align_corners")),
        ("linear", a(coordinate_transformation_mode="asymmetric")),
        ("cubic", a(coordinate_transformation_mode="pytorch_half_pixel", cubic_coeff_a=-0.5)),
    ]
] + [
    Case("Resize", (1, 2, 4, 6), (floats(), floats(), ints(1, 2, 7, 3)), a(mode="linear"), since=11, label="sizes"),
    Case("Resize", (1, 2, 4, 6), (None, None, ints(1, 2, 2, 3)), a(mode="nearest"), since=13, label="sizes"),
]

CASES = [*SCALAR, *ARITHMETIC, *CONVOLUTIONS, *REDUCTIONS, *STRUCTURE, *RESIZE]


def _runs() -> list[Any]:
    found = []
    for case in CASES:
        opsets = (
            [17]
            if case.domain
            else versions(case.operator, (7, 8, 9, 10, 11, 13, 17, 18, 19, 20, 21), case.since, case.until)
        )
        assert opsets, case
        for opset in opsets:
            name = "-".join(filter(None, [case.operator, case.label.replace(" ", "_"), str(opset)]))
            found.append(pytest.param(case, opset, id=name))
    return found


@pytest.mark.parametrize(("case", "opset"), _runs())
def test_agrees_with_onnx_runtime(case: Case, opset: int) -> None:
    model = single(
        case.operator,
        case.shape,
        *case.constants,
        opset=opset,
        outputs=case.outputs,
        x_at=case.x_at,
        domain=case.domain,
        **case.attributes,
    )
    loaded = load(model, samples=SAMPLES)
    inputs = random_inputs(loaded, 8).to(torch.float64).reshape(-1, *loaded.graph.input_shape)
    assert loaded.graph.input_shape == case.shape
    assert bool(loaded.graph(inputs).isfinite().any())
    assert all(node.source in ("the_node", "output", "") for node in loaded.graph)
