"""Certified radii of data sets survive attacks; inputs that make no sense are refused."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import curvverify
from curvverify.bounding.constants.setting import Structure
from curvverify.certificates.local import LocalAnalyser
from curvverify.certificates.reduced import reduced
from curvverify.certificates.witness import Confirmer
from curvverify.errors import UnsupportedError, UsageError
from curvverify.graph import load
from tests.certificates.networks import disc, evaluator_of, network, two_layers


def attacked(module: nn.Module, x: torch.Tensor, y: int, radius: float, domain: tuple[float, float] | None) -> bool:
    moved = x + disc(20000, len(x), radius * (1 - 1e-9))
    if domain is not None:
        moved = moved.clamp(*domain)
    with torch.no_grad():
        return bool((module(moved).argmax(1) != y).any())


@pytest.mark.parametrize(
    ("module", "domain"),
    [
        (two_layers(), None),
        (two_layers(), (0.0, 1.0)),
        (two_layers(nn.Tanh), (0.0, 1.0)),
        (network([2, 8, 8, 3], nn.Tanh), (0.0, 1.0)),
        (network([2, 6, 6, 3], nn.Softplus), None),
    ],
)
def test_radii_survive_sampling(module: nn.Module, domain: tuple[float, float] | None) -> None:
    x = torch.rand(4, 2, dtype=torch.float64)
    with torch.no_grad():
        y = module(x).argmax(1)
    y[0] = (y[0] + 1) % 3  # misclassified
    report = curvverify.certified_radius(module, x, y, domain=domain)
    assert report.samples[0].radius_certified == report.samples[0].radius_attacked == 0.0
    assert report.samples[0].method == "misclassified"
    for k, s in enumerate(report.samples[1:], 1):
        assert 0.0 < s.radius_certified <= s.radius_attacked
        assert not attacked(module, x[k], int(y[k]), min(s.radius_certified, 50.0), domain)
        if math.isfinite(s.radius_attacked):
            assert s.exact == (s.radius_attacked - s.radius_certified <= 1e-3 * min(1.0, s.radius_attacked))
    assert report.clean_accuracy == 3 / 4


def test_most_radii_are_exact_and_high_effort_is_no_worse() -> None:
    module = two_layers(nn.Softplus, seed=1)
    x = torch.rand(10, 2, dtype=torch.float64)
    y = module(x).argmax(1)
    reports = [
        curvverify.certified_radius(module, x, y, domain=(0.0, 1.0), effort=e) for e in ("fast", "normal", "high")
    ]
    radii = np.array([r.radii for r in reports])
    assert (radii[0] <= radii[1]).all()
    assert (radii[1] <= radii[2]).all()
    assert sum(s.exact for s in reports[2].samples if math.isfinite(s.radius_attacked)) >= 1


def test_decisions_agree_with_radii() -> None:
    module = two_layers(nn.Tanh, seed=7)
    x = torch.rand(12, 2, dtype=torch.float64)
    y = module(x).argmax(1)
    largest = curvverify.certified_radius(module, x, y, domain=(0.0, 1.0))
    decided = curvverify.certified_radius(module, x, y, domain=(0.0, 1.0), eps=(0.05, 0.3), attack=True)
    for a, b in zip(largest.samples, decided.samples, strict=True):
        for eps in (0.05, 0.3):
            answers = {a.decided(eps), b.decided(eps)} - {None}
            assert len(answers) <= 1
        assert max(a.radius_certified, b.radius_certified) <= min(a.radius_attacked, b.radius_attacked)


def test_linf_radii_survive_corners() -> None:
    module = network([2, 8, 8, 3], nn.Tanh, seed=3)
    x = torch.rand(6, 2, dtype=torch.float64)
    y = module(x).argmax(1)
    report = curvverify.certified_radius(module, x, y, norm="linf", domain=(0.0, 1.0))
    for k, s in enumerate(report.samples):
        r = min(s.radius_certified, 10.0)
        assert r > 0.0
        assert s.radius_certified <= s.radius_attacked
        moved = (x[k] + r * (2 * torch.rand(20000, 2, dtype=torch.float64) - 1)).clamp(0.0, 1.0)
        assert bool((module(moved).argmax(1) == y[k]).all())


def test_reduced_network_has_the_same_constants() -> None:
    module = network([9, 4, 4, 3], nn.Tanh)
    graph = load(module, shapes=(1, 9)).graph
    x = torch.rand(9, dtype=torch.float64)
    analyser = LocalAnalyser(graph)
    assert analyser.reduced is not None
    small = analyser.constants(x, 1, 0.1)
    analyser.reduced = None
    analyser.structures.clear()
    large = analyser.constants(x, 1, 0.1)
    for field in dataclasses.fields(small):
        a, b = getattr(small, field.name), getattr(large, field.name)
        torch.testing.assert_close(a, b, rtol=0.2, atol=1e-6)
    assert reduced(load(network([2, 4, 3]), shapes=(1, 2)).graph) is None
    assert Structure(analyser.graph).graph is graph


class Bow(nn.Module):
    """The margin 0.01 + sin(x) - x: at 0 its gradient and Hessian vanish, and all it loses is of third order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.sin(x) - x + 0.01, 0.0 * x], 1)


