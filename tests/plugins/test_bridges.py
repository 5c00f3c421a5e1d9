"""Bounds out and in: files, hidden nodes, BoundedModules and Marabou."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from torch import nn

import curvverify
from curvverify.demo import HOLDS, MODEL
from curvverify.errors import UnreadableError, UnsupportedError, UsageError
from curvverify.graph import LoadedModel, load
from curvverify.plugins import lirpa, marabou
from curvverify.plugins.exchange import (
    BoundsFile,
    ValueBounds,
    exported,
    given_file,
    outward,
    read_bounds,
    write_bounds,
)
from curvverify.plugins.hidden import hidden_query
from curvverify.report.serialise import from_json, to_json
from curvverify.spec import load_query, parse_query
from curvverify.types import Interval
from curvverify.verification.given import given
from curvverify.verification.node_bounds import BoundsReport

QUICK = curvverify.Options(refine_iterations=1)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(MODEL)


@pytest.fixture(scope="module")
def report(loaded: LoadedModel) -> BoundsReport:
    return curvverify.bounds(loaded, str(HOLDS), QUICK)


def test_float32_rounding_goes_outward() -> None:
    exact = torch.tensor([0.1, -0.1, 1.0, 1e-50, 3.5e38], dtype=torch.float64)
    found = outward(Interval(exact, exact))
    for low, value, high in zip(found.lower.tolist(), exact.tolist(), found.upper.tolist(), strict=True):
        assert low <= value <= high
        assert np.float32(low) == low
        assert np.float32(high) == high
    assert found.lower[2] == found.upper[2] == 1.0
    assert found.upper[4] == float("inf")


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files_read_back_and_every_value_of_the_model_is_inside(
    suffix: str, tmp_path: Path, loaded: LoadedModel, report: BoundsReport
) -> None:
    """The names are ONNX's: its runtime's own values lie inside of the bounds of their name."""
    path = tmp_path / f"b{suffix}"
    write_bounds(path, exported(report, loaded, single=True))
    file = read_bounds(path)
    assert file.model_sha256 == loaded.sha256
    model = onnx.load(MODEL)
    names = [name for node in model.graph.node for name in node.output if name in file.values]
    assert len(names) >= 5
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n != model.graph.output[0].name)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert file.box is not None
    low, high = file.box
    for t in np.random.default_rng(0).random((40, low.size)):
        x = (low + t * (high - low)).astype(np.float32).reshape(1, -1)
        for name, value in zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True):
            bounds, y = file.values[name], np.asarray(value, np.float64).ravel()
            slack = 1e-5 * (1.0 + np.abs(y))
            assert (bounds.lower.ravel() - slack <= y).all()
            assert (y <= bounds.upper.ravel() + slack).all()


def test_infinite_bounds_read_back(tmp_path: Path) -> None:
    file = BoundsFile({"v": ValueBounds(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]))})
    for suffix in (".json", ".npz"):
        write_bounds(tmp_path / f"b{suffix}", file)
        back = read_bounds(tmp_path / f"b{suffix}").values["v"]
        assert back.lower.tolist() == [-np.inf, 0.0]
        assert back.upper.tolist() == [1.0, np.inf]
    with pytest.raises(UsageError, match=r"written as \.json"):
        write_bounds(tmp_path / "b.txt", file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "not a file of bounds"),
        ("{}", "not a file of bounds"),
        ('{"values": {}}', "no bounds in it"),
        ('{"values": {"v": {"lower": [1], "upper": [0]}}}', r"value 'v', entry 0: its bounds are empty: \[1, 0\]"),
        ('{"values": {"v": {"lower": [1], "upper": [2, 3]}}}', "1 lower bounds and 2 upper bounds"),
        ('{"values": {"v": {"lower": ["nan"], "upper": [2]}}}', "not a number"),
    ],
)
def test_malformed_files(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(UnreadableError, match=message):
        read_bounds(path)


def test_hidden_nodes_are_lemmas(loaded: LoadedModel, report: BoundsReport) -> None:
    """The package that defines the format reads the query; without the lemmas it is the query it was made of."""
    import vnnlib

    query = load_query(HOLDS)
    text = hidden_query(query, exported(report, loaded), loaded)
    tree = vnnlib.parse_query_string(text)
    network = tree.networks[0]
    named = {node.onnx_name.strip('"'): tuple(node.shape) for node in network.hidden}
    assert named == {n: node.shape for node in loaded.graph.nodes[1:-1] for n in node.values}
    sizes = sum(2 * int(np.prod(shape)) for shape in named.values())
    assert len(tree.assertions) == 1 + sizes
    bare = "\n".join(line for line in text.splitlines() if "declare-hidden" not in line and " H_" not in line)
    again = parse_query(bare)
    assert [v.shape for v in again.variables] == [v.shape for v in query.variables]
    for one, other in zip(query.groups, again.groups, strict=True):
        assert one.box.lower.tolist() == other.box.lower.tolist()
        assert one.box.upper.tolist() == other.box.upper.tolist()
        assert len(one.disjuncts) == len(other.disjuncts)
        for a, b in zip(one.disjuncts, other.disjuncts, strict=True):
            assert (a.output_matrix == b.output_matrix).all()
            assert a.bound.tolist() == b.bound.tolist()


def test_a_lemma_never_cuts(loaded: LoadedModel) -> None:
    """A decimal for a binary number is on its outer side, exactly."""
    from fractions import Fraction

    from curvverify.plugins.hidden import _above, _below

    for value in (0.1, -0.1, 1e-30, 1.0, 123456.789, -0.0):
        assert Fraction(_below(value)) <= Fraction(value) <= Fraction(_above(value))


# -- bounds in -----------------------------------------------------------------------------------------------------


def test_our_own_bounds_come_back_and_mark_the_verdict(
    tmp_path: Path, loaded: LoadedModel, report: BoundsReport, call
) -> None:
    path = tmp_path / "b.npz"
    write_bounds(path, exported(report, loaded))
    query = load_query(HOLDS)
    taken = given_file(path, loaded, query)
    result = curvverify.verify(loaded, query, given=taken)
    assert result.verdict == curvverify.Verdict.VERIFIED
    assert result.provenance.given == taken.source
    assert any("rests on given bounds" in note for note in result.notes)
    assert from_json(json.loads(json.dumps(to_json(result)))).provenance.given == taken.source
    assert curvverify.verify(loaded, query).provenance.given == ""
    staged = curvverify.verify(loaded, query, given=taken, method="coupled")
    assert staged.provenance.given == taken.source
    with pytest.raises(UsageError, match="method 'taylor' makes its own bounds and does not start from those of"):
        curvverify.verify(loaded, query, given=taken, method="taylor")
    again = curvverify.bounds(loaded, query, QUICK, given=taken)
    for old, new in zip(report.nodes, again.nodes, strict=True):
        assert (new.lower >= old.lower).all()
        assert (new.upper <= old.upper).all()
    assert again.given == taken.source
    ended = call("verify", HOLDS, "--network", MODEL, "--bounds", path, "--real-semantics")
    assert ended.lines == ["unsat"]
    assert f"verified, given bounds from {path} (sha256 " in ended.err
    out = tmp_path / "c.json"
    ended = call("bounds", MODEL, "--box", HOLDS, "--bounds", path, "--export", out, "--float32")
    assert ended.code == 0, ended.err
    assert "rests on given bounds" in ended.err
    assert f"{out}: bounds on" in ended.err


def test_contradictory_bounds_are_refused(loaded: LoadedModel) -> None:
    name = loaded.outputs[0].name
    query = load_query(HOLDS)
    ours = curvverify.bounds(loaded, query, QUICK).nodes[-1]
    box = curvverify.bounds(loaded, query, QUICK).nodes[0]
    hull = Interval(box.lower.flatten(), box.upper.flatten())
    narrow = Interval(ours.lower, ours.upper - 0.25 * (ours.upper - ours.lower))
    with pytest.raises(UnreadableError, match=r"contradict values at inputs of the box"):
        given(loaded, hull, {name: Interval(ours.lower, ours.lower + 1e-3)}, "someone")
    with pytest.raises(UnreadableError, match=r"contradict our bounds"):
        given(loaded, hull, {name: Interval(ours.upper + 1e3, ours.upper + 2e3)}, "someone")
    with pytest.raises(UnreadableError, match="has 3 entries, not 2"):
        given(loaded, hull, {name: Interval(torch.zeros(3), torch.ones(3))}, "someone")
    with pytest.raises(UsageError, match="none of its values"):
        given(loaded, hull, {"nobody": narrow}, "someone")


def test_files_about_something_else_are_refused(tmp_path: Path, loaded: LoadedModel, report: BoundsReport) -> None:
    file = exported(report, loaded)
    path = tmp_path / "b.json"
    write_bounds(path, BoundsFile(file.values, "0" * 64, file.box))
    with pytest.raises(UsageError, match="another model"):
        given_file(path, loaded, str(HOLDS))
    assert file.box is not None
    write_bounds(path, BoundsFile(file.values, file.model_sha256, (file.box[0] + 0.01, file.box[1])))
    with pytest.raises(UsageError, match="does not cover"):
        given_file(path, loaded, str(HOLDS))


# -- auto_LiRPA ----------------------------------------------------------------------------------------------------


class RecordedNode:
    """A node as auto_LiRPA's are: a name, the last value, and bounds once they have been computed."""

    def __init__(self, name: str):
        self.name, self.forward_value, self.lower, self.upper = name, None, None, None


