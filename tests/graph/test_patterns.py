"""Spelled-out activations become one operator, exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, helper

from curvverify.graph import load
from curvverify.graph.building import Builder
from curvverify.graph.loading import finished
from curvverify.ops.elementwise.gelu import GeluTanh
from curvverify.types import Interval
from tests.graph.onnx_models import array, floats, network

ROOT2 = floats(math.sqrt(2.0))[0]
P = floats(math.sqrt(2.0 / math.pi))[0]
Q = floats(0.044715)[0]


def n(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


GELU_NODES = {
    "torch": [
        n("Div", "x r", "a"),
        n("Erf", "a", "b"),
        n("Add", "b one", "c"),
        n("Mul", "x c", "d"),
        n("Mul", "d half", "y"),
    ],
    "half first": [
        n("Mul", "x half", "h"),
        n("Div", "x r", "a"),
        n("Erf", "a", "b"),
        n("Add", "one b", "c"),
        n("Mul", "h c", "y"),
    ],
    "half last": [
        n("Div", "x r", "a"),
        n("Erf", "a", "b"),
        n("Add", "b one", "c"),
        n("Mul", "c half", "d"),
        n("Mul", "d x", "y"),
    ],
    "times": [
        n("Mul", "x i", "a"),
        n("Erf", "a", "b"),
        n("Add", "b one", "c"),
        n("Mul", "half c", "d"),
        n("Mul", "x d", "y"),
    ],
}

TANH_NODES = {
    "power": [
        n("Pow", "x three", "c"), n("Mul", "c q", "d"), n("Add", "x d", "e"), n("Mul", "e p", "f"), n("Tanh", "f", "g"),
        n("Add", "g one", "h"), n("Mul", "x h", "k"), n("Mul", "k half", "y"),
    ],
    "products": [
        n("Mul", "x x", "s"), n("Mul", "s x", "c"), n("Mul", "q c", "d"), n("Add", "x d", "e"), n("Mul", "p e", "f"),
        n("Tanh", "f", "g"), n("Add", "g one", "h"), n("Mul", "x half", "k"), n("Mul", "k h", "y"),
    ],
    "factored": [
        n("Mul", "x x", "s"), n("Mul", "s q", "d"), n("Add", "d one", "e"), n("Mul", "x e", "c"), n("Mul", "c p", "f"),
        n("Tanh", "f", "g"), n("Add", "g one", "h"), n("Mul", "x half", "k"), n("Mul", "k h", "y"),
    ],
}  # fmt: skip

OTHERS = {
    "silu": ("Silu", [n("Sigmoid", "x", "a"), n("Mul", "x a", "y")]),
    "swish": ("Silu", [n("Mul", "x q", "b"), n("Sigmoid", "b", "a"), n("Mul", "a x", "y")]),
    "mish": ("Mish", [n("Softplus", "x", "a"), n("Tanh", "a", "b"), n("Mul", "x b", "y")]),
    "hard-swish": ("HardSwish", [n("HardSigmoid", "x", "a", alpha=1 / 6, beta=0.5), n("Mul", "x a", "y")]),
    "relu6": (
        "HardSwish",
        [n("Add", "x three", "a"), n("Clip", "a zero six", "b"), n("Mul", "x b", "c"), n("Div", "c six", "y")],
    ),
    "softplus": ("Softplus", [n("Exp", "x", "a"), n("Add", "a one", "b"), n("Log", "b", "y")]),
    "cube": ("Power", [n("Mul", "x x", "a"), n("Mul", "a x", "y")]),
}

CONSTANTS = {
    "r": ROOT2, "i": floats(1 / math.sqrt(2.0))[0], "one": floats(1)[0], "half": floats(0.5)[0], "p": P, "q": Q,
    "three": floats(3)[0], "six": floats(6)[0], "zero": floats(0)[0], "W": array(5, 4), "b": array(4),
}  # fmt: skip


def behind_a_layer(nodes: list[NodeProto]) -> ModelProto:
    """The pattern on a Gemm's output x, with only the constants it uses."""
    used = {name for node in nodes for name in node.input}
    constants = {k: v for k, v in CONSTANTS.items() if k in used and k != "b"}
    layer = helper.make_node("Gemm", ["X", "W", "bias"], ["x"])
    return network([layer, *nodes], {"X": [1, 5]}, ["y"], {**constants, "W": CONSTANTS["W"], "bias": CONSTANTS["b"]})


