"""What cannot be translated is refused, by name and all at once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from curvverify.errors import (
    ReplayError,
    UnreadableError,
    UnsupportedError,
    UnsupportedModelError,
    UsageError,
)
from curvverify.graph import Graph, load
from curvverify.graph.replay import Replayer, check
from curvverify.ops.linear import Diagonal
from tests.graph.onnx_models import array, ints, network, single


def test_all_unsupported_nodes_at_once() -> None:
    nodes = [
        helper.make_node("Det", ["X"], ["a"], name="determinant"),
        helper.make_node("Relu", ["X"], ["b"], name="fine"),
        helper.make_node("Frobnicate", ["b"], ["c"], name="unheard_of", domain="my.domain"),
        helper.make_node("Hardmax", ["b"], ["d"]),
        helper.make_node("Add", ["a", "d"], ["y"]),
    ]
    with pytest.raises(UnsupportedModelError) as caught:
        load(network(nodes, {"X": [1, 3, 3]}, ["y"], domains=["my.domain"]), name="some.onnx")
    found = caught.value.nodes
    assert [(n.name, n.operator, n.opset) for n in found] == [
        ("determinant", "Det", 17),
        ("unheard_of", "Frobnicate", 1),
        ("Hardmax_3", "Hardmax", 17),
    ]
    assert found[2].shape == (1, 3, 3)
    assert "my.domain" in str(caught.value)
    assert str(caught.value).startswith("some.onnx: 3 unsupported node(s)")


def test_all_unsupported_values_at_once() -> None:
    """Nodes that are known, but not for values that depend on the input; what follows from them is not listed."""
    nodes = [
        helper.make_node("Greater", ["X", "zero"], ["g"], name="compare"),
        helper.make_node("Where", ["g", "X", "zero"], ["w"], name="choose"),
        helper.make_node("Relu", ["w"], ["r"], name="after"),
        helper.make_node("Cast", ["X"], ["i"], name="to_int", to=TensorProto.INT64),
        helper.make_node("Pow", ["X", "X"], ["p"], name="power"),
        helper.make_node("Add", ["p", "r"], ["y"], name="sum"),
    ]
    with pytest.raises(UnsupportedModelError) as caught:
        load(network(nodes, {"X": [1, 3]}, ["y"], {"zero": np.float32(0)}))
    assert [(n.name, n.operator) for n in caught.value.nodes] == [
        ("compare", "Greater"),
        ("to_int", "Cast"),
        ("power", "Pow"),
    ]
    assert caught.value.nodes[2].shape == (1, 3)


def test_shape_that_depends_on_the_input() -> None:
    nodes = [
        helper.make_node("NonZero", ["X"], ["n"], name="where"),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(UnsupportedModelError, match="data-dependent control flow") as caught:
        load(network(nodes, {"X": [1, 3]}, ["y"]))
    assert caught.value.nodes[0].name == "where"


def test_indices_of_a_maximum() -> None:
    nodes = [
        helper.make_node("ArgMax", ["X"], ["a"], name="arg", axis=1),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(UnsupportedModelError, match="'arg': operator ArgMax"):
        load(network(nodes, {"X": [1, 3]}, ["y"]))


class Module(nn.Module):
    def __init__(self, function: object):
        super().__init__()
        self.function = function
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))  # type: ignore[operator]


def through_a_view(x: Tensor) -> Tensor:
    first = x[:, 0]
    first.add_(1.0)
    return x * 2.0


def through_a_buffer(x: Tensor) -> Tensor:
    out = torch.zeros(1, 3)
    out[:, 1] = x[:, 0]
    return out


def constant_changed(x: Tensor) -> Tensor:
    shift = torch.ones(3)
    y = x + shift
    shift.mul_(2.0)
    return y


BAD_MODULES = {
    "branch": (lambda x: x if x.sum() > 0 else -x, "data-dependent"),
    "item": (lambda x: x * x[0, 0].item(), "data-dependent"),
    "indices": (lambda x: x.max(1, keepdim=True).indices.float() + x, "indices"),
    "sorting": (lambda x: x.sort().values, "sort"),
    "view": (through_a_view, "shares its memory"),
    "buffer": (through_a_buffer, "shares its memory"),
    "constant": (constant_changed, "changed in place later"),
    "integers": (lambda x: x.long(), "integer or boolean"),
    "two variables": (lambda x: x.abs() ** x, "power of two variables"),
    "large power": (lambda x: x**1000, "up to .exponent. = 100"),
    "order three": (lambda x: x.norm(p=3), "order 3"),
}


@pytest.mark.parametrize("check_too", [True, False])
def test_a_value_that_escapes_to_python(check_too: bool) -> None:
    """tolist() is no operator: the trace sees a constant, and the comparison elsewhere does not."""
    with pytest.raises(ReplayError, match="the module it was traced from"):
        load(Module(lambda x: x * float(np.float64(x.tolist()[0][0]))), shapes=(1, 3), check=check_too)


@pytest.mark.parametrize("name", BAD_MODULES)
def test_modules_that_cannot_be_traced(name: str) -> None:
    function, message = BAD_MODULES[name]
    with pytest.raises(UnsupportedModelError, match=message):
        load(Module(function), shapes=(1, 3))


def test_in_place_on_disjoint_parts_is_fine() -> None:
    def gates(x: Tensor) -> Tensor:
        first, second = x[:, :1], x[:, 1:]
        first.sigmoid_()
        second.tanh_()
        return first * second

    assert len(load(Module(gates), shapes=(1, 3)).graph.nonlinear) == 3


# -- shapes --------------------------------------------------------------------------------------------------------


def test_dynamic_dimensions() -> None:
    node = helper.make_node("Relu", ["X"], ["y"])
    model = network([node], {"X": ["batch", 3, "length"]}, ["y"])
    with pytest.raises(UsageError, match=r"'X' has the dynamic shape \['batch', 3, 'length'\]"):
        load(model)
    assert load(model, shapes={"X": (1, 3, 5)}).graph.input_shape == (1, 3, 5)
    with pytest.raises(UsageError, match="cannot take"):
        load(model, shapes={"X": (1, 4, 5)})
    with pytest.raises(UsageError, match="no input is called 'Z'"):
        load(model, shapes={"X": (1, 3, 5), "Z": (1,)})
    batch = network([node], {"X": ["batch", 3]}, ["y"])
    assert load(batch).inputs[0].shape == (1, 3)
    unknown = network([node], {"X": None}, ["y"])
    with pytest.raises(UsageError, match="dynamic shape None"):
        load(unknown)
    assert load(unknown, shapes={"X": (2, 2)}).graph.output_shape == (2, 2)


def test_integer_inputs() -> None:
    model = network([helper.make_node("Gather", ["W", "X"], ["y"])], {"X": [1]}, ["y"], {"W": array(4, 3)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(UnsupportedError, match="'X' \\(int64\\)"):
        load(model)


# -- files ---------------------------------------------------------------------------------------------------------


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"missing\.onnx"):
        load(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(UnreadableError, match="not an ONNX model"):
        load(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(UnreadableError, match="not an ONNX model"):
        load(tmp_path / "empty.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x1f\x8b broken gzip")
    with pytest.raises(UnreadableError, match="broken"):
        load(tmp_path / "broken.onnx")


def test_nodes_out_of_order() -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"], name="late"), helper.make_node("Relu", ["X"], ["a"])]
    with pytest.raises(UnreadableError, match="'late' uses 'a'"):
        load(network(nodes, {"X": [1]}, ["y"]))


def test_shapes_that_do_not_fit() -> None:
    model = single("MatMul", (1, 3), array(4, 2))
    with pytest.raises((UnsupportedError, UnreadableError), match=r"the_node|MatMul"):
        load(model)


# -- replay --------------------------------------------------------------------------------------------------------


def test_a_graph_that_disagrees_is_refused() -> None:
    model = network(
        [
            helper.make_node("Gemm", ["X", "W"], ["a"], name="layer"),
            helper.make_node("Tanh", ["a"], ["y"], name="end"),
        ],
        {"X": [1, 3]},
        ["y"],
        {"W": array(3, 2)},
    )
    good = load(model)
    nodes = list(good.graph.nodes)
    nodes.append(dataclasses.replace(nodes[-1], name="wrong", op=Diagonal(torch.tensor(1.001).double()), inputs=(2,)))
    wrong = dataclasses.replace(good, graph=Graph(tuple(nodes)))
    with pytest.raises(ReplayError, match="the module it was traced from"):
        check(wrong, 4)
    with pytest.raises(ReplayError, match="ONNX Runtime disagree"):
        check(dataclasses.replace(wrong, module=None), 4)
    other = load(network(list(model.graph.node), {"X": [1, 3]}, ["y"], {"W": array(3, 2)}))
    with pytest.raises(ReplayError, match="the first node to differ is 'layer'"):
        check(dataclasses.replace(good, content=other.content), 4)


def test_runtime_refuses_a_new_format() -> None:
    model = single("Relu", (1, 3))
    model.ir_version = 99
    with pytest.raises(ReplayError, match="earlier IR version"):
        load(model)


def test_replayer_takes_and_gives_flat_values() -> None:
    model = network(
        [helper.make_node("Add", ["A", "B"], ["s"]), helper.make_node("Relu", ["B"], ["r"])],
        {"A": [1, 2, 1], "B": [1, 2, 2]},
        ["s", "r"],
    )
    loaded = load(model)
    x = torch.tensor([1.0, 2.0, -1.0, 2.0, 3.0, -4.0])
    expected = torch.tensor([0.0, 3.0, 5.0, -2.0, 0.0, 2.0, 3.0, 0.0])
    assert loaded.graph.input_shape == (6,)
    torch.testing.assert_close(Replayer(loaded).run(x), expected)
    torch.testing.assert_close(loaded.graph(x.double().unsqueeze(0))[0].float(), expected)
    assert [p.name for p in loaded.outputs] == ["s", "r"]
    assert loaded.outputs[0].shape == (1, 2, 2)
    module = load(nn.Linear(3, 2), shapes=(1, 3))
    assert Replayer(module).run(torch.ones(3)).dtype == torch.float32


# -- imports -------------------------------------------------------------------------------------------------------


def test_imports_are_lazy() -> None:
    script = (
        "import sys, curvverify.graph; "
        "assert not {'onnx', 'onnx2torch', 'onnxruntime', 'torchvision'} & set(sys.modules); "
        "curvverify.graph.supported_operators(); "
        "assert 'onnx2torch' in sys.modules and 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
    assert ints(1).dtype == np.int64
