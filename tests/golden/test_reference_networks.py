"""The networks published with two of the papers: their constants reproduced, and ours never above them.

`LISTED` is the table of shared/models/REFERENCE.md.  That `benchmarks.baselines` gives these numbers shows that their
formulas are read as the authors meant them; ours must then be at or below every one, and above what is attained.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import curvverify
from benchmarks import baselines
from curvverify.graph import LoadedModel, load
from curvverify.types import Ball
from tests.soundness.curvature_attack import Effort, Space, norms
from tests.soundness.curvature_series import with_rows

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models"

pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason=f"no reference networks at {MODELS}")

EFFORT = Effort(points=24, directions=8, starts=1, steps=12)

ROUNDED = 1.0 + 1e-9
"""Our bounds are rounded outward, the baselines to nearest."""


class Listed(NamedTuple):
    product: float
    liplt: float
    K: float
    K4_mean: float
    K4_max: float


LISTED = {
    "3F": Listed(150.25, 124.77, 2.424e3, 2.361e3, 3.078e3),
    "3F-reg": Listed(1798.3, 1449.0, 1.489e5, 1.575e5, 1.956e5),
    "4F": Listed(549.03, 437.50, 3.772e4, 4.160e4, 5.259e4),
    "4F-reg": Listed(13799, 9832, 1.063e7, 1.614e7, 2.055e7),
    "5F": Listed(1.466e5, 1.0110e5, 1.346e9, 2.153e9, 2.907e9),
    "5F-reg": Listed(1.535e5, 1.0173e5, 1.326e9, 2.208e9, 3.055e9),
    "6F": Listed(2.026e6, 1.2440e6, 2.273e11, 4.279e11, 5.720e11),
    "6F-reg": Listed(1.777e6, 1.0835e6, 1.761e11, 3.265e11, 4.721e11),
}

EVERY_PAIR = list(baselines.pairs(10))

HALF = [(y, t) for y, t in EVERY_PAIR if y < t]
"""Each stands for (t, y) as well, whose Hessian is the negative."""

SOME_PAIRS = HALF[::19]


@cache
def tanh_net(name: str) -> LoadedModel:
    return load(MODELS / f"ccb_mnist_{name}_tanh.onnx", check=False)


@cache
def crc_net() -> LoadedModel:
    return load(MODELS / "crc_mnist_2x1024_softplus.onnx", check=False)


def weights(loaded: LoadedModel) -> baselines.Mlp:
    net = baselines.as_mlp(loaded.graph)
    assert net is not None
    return net


def rows(pairs: list[tuple[int, int]]) -> Tensor:
    found = torch.zeros(len(pairs), 10, dtype=torch.float64)
    for i, (y, t) in enumerate(pairs):
        found[i, y], found[i, t] = 1.0, -1.0
    return found


@pytest.mark.parametrize("name", list(LISTED))
def test_published_formulas_are_read_as_meant(name: str) -> None:
    """All five columns, to the digits that are listed."""
    net, listed = weights(tanh_net(name)), LISTED[name]
    theorem4 = baselines.crc_theorem4(net, rows(EVERY_PAIR))
    ours = (
        baselines.naive_lipschitz(net),
        baselines.liplt(net)[-1],
        baselines.curvature_of_pairs(net),
        float(theorem4.mean()),
        float(theorem4.max()),
    )
    assert ours == pytest.approx(listed, rel=3e-4)


@pytest.mark.parametrize("name", list(LISTED))
def test_global_constants_of_the_tanh_networks(name: str) -> None:
    """The whole output: at or below the product of norms and LipLT; above the attained; T at or below HiTaB's."""
    loaded = tanh_net(name)
    net, report = weights(loaded), curvverify.curvature(loaded)
    output = report.output
    assert output.lipschitz_upper <= min(baselines.naive_lipschitz(net), baselines.liplt(net)[-1]) * ROUNDED
    assert output.curvature_upper <= baselines.curvature(net) * ROUNDED
    assert output.third_order_upper <= baselines.third_order(net) * ROUNDED
    for order, field in enumerate(("lipschitz_upper", "curvature_upper", "third_order_upper"), start=1):
        attained = norms(loaded.graph, Space(784), order, EFFORT).value.tolist()
        assert attained[-1] > 0.0
        for node, value in zip(report.nodes, attained, strict=True):
            assert value <= getattr(node, field) * ROUNDED, (node.name, field)