class RecordedModule:
    """The part of auto_LiRPA's BoundedModule that the bridge uses, recorded from its source (0.3): no package here."""

    def __init__(self, model: nn.Sequential):
        self.model = model
        self._modules = {f"/{i}": RecordedNode(f"/{i}") for i in range(len(model) + 1)}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(len(self.model) + 1):
            x = self.model[i - 1](x) if i else x
            if f"/{i}" in self._modules:
                self._modules[f"/{i}"].forward_value = x
        return x


def test_bounds_for_and_from_a_bounded_module() -> None:
    """Against the recorded interface: auto_LiRPA's current version is not on PyPI, and 0.3 does not run here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    loaded = load(model, shapes=(1, 4))
    centre = torch.zeros(4)
    report = curvverify.bounds(loaded, (centre - 0.1, centre + 0.1), QUICK)
    bounded = RecordedModule(model)
    found = lirpa.interm_bounds(bounded, loaded, report)
    assert list(found) == [f"/{i}" for i in range(6)]
    for k in range(50):
        x = centre + 0.1 * (2 * torch.rand(1, 4, generator=torch.Generator().manual_seed(k)) - 1)
        bounded(x)
        for name, (lower, upper) in found.items():
            value = bounded._modules[name].forward_value
            assert lower.shape == value.shape
            assert lower.dtype == torch.float32
            assert (lower <= value + 1e-5).all()
            assert (value <= upper + 1e-5).all()
    with pytest.raises(UsageError, match="call its compute_bounds first"):
        lirpa.bounds_of(bounded, loaded, report)
    node = bounded._modules["/3"]
    node.lower, node.upper = (t + s for t, s in zip(found["/3"], (1e-4, -1e-4), strict=True))
    taken = lirpa.bounds_of(bounded, loaded, report, "auto_LiRPA")
    assert len(taken.known) == 1
    other = RecordedModule(nn.Sequential(nn.Linear(4, 5)))
    del other._modules["/0"]
    with pytest.raises(UsageError, match="is it the same network"):
        lirpa.interm_bounds(other, loaded, report)


# -- Marabou -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_marabou_takes_our_bounds(tmp_path: Path) -> None:
    package = pytest.importorskip("maraboupy.Marabou", reason="pip install maraboupy")
    rng = np.random.default_rng(0)
    graph = _relu_network(rng, (3, 12, 12, 2))
    path = tmp_path / "net.onnx"
    onnx.save(graph, path)
    loaded = load(path)
    low, high = -0.2 * torch.ones(3), 0.3 * torch.ones(3)
    report = curvverify.bounds(loaded, (low, high), QUICK)
    network = package.read_onnx(str(path))
    for k, variable in enumerate(network.inputVars[0].ravel()):
        network.setLowerBound(int(variable), float(low[k]))
        network.setUpperBound(int(variable), float(high[k]))
    places = marabou.variables(network)
    assert marabou.tighten(network, exported(report, loaded)) > 0
    x = np.array([[0.1, -0.15, 0.25]], np.float32)
    session = onnx.reference.ReferenceEvaluator(str(path))
    y = session.run(None, {loaded.inputs[0].name: x})[0].ravel()
    for variable, value in zip(places[loaded.outputs[0].name], y, strict=True):
        assert network.lowerBounds[int(variable)] <= value + 1e-6
        assert value - 1e-6 <= network.upperBounds[int(variable)]
    network.getNewVariable()
    with pytest.raises(UsageError, match="tighten it when read"):
        marabou.variables(network)


def _relu_network(rng: np.random.Generator, sizes: tuple[int, ...]) -> onnx.ModelProto:
    nodes, constants, value = [], [], "x"
    for k, (n, m) in enumerate(itertools.pairwise(sizes)):
        for name, array in ((f"W{k}", rng.normal(size=(n, m))), (f"b{k}", rng.normal(size=m))):
            constants.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        nodes.append(onnx.helper.make_node("Gemm", [value, f"W{k}", f"b{k}"], [f"h{k}"]))
        value = f"h{k}"
        if k < len(sizes) - 2:
            nodes.append(onnx.helper.make_node("Relu", [value], [f"r{k}"]))
            value = f"r{k}"
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in (("x", sizes[0]), (value, sizes[-1]))
    )
    graph = onnx.helper.make_graph(nodes, "net", [x], [y], constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)


def test_without_marabou_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="pip install maraboupy"):
        marabou.variables(object())
