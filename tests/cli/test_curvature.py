"""`curvverify curvature`: the table, the public JSON, the picture, the estimates, and every way to call it wrongly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import curvverify
from curvverify.demo import HOLDS, MODEL
from curvverify.report.serialise import from_json
from tests.cli.conftest import Call

NODE_KEYS = ("name", "op", "shape", "lipschitz_upper", "curvature_upper", "third_order_upper", "formula")
OUTPUT_KEYS = (*NODE_KEYS[3:6], "eigenvalue_upper", "eigenvalue_lower", "formula")


@pytest.fixture
def point(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.array([0.6, 0.8]))
    return tmp_path / "x.npy"


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    """A node of infinite curvature behind a linear one."""
    weight = numpy_helper.from_array(np.array([[1, 2], [3, -1], [0.5, 1]], dtype=np.float32), "W")
    nodes = [helper.make_node("Gemm", ["x", "W"], ["z"], transB=1), helper.make_node("Relu", ["z"], ["y"])]
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, k]) for n, k in (("x", 2), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [weight])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def read(text: str) -> dict:
    """JSON without the non-standard words for infinities."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_table_names_every_node_and_the_region(call: Callable[..., Call]) -> None:
    ended = call("curvature", MODEL)
    report = curvverify.curvature(MODEL)
    assert ended.code == 0
    assert all(node.name in ended.out for node in report.nodes)
    assert "constants over global" in ended.out
    assert f"{report.output.lipschitz_upper:.6g}" in ended.out


def test_json_has_the_public_keys_and_reads_back_equal(call: Callable[..., Call], tmp_path: Path) -> None:
    ended = call("curvature", MODEL, "--json", "-")
    data = read(ended.out)
    assert {"model", "region", "nodes", "output"} <= data.keys()
    assert all(set(NODE_KEYS) <= node.keys() for node in data["nodes"])
    assert set(OUTPUT_KEYS) <= data["output"].keys()
    report = curvverify.curvature(MODEL)
    assert from_json(data).nodes == report.nodes
    written = call("curvature", MODEL, "--json", tmp_path / "r.json")
    assert read((tmp_path / "r.json").read_text())["output"] == data["output"]
    assert "constants over global" in written.out


def test_infinite_constants_are_strings_and_explained(call: Callable[..., Call], relu: Path) -> None:
    data = read(call("curvature", relu, "--json", "-").out)
    assert data["output"]["curvature_upper"] == "inf"
    assert isinstance(data["output"]["lipschitz_upper"], float)
    assert "Relu jumps" in call("curvature", relu).out


def test_regions_narrow_the_constants(call: Callable[..., Call], point: Path) -> None:
    def output(*arguments: object) -> dict:
        return read(call("curvature", MODEL, *arguments, "--json", "-").out)["output"]

    everywhere, box = output("--global"), output("--box", HOLDS)
    ball, anchored = (output("--ball", point, "--radius", 0.1, *more) for more in ((), ("--anchored",)))
    assert box["curvature_upper"] < everywhere["curvature_upper"]
    assert ball["lipschitz_upper"] < box["lipschitz_upper"]
    assert anchored["curvature_upper"] <= ball["curvature_upper"]


def test_pair_is_the_difference_of_two_outputs(call: Callable[..., Call]) -> None:
    data = read(call("curvature", MODEL, "--pair", 1, 0, "--json", "-").out)
    whole = curvverify.curvature(MODEL).output
    assert data["nodes"][-1]["shape"][-1] == 1
    assert data["output"]["lipschitz_upper"] <= math.sqrt(2.0) * whole.lipschitz_upper
    back = read(call("curvature", MODEL, "--pair", 0, 1, "--json", "-").out)["output"]
    assert back["eigenvalue_lower"] == pytest.approx(-data["output"]["eigenvalue_upper"], rel=1e-9)


def test_picture(call: Callable[..., Call], relu: Path, tmp_path: Path) -> None:
    assert call("curvature", relu, "--plot", tmp_path / "c.png").code == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_estimates_say_that_they_prove_nothing(call: Callable[..., Call], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(7, 2))
    np.savez(tmp_path / "d.npz", x_test=x, y_test=np.arange(7) % 2)
    ended = call("curvature", MODEL, "--data", tmp_path / "d.npz", "--limit", 5)
    assert ended.code == 0
    assert "estimates (not bounds)" in ended.out
    assert "5 samples" in ended.out
    data = read(call("curvature", MODEL, "--data", tmp_path / "d.npz", "--pair", 0, 1, "--json", "-").out)
    bound = curvverify.curvature(MODEL, pair=(0, 1)).output
    assert max(data["hessian_norm_estimate"]["values"]) <= bound.curvature_upper
    assert max(data["gradient_norm_estimate"]["values"]) <= bound.lipschitz_upper


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--global", "--box", HOLDS), 2, "exclude each other"),
        (("--radius", 1), 2, "needs both"),
        (("--anchored",), 2, "needs a point"),
        (("--pair", 0, 0), 2, "two different outputs"),
        (("--pair", 0, 2), 2, "between 0 and 1"),
        (("--box", "missing.vnnlib"), 4, "no such file"),
        (("--data", HOLDS), 4, "not an .npz file"),
    ],
)
def test_wrong_calls(call: Callable[..., Call], arguments: tuple[object, ...], code: int, message: str) -> None:
    ended = call("curvature", MODEL, *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err


def test_wrong_balls(call: Callable[..., Call], tmp_path: Path, point: Path) -> None:
    np.save(tmp_path / "three.npy", np.zeros(3))
    np.save(tmp_path / "nan.npy", np.array([0.0, math.nan]))
    assert "3 entries" in call("curvature", MODEL, "--ball", tmp_path / "three.npy", "--radius", 1).err
    assert "not finite" in call("curvature", MODEL, "--ball", tmp_path / "nan.npy", "--radius", 1).err
    assert call("curvature", MODEL, "--ball", point, "--radius", "nan").code == 2
    assert call("curvature", MODEL, "--ball", HOLDS, "--radius", 1).code == 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.zeros((2, 2))}, "no array x_test or y_test"),
        ({"x_test": np.zeros((2, 3)), "y_test": np.zeros(2, int)}, "takes 2 numbers"),
        ({"x_test": np.zeros((2, 2)), "y_test": np.zeros(3, int)}, "labels of shape"),
        ({"x_test": np.full((2, 2), np.nan), "y_test": np.zeros(2, int)}, "sample 0 has entries that are NaN"),
        ({"x_test": np.zeros((0, 2)), "y_test": np.zeros(0, int)}, "no samples"),
        ({"x_test": np.zeros((2, 2)), "y_test": np.full(2, 9)}, "classes 0 to 1"),
    ],
)
def test_wrong_data(call: Callable[..., Call], tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    ended = call("curvature", MODEL, "--data", tmp_path / "d.npz")
    assert ended.code in (2, 4)
    assert message in ended.err
