"""Names of ONNX values on the nodes of the layer graph: every name stands for exactly that value."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from curvverify.demo import MODEL
from curvverify.graph import load
from curvverify.graph.onnx_import.module import OnnxModule
from curvverify.graph.replay import split

NETWORKS = {
    "eran_sigmoid_2021/onnx": 0,
    "eran_relu_2021/onnx": 0,
    "mnist_fc_2022/onnx": 0,
    "sri_resnet_a_2022/onnx": 0,
    "cgan_2023_smooth/onnx": 0,
    "vit_2023/onnx": None,
}
"""Folders of networks, with the number of inputs of nonlinear nodes that have no name (None: not counted)."""


def agrees(path: Path) -> list[str]:
    """Compare every named node with the model's own value; the inputs of nonlinear nodes without a name."""
    loaded = load(path, check=False)
    assert isinstance(loaded.module, OnnxModule)
    x = torch.rand(1, *loaded.graph.input_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = loaded.module.values(*split(loaded, x.flatten()))
    named = 0
    for node, value in zip(loaded.graph, loaded.graph.values(x), strict=True):
        assert tuple(value.shape[1:]) == node.shape, node.name
        for name in node.values:
            named += 1
            assert torch.allclose(theirs[name].flatten(), value.flatten(), rtol=1e-9, atol=1e-12), name
    assert named >= 3
    assert loaded.graph.nodes[0].values[0] == loaded.inputs[0].name
    return [loaded.graph.nodes[i].name for i in loaded.graph.bounded if not loaded.graph.nodes[i].values]


def test_of_the_demo() -> None:
    assert agrees(MODEL) == []


@pytest.mark.parametrize(("folder", "nameless"), NETWORKS.items())
def test_of_benchmark_networks(folder: str, nameless: int | None, shared_path: Path) -> None:
    found = agrees(sorted((shared_path / "vnncomp" / folder).glob("*.onnx*"))[0])
    assert nameless is None or len(found) == nameless
