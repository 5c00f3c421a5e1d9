"""Regularisers and losses, each an object to be called in anybody's training loop.

`loss(x, y)` is a loss on its own; a `...Penalty` is added to one.  x is (B, *S), y (B) holds classes.  Everything is
differentiable by the model's parameters; what is called an estimate proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvverify.errors import UsageError
from curvverify.train.certificate import margins, towards_boundary
from curvverify.train.constants import Compositional
from curvverify.train.layers import CentredSoftplus, LipschitzBatchNorm
from curvverify.train.live import LiveModule
from curvverify.train.pairs import PairCurvature


class CrossEntropy:
    """The plain loss."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y)


class CurvatureAttackLoss:
    """CRT: cross-entropy at the curvature attack's point, plus gamma times the curvature K of label against rival.

    The point nearly minimises the margin over the ball of radius eps by majorisation with the bounds of the Hessian.
    Source: Singla and Feizi, ICML 2020.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], eps: float, gamma: float = 0.01, steps: int = 3):
        self.model, self.live, self.pairs = model, LiveModule(model, shape), PairCurvature()
        self.eps, self.gamma, self.steps = eps, gamma, steps

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        found = self.pairs(self.live.graph())
        bend = found.bend_estimate
        t = _rivals(self.model, x, y)
        d = towards_boundary(self.model, x, y, t, self.eps, bend[y, t], bend[t, y], self.steps)
        return F.cross_entropy(self.model(x + d), y) + self.gamma * found.curvature_estimate[y, t].mean()

    def state_dict(self) -> dict[str, Any]:
        return {"pairs": self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pairs.load_state_dict(state["pairs"])


class LipschitzMarginLoss:
    """CRM: cross-entropy after every other class has been given the head start eps L_yt.

    L_yt is the Lipschitz value of z_y - z_t, by LipLT's recursion; the loss is low only where margins exceed eps L.
    Source: Entesari, Sharifi, Fazlyab, NeurIPS 2023 (after Tsuzuku, Sato, Sugiyama, NeurIPS 2018).
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], eps: float):
        self.model, self.live, self.pairs = model, LiveModule(model, shape), PairCurvature()
        self.eps = eps

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        found = self.pairs(self.live.graph()).lipschitz_estimate
        return F.cross_entropy(self.model(x) + self.eps * found[y], y)

    def state_dict(self) -> dict[str, Any]:
        return {"pairs": self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pairs.load_state_dict(state["pairs"])


@dataclass(eq=False)
class PrimalDual:
    """A weight that is raised while a measured value exceeds its target and lowered while it does not.

    With the curvature as the value, the curvature is held at the target; with the accuracy, regularisation grows as
    long as the accuracy stays above the target.
    """

    target: float
    step: float
    weight: float = 0.0
    least: float = 0.0

    def towards(self, value: float) -> None:
        """weight <- max(weight + step (value - target), least)."""
        self.weight = max(self.weight + self.step * (value - self.target), self.least)

    def state_dict(self) -> dict[str, float]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.weight = state["weight"]


class CompositionalPenalty:
    """weight * C, C the compositional curvature value of the whole output (any graph, residual joins included).

    `weight` is a number or a `PrimalDual`; with `held="curvature"` that one follows C at every call, with
    `held="accuracy"` the running mean of the accuracy that `watch` is told.
    Source: Entesari, Sharifi, Fazlyab, ICML 2024.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], weight: float | PrimalDual, held: str = "curvature"):
        if held not in ("curvature", "accuracy"):
            raise UsageError(f"held={held!r}: choose 'curvature' or 'accuracy'")
        self.live, self.compositional = LiveModule(model, shape), Compositional()
        self.weight, self.held = weight, held
        self.accuracy: float | None = None

    def __call__(self) -> Tensor:
        value = self.compositional(self.live.graph()).curvature_estimate[-1]
        if isinstance(self.weight, PrimalDual):
            if self.held == "curvature":
                self.weight.towards(float(value.detach()))
            elif self.accuracy is not None:
                self.weight.towards(self.accuracy)
            return self.weight.weight * value
        return self.weight * value

    def watch(self, accuracy: float, memory: float = 0.98) -> None:
        """Tell the accuracy of a batch."""
        self.accuracy = accuracy if self.accuracy is None else memory * self.accuracy + (1.0 - memory) * accuracy

    def state_dict(self) -> dict[str, Any]:
        weight = self.weight.state_dict() if isinstance(self.weight, PrimalDual) else None
        return {"warm": self.compositional.warm.state_dict(), "weight": weight, "accuracy": self.accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.compositional.warm.load_state_dict(state["warm"])
        if isinstance(self.weight, PrimalDual):
            self.weight.load_state_dict(state["weight"])
        self.accuracy = state["accuracy"]


class RadiusPenalty:
    """-mean min(r, most) over the samples classified correctly: the certified radius as a reward.

    r = (-g + sqrt(g^2 + 2 K m)) / K with margin m, gradient norm g and curvature K of label against closest rival.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], most: float):
        self.model, self.live, self.pairs = model, LiveModule(model, shape), PairCurvature()
        self.most = most

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        bend = self.pairs(self.live.graph()).bend_estimate
        t = _rivals(self.model, x, y)
        at = x.detach().requires_grad_(True)
        m = margins(self.model(at), y, t)
        (g,) = torch.autograd.grad(m.sum(), at, create_graph=True)
        right = m > 0.0
        if not bool(right.any()):
            return 0.0 * m.sum()
        K, square, m = bend[y, t][right], g.flatten(1)[right].square().sum(1) + 1e-12, m[right]
        r = 2.0 * m / (square.sqrt() + (square + 2.0 * K * m).sqrt())  # the same root, without cancellation
        return -r.clamp(max=self.most).sum() / len(x)

    def state_dict(self) -> dict[str, Any]:
        return {"pairs": self.pairs.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pairs.load_state_dict(state["pairs"])


class GradientPenalty:
    """weight * mean ||grad_x cross-entropy||^2."""

    def __init__(self, model: nn.Module, weight: float):
        self.model, self.weight = model, weight

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.weight * _loss_gradient(self.model, x, y, create_graph=True).flatten(1).square().sum(1).mean()


class CurePenalty:
    """CURE: weight * mean ||grad l(x + h z) - grad l(x)||^2, z the unit vector along the sign of the gradient.

    Source: Moosavi-Dezfooli, Fawzi, Uesato, Frossard, CVPR 2019.
    """

    def __init__(self, model: nn.Module, weight: float, h: float = 0.5):
        self.model, self.weight, self.h = model, weight, h

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        here = _loss_gradient(self.model, x, y, create_graph=True)
        z = F.normalize(here.detach().sign().flatten(1), dim=1).reshape(x.shape)
        there = _loss_gradient(self.model, x + self.h * z, y, create_graph=True)
        return self.weight * (there - here).flatten(1).square().sum(1).mean()


class LowCurvaturePenalty:
    """LCNN: beta_weight * sum of the activations' beta, plus slope_weight * sum of the log slopes of batch norm.

    Both act on the layers of this package (`convert_to_low_curvature` puts them in).
    Source: Srinivas, Matoba, Lakkaraju, Fleuret, NeurIPS 2022.
    """

    def __init__(self, model: nn.Module, beta_weight: float = 1e-2, slope_weight: float = 1e-2):
        self.activations = [m for m in model.modules() if isinstance(m, CentredSoftplus)]
        self.norms = [m for m in model.modules() if isinstance(m, LipschitzBatchNorm)]
        if not self.activations:
            raise UsageError("the model has no CentredSoftplus: convert_to_low_curvature(model) puts them in")
        self.beta_weight, self.slope_weight = beta_weight, slope_weight

    def __call__(self) -> Tensor:
        amount = self.beta_weight * torch.stack([a.beta for a in self.activations]).sum()
        if self.norms:
            amount = amount + self.slope_weight * torch.stack([n.log_gain for n in self.norms]).sum()
        return amount


def _loss_gradient(model: nn.Module, x: Tensor, y: Tensor, create_graph: bool) -> Tensor:
    """The gradient of each sample's cross-entropy by its input."""
    at = x.detach().requires_grad_(True)
    with torch.enable_grad():
        loss = F.cross_entropy(model(at), y, reduction="sum")
        (g,) = torch.autograd.grad(loss, at, create_graph=create_graph)
    return g


@torch.no_grad()
def _rivals(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The class with the largest score but the label (B)."""
    return model(x).scatter(1, y.unsqueeze(1), -torch.inf).argmax(1)
