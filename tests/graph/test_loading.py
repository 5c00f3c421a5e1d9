"""Where models come from, what a loaded model knows, and how its nodes are called."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from curvverify.errors import ReplayError, UnreadableError
from curvverify.graph import load, supported_operators, supported_opsets
from tests.graph.onnx_models import array, floats, ints, network, single


def small() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["X", "W", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="second"),
        helper.make_node("Softmax", ["r"], ["y"]),
    ]
    return network(nodes, {"X": [1, 4]}, ["y"], {"W": array(4, 3), "b": array(3)}, opset=13)


def test_what_is_known() -> None:
    model = small()
    loaded = load(model, name="small")
    content = model.SerializeToString()
    assert (loaded.name, loaded.path, loaded.opset) == ("small", None, 13)
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.content == content
    assert [(p.name, p.shape, p.dtype) for p in loaded.inputs + loaded.outputs] == [
        ("X", (1, 4), "float32"),
        ("y", (1, 3), "float32"),
    ]
    names = [node.name for node in loaded.graph]
    assert names[:5] == ["input", "first", "second", "Softmax_2", "Softmax_2/1"]
    assert loaded.graph.nodes[4].source == "Softmax_2"
    assert loaded.graph.to(torch.float32).nodes[1].op.forward(torch.ones(1, 1, 4)).dtype == torch.float32


def test_files_packed_or_not(tmp_path: Path) -> None:
    content = small().SerializeToString()
    plain, packed = tmp_path / "a.onnx", tmp_path / "b.onnx.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    disguised = tmp_path / "c.onnx"
    disguised.write_bytes(gzip.compress(content))
    loads = [load(p) for p in (plain, str(packed), disguised, tmp_path / "b.onnx")]
    assert len({loaded.sha256 for loaded in loads}) == 1
    assert [loaded.name for loaded in loads] == ["a.onnx", "b.onnx.gz", "c.onnx", "b.onnx"]
    assert loads[0].path == str(plain)


def test_old_models() -> None:
    """Weights among the inputs, an old opset, and nodes that no newer converter knows."""
    nodes = [
        helper.make_node("Flatten", ["X"], ["f"], name="flat"),
        helper.make_node("Dropout", ["f"], ["d"], name="drop", ratio=0.5),
        helper.make_node("MatMul", ["d", "W"], ["m"], name="times"),
        helper.make_node("Add", ["m", "b"], ["y"], name="plus"),
    ]
    model = network(nodes, {"X": [1, 2, 2], "W": [4, 3], "b": [3]}, ["y"], {"W": array(4, 3), "b": array(3)}, opset=8)
    model.ir_version = 3
    loaded = load(model)
    assert [n.op.name for n in loaded.graph] == ["Input", "Reshape", "Dense"]
    assert [p.name for p in loaded.inputs] == ["X"]
    assert loaded.opset == 8
    assert loaded.graph.nodes[2].source == "times"


def test_constants_of_every_kind() -> None:
    tensor = numpy_helper.from_array(floats(1.0, 2.0, 3.0))
    nodes = [
        helper.make_node("Constant", [], ["t"], value=tensor),
        helper.make_node("Constant", [], ["f"], value_float=2.0),
        helper.make_node("Constant", [], ["fs"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Constant", [], ["i"], value_int=1),
        helper.make_node("Constant", [], ["is"], value_ints=[3, 1]),
        helper.make_node("Cast", ["i"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["X", "t"], ["a"]),
        helper.make_node("Mul", ["a", "f"], ["b"]),
        helper.make_node("Mul", ["b", "fs"], ["c"]),
        helper.make_node("Sub", ["c", "one"], ["d"]),
        helper.make_node("Identity", ["is"], ["shape"]),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("Identity", ["e"], ["y"]),
    ]
    loaded = load(network(nodes, {"X": [1, 3]}, ["y"]))
    assert loaded.graph.output_shape == (3, 1)
    assert [n.op.name for n in loaded.graph] == ["Input", "Diagonal", "Reshape"]


def test_shape_arithmetic_folds() -> None:
    nodes = [
        helper.make_node("Shape", ["X"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "at"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus"], ["shape"], axis=0),
        helper.make_node("Reshape", ["X", "shape"], ["r"]),
        helper.make_node("ConstantOfShape", ["shape4"], ["c"], value=numpy_helper.from_array(floats(0.5))),
        helper.make_node("Mul", ["r", "c"], ["y"]),
    ]
    constants = {"zero": ints(0)[0], "at": ints(0), "minus": ints(-1), "shape4": ints(1, 4)}
    loaded = load(network(nodes, {"X": ["batch", 2, 2]}, ["y"], constants))
    assert [n.op.name for n in loaded.graph] == ["Input", "Reshape", "Diagonal"]


def test_several_inputs_and_outputs() -> None:
    nodes = [
        helper.make_node("Split", ["B"], ["b1", "b2"], name="parts", axis=1),
        helper.make_node("MatMul", ["A", "b1"], ["y"], name="product"),
        helper.make_node("Exp", ["b2"], ["z"], name="curve"),
    ]
    loaded = load(network(nodes, {"A": [1, 2, 3], "B": [1, 6, 2]}, ["z", "y", "b1", "A"], opset=13))
    assert loaded.graph.input_shape == (18,)
    assert loaded.graph.output_shape == (6 + 4 + 6 + 6,)
    assert [p.shape for p in loaded.outputs] == [(1, 3, 2), (1, 2, 2), (1, 3, 2), (1, 2, 3)]


def test_outputs_that_are_constant() -> None:
    nodes = [
        helper.make_node("Relu", ["C"], ["y"]),
        helper.make_node("Neg", ["X"], ["z"]),
    ]
    loaded = load(network(nodes, {"X": [1, 2]}, ["y", "z", "C"], {"C": array(1, 3)}))
    assert loaded.graph.output_shape == (8,)


def test_functions_of_the_model_itself() -> None:
    square = helper.make_function(
        "mine", "Square", ["v"], ["w"], [helper.make_node("Mul", ["v", "v"], ["w"])], [helper.make_opsetid("", 17)]
    )
    node = helper.make_node("Square", ["X"], ["y"], domain="mine")
    model = network([node], {"X": [1, 3]}, ["y"], domains=["mine"])
    model.functions.append(square)
    assert [n.op.name for n in load(model).graph] == ["Input", "Power"]


def test_casts_do_not_round() -> None:
    nodes = [
        helper.make_node("Mul", ["X", "c"], ["a"]),
        helper.make_node("Cast", ["a"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["i"], ["g"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "g"], ["y"]),
    ]
    model = network(nodes, {"X": [1, 3]}, ["y"], {"c": floats(0.1)[0], "i": ints(1, 2, 3)})
    loaded = load(model, check=False)
    x = torch.ones(1, 1, 3, dtype=torch.float64) / 3.0
    assert loaded.graph(x).flatten()[0] == float(floats(0.1)[0]) / 3.0
    with pytest.raises(ReplayError, match="ONNX Runtime disagree"):
        load(model)  # for ONNX Runtime, they do


def test_double_precision() -> None:
    model = single("Mul", (1, 3), np.array([0.1, 0.2, 0.3]))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    loaded = load(model)
    assert (loaded.inputs[0].dtype, loaded.outputs[0].dtype) == ("float64", "float64")
    x = torch.ones(1, 1, 3, dtype=torch.float64)
    assert loaded.graph(x).flatten().tolist() == [0.1, 0.2, 0.3]


def test_tensors_in_other_files(tmp_path: Path) -> None:
    model = single("MatMul", (1, 40), array(40, 30))
    onnx.save_model(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="weights", size_threshold=0)
    loaded = load(tmp_path / "m.onnx")
    assert loaded.sha256 == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    bare = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    with pytest.raises(UnreadableError, match="other files"):
        load(bare)
    (tmp_path / "weights").unlink()
    with pytest.raises(UnreadableError, match=r"m\.onnx"):
        load(tmp_path / "m.onnx")


def test_what_is_supported() -> None:
    names = supported_operators()
    assert {"Conv", "Gelu", "Softmax", "Upsample", "LayerNormalization"} <= set(names)
    assert "ArgMax" not in names
    low, high = supported_opsets()
    assert low < 13 < 20 < high
