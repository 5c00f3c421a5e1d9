"""Live graphs compute what the module computes, and their constants are those of the rigorous analysis."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import curvverify
from curvverify.errors import UnsupportedModelError
from curvverify.train.constants import Compositional
from curvverify.train.live import LiveModule
from curvverify.train.pairs import PairCurvature
from tests.train.networks import low_curvature, mlp, residual

MODELS = {
    "mlp": (mlp(3), (5,)),
    "residual": (residual(), (1, 4, 4)),
    "low curvature": (low_curvature(), (1, 4, 4)),
}


class Functional(nn.Module):
    """Joins and activations called in forward()."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.a, self.b = nn.Linear(4, 4).double(), nn.Linear(8, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)) * 0.5 - x
        return self.b(torch.cat([h, torch.sigmoid(x)], 1))


MODELS["functional"] = (Functional().eval(), (4,))


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients(name: str) -> None:
    model, shape = MODELS[name]
    x = torch.randn(3, *shape, dtype=torch.float64)
    graph = LiveModule(model, shape).graph()
    assert torch.allclose(graph(x), model(x), atol=1e-12)
    parameters = [p for p in model.parameters() if p.requires_grad]
    mine = torch.autograd.grad(graph(x).square().sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(model(x).square().sum(), parameters, allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.allclose(a, b, atol=1e-10)


def test_graph_follows_the_parameters() -> None:
    model = mlp(2)
    live, x = LiveModule(model, (5,)), torch.randn(2, 5, dtype=torch.float64)
    before = live.graph()(x)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    assert not torch.allclose(before, model(x))
    assert torch.allclose(live.graph()(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_compositional_estimates_are_near_and_above_what_is_proved(name: str) -> None:
    """The rigorous analysis has more formulas, so it may be smaller; never larger than this one, estimation aside."""
    model, shape = MODELS[name]
    with torch.no_grad():
        found = Compositional(iterations=60)(LiveModule(model, shape).graph())
    report = curvverify.curvature(model, shapes=(1, *shape)).output
    assert report.lipschitz_upper <= 1.01 * float(found.lipschitz_estimate[-1])
    assert report.curvature_upper <= 1.01 * float(found.curvature_estimate[-1])
    assert float(found.lipschitz_estimate[-1]) <= 30.0 * report.lipschitz_upper


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_layered_pairs_against_the_rigorous_ones(layers: int) -> None:
    model = mlp(layers, width=7)
    pairs = PairCurvature(iterations=300)
    with torch.no_grad():
        graph = LiveModule(model, (5,)).graph()
        pairs(graph)
        found = pairs(graph)
    for y, t in ((0, 1), (2, 0)):
        report = curvverify.curvature(model, shapes=(1, 5), pair=(y, t)).output
        assert -report.eigenvalue_lower <= 1.001 * float(found.bend_estimate[y, t])
        assert report.eigenvalue_upper <= 1.001 * float(found.bend_estimate[t, y])
        if layers == 2:  # the formula is the same one
            assert float(found.bend_estimate[y, t]) == pytest.approx(-report.eigenvalue_lower, rel=1e-5)
            assert float(found.bend_estimate[t, y]) == pytest.approx(report.eigenvalue_upper, rel=1e-5)


def test_errors_name_the_module() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'1'.*Bilinear|'1'.*Softmax"):
        LiveModule(nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), (3,))
    relu = LiveModule(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), (3,))
    with pytest.raises(UnsupportedModelError, match="convert_to_low_curvature"):
        PairCurvature()(relu.graph())