def test_third_order_wins_where_the_hessian_vanishes() -> None:
    """0.01 > r^3 / 6 up to .391, while the curvature r of the ball proves 0.01 > r^3 / 2 up to .271 only."""
    zero = torch.zeros(1, dtype=torch.float64)
    analyser = LocalAnalyser(load(Bow(), shapes=(1, 1)).graph.to(torch.float64))
    found = analyser.radius(zero, 0, torch.tensor([0.01]).double(), zero, 0.0, 1.0)
    assert found.method == "cubic"
    assert 0.38 < found.radius < 0.3935  # where 0.01 + sin(r) - r = 0


def test_nonsmooth_networks_get_first_order_radii() -> None:
    module = network([2, 6, 3], nn.ReLU)
    x = torch.rand(4, 2, dtype=torch.float64)
    y = module(x).argmax(1)
    report = curvverify.certified_radius(module, x, y)
    for k, s in enumerate(report.samples):
        assert s.radius_certified > 0.0
        assert s.radius_taylor == 0.0
        assert not attacked(module, x[k], int(y[k]), min(s.radius_certified, 50.0), None)
    decided = curvverify.certified_radius(module, x, y, eps=(0.01, 10.0))
    assert any(s.decided(10.0) is False for s in decided.samples)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[0.1, math.nan]], [0], "NaN"),
        ([[0.1, math.inf]], [0], "NaN or infinite"),
        ([[0.1, 0.2, 0.3]], [0], "takes 2 numbers"),
        ([[0.1, 0.2]], [3], "classes 0 to 2"),
        ([[0.1, 0.2]], [-1], "classes 0 to 2"),
        ([[0.1, 0.2]], [0.5], "integers"),
        ([[0.1, 0.2]], [0, 1], "labels of shape"),
        ([[0.1, 1.2]], [0], "leaves the domain"),
    ],
)
def test_senseless_inputs_are_refused(x: list[list[float]], y: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        curvverify.certified_radius(two_layers(), np.array(x), np.array(y), domain=(0.0, 1.0), shapes=(1, 2))


def test_senseless_options_are_refused() -> None:
    x, y = np.zeros((1, 2)), np.zeros(1, dtype=int)
    for wrong in ({"eps": (0.0,)}, {"eps": (math.nan,)}, {"norm": "l1"}, {"effort": "x"}, {"domain": (1.0, 0.0)}):
        with pytest.raises(UsageError):
            curvverify.certified_radius(two_layers(), x, y, **wrong)
    with pytest.raises(UnsupportedError, match="classifier"):
        curvverify.certified_radius(nn.Linear(2, 1), x, y)


def test_bytes_are_scaled_and_bounded() -> None:
    module = two_layers()
    x = np.array([[10, 200], [255, 0]], dtype=np.uint8)
    y = module(torch.from_numpy(x / 255.0)).argmax(1)
    report = curvverify.certified_radius(module, x, y)
    assert report.domain == (0.0, 1.0)
    assert curvverify.certified_radius(module, x / 255.0, y).domain is None


def test_witness_must_hold_over_the_reals_too() -> None:
    """Next to a decision boundary float32 arithmetic alone may call a certified input misclassified."""
    module = two_layers()
    evaluator = evaluator_of(module, 2)
    x = torch.rand(2, dtype=torch.float64)
    y = int(module(x[None]).argmax())
    ends = torch.full((2,), -torch.inf, dtype=torch.float64), torch.full((2,), torch.inf, dtype=torch.float64)
    liar = Confirmer(lambda _: torch.nn.functional.one_hot(torch.tensor((y + 1) % 3), 3).float(), evaluator, *ends)
    assert liar.confirm(x, torch.zeros(2, dtype=torch.float64), y) is None
