"""Gradients of every regulariser against central differences, in float64, once what iterates has converged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curvverify.errors import UsageError
from curvverify.train.certificate import CertificateLoss, certified_estimate
from curvverify.train.constants import Compositional
from curvverify.train.live import LiveModule
from curvverify.train.pairs import PairCurvature
from curvverify.train.penalties import (
    CompositionalPenalty,
    CrossEntropy,
    CurePenalty,
    CurvatureAttackLoss,
    GradientPenalty,
    LipschitzMarginLoss,
    LowCurvaturePenalty,
    PrimalDual,
    RadiusPenalty,
)
from tests.train.exact import exact_norms
from tests.train.networks import low_curvature, mlp, residual

STEP = 1e-5
CONVERGED = 300


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(11)
    return torch.rand(4, *shape, dtype=torch.float64), torch.tensor([0, 1, 2, 1])


def check(model: nn.Module, value: Callable[[], Tensor], *iterating: PairCurvature | Compositional) -> None:
    """The value, and its slope along two random directions of the parameters by central differences.

    What iterates converges first; the differences are those of the formula with exact norms.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for iterations in (1, CONVERGED, 1):
        for part in iterating:
            part.iterations = iterations
            if isinstance(part, PairCurvature):
                part.compositional.iterations = iterations
        found = value()
    gradients = torch.autograd.grad(found, parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(12)

    def exact() -> float:
        if not iterating:
            return float(value().detach())
        with exact_norms():
            return float(value().detach())

    assert float(found.detach()) == pytest.approx(exact(), rel=1e-6)
    for _ in range(2):
        way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        slope = sum(float((g * w).sum()) for g, w in zip(gradients, way, strict=True) if g is not None)
        ends = []
        for sign in (1.0, -2.0):
            _move(parameters, way, sign * STEP)
            ends.append(exact())
        _move(parameters, way, STEP)
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-4, abs=1e-6)
    assert any(g is not None and bool(g.any()) for g in gradients)


@torch.no_grad()
def _move(parameters: list[nn.Parameter], way: list[Tensor], amount: float) -> None:
    for p, w in zip(parameters, way, strict=True):
        p.add_(amount * w)


@pytest.mark.parametrize("layers", [2, 3])
def test_layered_curvature(layers: int) -> None:
    model = mlp(layers)
    live, pairs = LiveModule(model, (5,)), PairCurvature()

    def value() -> Tensor:
        found = pairs(live.graph())
        return found.bend_estimate.sum() + found.lipschitz_estimate.sum()

    check(model, value, pairs)


@pytest.mark.parametrize(
    ("model", "shape", "joined"),
    [(mlp(3), (5,), True), (residual(), (1, 4, 4), True), (low_curvature(), (1, 4, 4), False)],
)
def test_compositional(model: nn.Module, shape: tuple[int, ...], joined: bool) -> None:
    live, compositional = LiveModule(model, shape), Compositional(joined)

    def value() -> Tensor:
        found = compositional(live.graph())
        return found.curvature_estimate[-1] + found.lipschitz_estimate[-1]

    check(model, value, compositional)


def test_curvature_attack() -> None:
    """With no steps the attack's point, which is held constant, does not move with the parameters."""
    model, (x, y) = mlp(3), batch((5,))
    loss = CurvatureAttackLoss(model, (5,), 0.3, gamma=0.5, steps=0)
    check(model, lambda: loss(x, y), loss.pairs)


def test_margin_with_lipschitz_offset() -> None:
    model, (x, y) = mlp(3), batch((5,))
    loss = LipschitzMarginLoss(model, (5,), 0.2)
    check(model, lambda: loss(x, y), loss.pairs)


def test_radius_reward() -> None:
    model, (x, _) = mlp(2), batch((5,))
    y = model(x).argmax(1)
    penalty = RadiusPenalty(model, (5,), 10.0)
    check(model, lambda: penalty(x, y), penalty.pairs)


def test_certificate_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """With displacements and running means, which it holds constant, held constant here too."""
    model, (x, y) = mlp(2), batch((5,))
    loss = CertificateLoss(model, (5,), 3, 0.4)
    monkeypatch.setattr(loss, "_remember", lambda *_: None)
    monkeypatch.setattr("curvverify.train.certificate.towards_boundary", lambda m, x, *_: 0.05 * torch.sin(7.0 * x))
    check(model, lambda: loss(x, y), loss.pairs)


@pytest.mark.parametrize("make", [lambda m: GradientPenalty(m, 1.0), lambda m: CurePenalty(m, 1.0), CrossEntropy])
@pytest.mark.parametrize(("model", "shape"), [(mlp(3), (5,)), (residual(), (1, 4, 4))])
def test_on_batches(make: Callable[[nn.Module], CrossEntropy], model: nn.Module, shape: tuple[int, ...]) -> None:
    penalty, (x, y) = make(model), batch(shape)
    check(model, lambda: penalty(x, y))


def test_low_curvature_penalty() -> None:
    model = low_curvature()
    penalty = LowCurvaturePenalty(model)
    check(model, penalty)
    with pytest.raises(UsageError, match="convert_to_low_curvature"):
        LowCurvaturePenalty(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_primal_dual_holds_the_curvature() -> None:
    torch.manual_seed(0)
    model = mlp(3)
    penalty = CompositionalPenalty(model, (5,), PrimalDual(target=5.0, step=3e-3))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = batch((5,))

    def curvature() -> float:
        return float(penalty.compositional(penalty.live.graph()).curvature_estimate[-1].detach())

    start = curvature()
    for _ in range(150):
        optimiser.zero_grad()
        (CrossEntropy(model)(x, y) + penalty()).backward()
        optimiser.step()
    assert start > 15.0
    assert curvature() < 8.0
    weight = PrimalDual(0.9, 0.1)
    weight.towards(0.95)
    assert weight.weight == pytest.approx(0.005)
    weight.towards(0.5)
    assert weight.weight == 0.0


def test_certified_estimates_agree_with_certificates() -> None:
    import curvverify

    model, (x, _) = mlp(2), batch((5,))
    x = torch.randn(40, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    bend = PairCurvature(300)(LiveModule(model, (5,)).graph()).bend_estimate.detach()
    eps = 0.25
    correct, certified = certified_estimate(model, x, y, eps, bend, steps=60)
    report = curvverify.certified_radius(model, x.numpy(), y.numpy(), eps=(eps,), domain=None)
    proved = torch.tensor([s.radius_certified >= eps for s in report.samples])
    assert bool(correct.all())
    assert 5 < int(certified.sum()) < 40
    assert int((certified & ~proved).sum()) == 0
    assert int((proved & ~certified).sum()) <= 1
