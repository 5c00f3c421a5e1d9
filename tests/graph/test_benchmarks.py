"""Every network of the benchmark folder loads, agrees with ONNX Runtime, and has the structure one expects."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from curvverify.graph import Graph, load

LARGE = 2_000_000
"""Networks in files beyond this many bytes are compared on fewer inputs."""


def operators(graph: Graph) -> Counter[str]:
    return Counter(node.op.name for node in graph)


@pytest.fixture(scope="module")
def networks(shared_path: Path) -> list[Path]:
    """One file of every content."""
    found: dict[str, Path] = {}
    for path in sorted([*shared_path.glob("vnncomp/**/*.onnx*"), *shared_path.glob("models/*.onnx")]):
        found.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
    if not found:
        pytest.skip(f"no networks in {shared_path}")
    return list(found.values())


def test_all_networks(networks: list[Path]) -> None:
    slow = ("mscn", "cGAN", "ibp", "pgd")
    for path in networks:
        many = path.stat().st_size < LARGE and not any(part in path.name for part in slow)
        loaded = load(path, samples=30 if many else 4)
        assert not loaded.notes, path
        assert all(dim > 0 for dim in loaded.graph.output_shape), path


STRUCTURES = {
    "vnncomp/eran_sigmoid_2021/onnx/ffnnSIGMOID__Point_6x200.onnx": "Diagonal Reshape Dense:7 Sigmoid:6",
    "vnncomp/acasxu/onnx/ACASXU_run2a_1_1_batch_2000.onnx": "Reshape Dense:7 Relu:6",
    "vnncomp/oval21_2022/onnx/cifar_base_kw.onnx": "Convolution:2 Relu:3 Reshape Dense:2",
    "vnncomp/cgan_2023_smooth/onnx/cGAN_imgSz32_nCh_3_nonlinear_activations.onnx": (
        "Dense:2 Reshape:2 Convolution:8 Relu:7 Tanh Diagonal:3 Sigmoid"
    ),
    "vnncomp/dist_shift_2023/onnx/mnist_concat.onnx": "Dense:5 Relu:3 Sigmoid",
    "models/crc_mnist_2x1024_softplus.onnx": "Dense:2 Softplus",
}


@pytest.mark.parametrize("name", STRUCTURES, ids=lambda name: Path(name).stem)
def test_structure(shared_path: Path, name: str) -> None:
    path = shared_path / name
    if not path.exists():
        pytest.skip(f"no {path}")
    expected: Counter[str] = Counter({"Input": 1})
    for entry in STRUCTURES[name].split():
        operator, _, count = entry.partition(":")
        expected[operator] = int(count or 1)
    assert operators(load(path, check=False).graph) == expected
