"""Training methods by name: how each prepares a model and what it minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from curvverify.errors import UsageError
from curvverify.train.certificate import CertificateLoss
from curvverify.train.convert import convert_to_low_curvature
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


@dataclass(frozen=True)
class Strength:
    """What the methods take: the l_2 radius, a weight (None: the method's own), a target curvature."""

    eps: float
    weight: float | None = None
    target: float | None = None

    def of(self, default: float) -> float:
        return default if self.weight is None else self.weight


class Objective(Protocol):
    """What is minimised."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor: ...


class Sum:
    """A loss of (x, y) plus penalties, some of which ask for the batch."""

    def __init__(self, loss: Objective, with_batch: tuple[Any, ...] = (), alone: tuple[Any, ...] = ()):
        self.parts = (loss, *with_batch, *alone)
        self.loss, self.with_batch, self.alone = loss, with_batch, alone

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        total = self.loss(x, y)
        for penalty in self.with_batch:
            total = total + penalty(x, y)
        for penalty in self.alone:
            total = total + penalty()
        return total


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    help: str
    objective: Callable[[nn.Module, tuple[int, ...], int, Strength], Any]
    converts: bool = False
    """Whether the model's layers are replaced by those of low curvature first."""
    ramped: bool = False
    """Whether eps grows from 0 in the first part of training."""


def _crt(model: nn.Module, shape: tuple[int, ...], classes: int, s: Strength) -> Any:
    return CurvatureAttackLoss(model, shape, s.eps, s.of(0.01))


def _ccb(model: nn.Module, shape: tuple[int, ...], classes: int, s: Strength) -> Any:
    weight = s.of(0.01) if s.target is None else PrimalDual(s.target, 1e-4)
    return Sum(CrossEntropy(model), alone=(CompositionalPenalty(model, shape, weight),))


def _lcnn(model: nn.Module, shape: tuple[int, ...], classes: int, s: Strength) -> Any:
    weight = s.of(1e-2)
    return Sum(CrossEntropy(model), alone=(LowCurvaturePenalty(model, weight, weight),))


def _lcnn_gradient(model: nn.Module, shape: tuple[int, ...], classes: int, s: Strength) -> Any:
    weight = s.of(1e-2)
    return Sum(CrossEntropy(model), (GradientPenalty(model, weight),), (LowCurvaturePenalty(model, weight, weight),))


METHODS: dict[str, Method] = {
    "standard": Method("cross-entropy", lambda m, shape, k, s: CrossEntropy(m)),
    "certificate": Method(
        "cross-entropy on the dual's certified margins at eps, curvatures times weight",
        lambda m, shape, k, s: CertificateLoss(m, shape, k, s.eps, weight=s.of(0.85)),
        ramped=True,
    ),
    "crt": Method("cross-entropy at the curvature attack, plus weight x layered K", _crt, ramped=True),
    "ccb": Method("plus weight x compositional curvature, or that held at --target", _ccb),
    "crm": Method(
        "cross-entropy with head starts eps x Lipschitz constant",
        lambda m, shape, k, s: LipschitzMarginLoss(m, shape, s.eps),
        ramped=True,
    ),
    "reward": Method(
        "plus weight x certified radius as a reward",
        lambda m, shape, k, s: Sum(CrossEntropy(m), (Scaled(s.of(1.0), RadiusPenalty(m, shape, s.eps)),)),
    ),
    "lcnn": Method("low-curvature layers, plus weight x (betas and log slopes)", _lcnn, converts=True),
    "lcnn-gradient": Method("lcnn plus weight x squared gradient norm", _lcnn_gradient, converts=True),
    "cure": Method(
        "plus weight x CURE's change of the loss gradient",
        lambda m, shape, k, s: Sum(CrossEntropy(m), (CurePenalty(m, s.of(1.0)),)),
    ),
    "gnr": Method(
        "plus weight x squared norm of the loss gradient",
        lambda m, shape, k, s: Sum(CrossEntropy(m), (GradientPenalty(m, s.of(0.1)),)),
    ),
}


class Scaled:
    """weight times another term."""

    def __init__(self, weight: float, term: Any):
        self.weight, self.term = weight, term

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.weight * self.term(x, y)


def method(name: str) -> Method:
    """UsageError for an unknown name."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}: choose {', '.join(METHODS)}")
    return METHODS[name]


def prepared(name: str, model: nn.Module, beta: float) -> nn.Module:
    """The model with the layers that the method wants."""
    return convert_to_low_curvature(model, beta) if method(name).converts else model


def leaves(objective: Any) -> list[Any]:
    """The objects inside an objective that have a state, in a fixed order."""
    parts = [*objective.parts] if isinstance(objective, Sum) else [objective]
    parts = [p.term if isinstance(p, Scaled) else p for p in parts]
    return [p for p in parts if hasattr(p, "state_dict")]


def set_eps(objective: Any, eps: float) -> None:
    """Give the radius to the parts that have one."""
    for part in leaves(objective):
        if hasattr(part, "eps"):
            part.eps = eps