def nonlinear(model: ModelProto) -> list[str]:
    loaded = load(model, samples=50)
    return [node.op.name for node in loaded.graph if node.nonlinear]


@pytest.mark.parametrize("form", GELU_NODES)
def test_gelu_is_one_operator(form: str) -> None:
    model = behind_a_layer(GELU_NODES[form])
    assert nonlinear(model) == ["Gelu"]
    assert not load(model).notes


@pytest.mark.parametrize("form", TANH_NODES)
def test_tanh_form_of_gelu_is_one_operator(form: str) -> None:
    model = behind_a_layer(TANH_NODES[form])
    assert nonlinear(model) == ["GeluTanh"]
    assert "include the difference" in load(model).notes[0]


def test_tanh_form_of_gelu_covers_its_rounded_coefficient() -> None:
    """The function as exported, with a float32 coefficient, stays inside the bounds of the operator."""
    (op,) = (n.op for n in load(behind_a_layer(TANH_NODES["power"])).graph if isinstance(n.op, GeluTanh))
    assert 0.0 < op.deviation < 1e-7
    z = torch.linspace(-6.0, 6.0, 20001, dtype=torch.float64)
    for cubic in (GeluTanh.CUBIC, float(torch.tensor(GeluTanh.CUBIC))):
        exported = 0.5 * z * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (z + cubic * z**3)))
        assert float((exported - op.forward(z)).abs().max()) <= op.deviation
    box = Interval(z[:-1].unsqueeze(0), z[1:].unsqueeze(0))
    bounds = op.interval(box)
    assert bool((bounds.lower[0] <= exported[:-1]).all())
    assert bool((bounds.upper[0] >= exported[:-1]).all())
    point = z[:-1].reshape(1, 1, -1)
    for below in (True, False):
        lines = op.envelope(box).lines(point, torch.full_like(point, below, dtype=torch.bool), 0.0)
        at = (lines.slope * point + lines.intercept).flatten() - exported[:-1]
        assert bool((at <= 0.0).all() if below else (at >= 0.0).all())


@pytest.mark.parametrize("name", OTHERS)
def test_other_activations(name: str) -> None:
    operator, nodes = OTHERS[name]
    assert nonlinear(behind_a_layer(nodes)) == [operator]


@pytest.mark.parametrize(
    "nodes",
    [
        [n("Div", "x r", "a"), n("Erf", "a", "b"), n("Add", "b half", "c"), n("Mul", "x c", "y")],
        [n("Add", "x half", "s"), n("Sigmoid", "s", "a"), n("Mul", "x a", "y")],
        [n("Add", "x one", "a"), n("Clip", "a zero six", "b"), n("Mul", "x b", "y")],
        [n("Softplus", "x", "a"), n("Tanh", "a", "b"), n("Mul", "a b", "y")],
    ],
)
def test_near_misses_are_left_alone(nodes: list[NodeProto]) -> None:
    assert "Product" in nonlinear(behind_a_layer(nodes))


def test_gelu_of_a_float32_root_is_exact() -> None:
    """x (1 + erf(x / 1.41421354)) / 2 is kept to the last digits, although 1.41421354 is not the root of 2."""
    loaded = load(behind_a_layer(GELU_NODES["torch"]))
    x = torch.linspace(-3.0, 3.0, 50, dtype=torch.float64).reshape(10, 1, 5)
    z = x @ torch.as_tensor(CONSTANTS["W"]).double() + torch.as_tensor(CONSTANTS["b"]).double()
    exact = z * (1.0 + torch.erf(z / float(ROOT2))) * 0.5
    assert float(ROOT2) != math.sqrt(2.0)
    torch.testing.assert_close(loaded.graph(x), exact, rtol=1e-14, atol=1e-15)


def test_square_and_product_of_powers() -> None:
    sample = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)
    builder = Builder(sample)
    square = builder.mul(builder.input, builder.input)
    graph, _ = finished(builder, [builder.mul(builder.affine(square, 3.0, None), square)])
    assert [node.op.name for node in graph] == ["Input", "Power", "Diagonal"]
    torch.testing.assert_close(graph(sample.unsqueeze(0))[0], 3.0 * sample**4)


def test_unequal_constants_do_not_match() -> None:
    """A cubic coefficient off by a thousandth is not GELU."""
    nodes = TANH_NODES["power"]
    model = behind_a_layer(nodes)
    for constant in model.graph.initializer:
        if constant.name == "q":
            constant.raw_data = np.float32(0.0447597).tobytes()
    assert "GeluTanh" not in nonlinear(model)
