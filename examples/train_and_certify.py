"""A training loop with a regulariser, and what it buys: `python examples/train_and_certify.py`.

The same small network is trained twice on the two half circles: by cross-entropy alone, and with a penalty on the
gradient of the margin at the samples.  After training curvverify says, with proof, how robust each of them is.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import curvverify
from curvverify.demo.moons import moons

EPS = 0.2
STEPS = 400


def network() -> nn.Module:
    """Smooth, so that it has curvature to bound."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 24), nn.Softplus(beta=5), nn.Linear(24, 2))


def margin_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared length of the gradient of the margin, differentiable by the weights."""
    x = x.clone().requires_grad_(True)
    scores = model(x)
    margin = scores.gather(1, y[:, None]).squeeze(1) - scores.gather(1, 1 - y[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(margin.sum(), x, create_graph=True)
    return gradient.square().sum(1).mean()


def train(weight: float) -> nn.Module:
    """The network after training with `weight` times the penalty."""
    points, labels = moons(400, seed=1)
    x, y = torch.from_numpy(points).float(), torch.from_numpy(labels)
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if weight:
            loss = loss + weight * margin_gradient(model, x, y)
        loss.backward()
        optimiser.step()
    return model.eval()


def report(name: str, model: nn.Module) -> tuple[float, float]:
    """(certified accuracy at EPS, curvature) on fresh points, printed."""
    points, labels = moons(60, seed=2)
    radii = curvverify.certified_radius(model, points, labels, eps=(EPS,), attack=True)
    constants = curvverify.curvature(model, pair=(0, 1), shapes=(1, 2)).output
    certified, attacked = radii.certified_accuracy(EPS), radii.attacked_accuracy(EPS)
    sys.stdout.write(
        f"{name:12} clean {100 * radii.clean_accuracy:5.1f} %   robust at {EPS}: {100 * certified:5.1f} % proved, "
        f"{100 * attacked:5.1f} % not refuted   curvature <= {constants.curvature_upper:.1f}\n"
    )
    return certified, constants.curvature_upper


def main() -> None:
    report("plain", train(0.0))
    report("regularised", train(0.005))


if __name__ == "__main__":
    main()