@pytest.mark.parametrize("name", list(LISTED))
def test_all_pairs_of_the_tanh_networks(name: str) -> None:
    """Every difference of two outputs, as rows of one graph: below the published K and below Theorem 4 for it."""
    loaded, listed = tanh_net(name), LISTED[name]
    net = weights(loaded)
    K, theorem4 = baselines.curvature_of_pairs(net), baselines.crc_theorem4(net, rows(HALF)).tolist()
    graph = with_rows(loaded.graph, rows(HALF))
    found = curvverify.curvature(graph).rows
    assert found is not None
    for pair, bound, K4 in zip(HALF, found.curvature_upper, theorem4, strict=True):
        assert bound <= min(K, K4) * ROUNDED, pair
    assert float(np.mean(found.curvature_upper)) <= listed.K4_mean
    assert max(found.curvature_upper) <= min(listed.K4_max, listed.K * 1.0005)
    attained = norms(graph, Space(784), 2, EFFORT).value[-1] / math.sqrt(len(HALF))  # of the largest row, at least
    assert float(attained) <= max(found.curvature_upper)


@pytest.mark.parametrize("name", list(LISTED))
def test_some_pairs_of_the_tanh_networks(name: str) -> None:
    """The same through `pair`."""
    loaded = tanh_net(name)
    net = weights(loaded)
    K, theorem4 = baselines.curvature_of_pairs(net), baselines.crc_theorem4(net, rows(SOME_PAIRS))
    for row, pair, K4 in zip(rows(SOME_PAIRS), SOME_PAIRS, theorem4.tolist(), strict=True):
        output = curvverify.curvature(loaded, pair=pair).output
        assert output.curvature_upper <= min(K, K4) * ROUNDED, pair
        assert max(output.eigenvalue_upper, -output.eigenvalue_lower) <= output.curvature_upper * ROUNDED
        graph = with_rows(loaded.graph, row.unsqueeze(0))
        assert float(norms(graph, Space(784), 2, EFFORT).value[-1]) <= output.curvature_upper * ROUNDED


@pytest.mark.parametrize(("name", "listed"), [("3F", 0.416), ("4F", 0.189), ("6F", 0.00096)])
def test_anchored_curvature(name: str, listed: float, shared_path: Path) -> None:
    """Anchored at test images, over all of R^n: at most the listed share of the global constant K."""
    loaded = tanh_net(name)
    K = baselines.curvature_of_pairs(weights(loaded))
    images = np.load(shared_path / "data" / "mnist.npz")["x_test"][:4].reshape(4, -1) / 255.0
    shares = []
    for image in images:
        ball = Ball(torch.from_numpy(image), math.inf)
        shares.append(curvverify.curvature(loaded, ball, pair=(3, 5), anchored=True).output.curvature_upper / K)
    assert 0.0 < float(np.mean(shares)) <= 1.1 * listed  # 4 images and one pair instead of 64 and all


def test_crc_network_as_published() -> None:
    """||W1||, Theorem 4 and the two-layer eigenvalues of REFERENCE.md, by the plain formulas."""
    net = weights(crc_net())
    K4 = baselines.crc_theorem4(net, rows(EVERY_PAIR))
    assert baselines.norm(net.weights[0]) == pytest.approx(7.41983, rel=2e-6)
    assert [float(K4.min()), float(K4.mean()), float(K4.max())] == pytest.approx([0.8200, 1.9839, 2.6428], abs=5e-5)


def test_two_layer_eigenvalues_of_every_pair() -> None:
    """M and m of all 90 pairs to six digits, and rigorously on the outer side of an independent computation."""
    loaded = crc_net()
    net = weights(loaded)
    every = dict(zip(EVERY_PAIR, rows(EVERY_PAIR), strict=True))
    independent = {pair: baselines.two_layer_eigenvalues(net, row)[0] for pair, row in every.items()}
    values = np.array(list(independent.values()))
    assert [values.min(), values.mean(), values.max()] == pytest.approx([0.17129, 0.59257, 0.86256], abs=5e-6)
    found = curvverify.curvature(with_rows(loaded.graph, rows(HALF))).rows
    assert found is not None
    ends = dict(zip(HALF, zip(found.eigenvalue_upper, found.eigenvalue_lower, strict=True), strict=True))
    for pair in SOME_PAIRS:
        output = curvverify.curvature(loaded, pair=pair).output
        assert (output.eigenvalue_upper, output.eigenvalue_lower) == pytest.approx(ends[pair], rel=1e-6)
        assert output.curvature_upper <= max(ends[pair][0], -ends[pair][1]) * (1.0 + 1e-6)
    for (y, t), (upper, lower) in ends.items():
        assert independent[y, t] * (1.0 - 1e-12) <= upper <= independent[y, t] * (1.0 + 1e-6)
        assert independent[t, y] * (1.0 - 1e-12) <= -lower <= independent[t, y] * (1.0 + 1e-6)
