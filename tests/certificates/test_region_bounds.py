"""Radii by bounds on balls and cubes themselves: above Lipschitz radii, below attacked ones, sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import curvverify
from curvverify.bounding.constants.rows import difference_rows
from curvverify.certificates.region_bounds import LINEAR, Bracket, RegionBounds, coupled_stage
from curvverify.graph import load
from tests.certificates.networks import disc, network


class Residual(nn.Module):
    """Two joins around ReLUs, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.a, self.b, self.c = nn.Linear(3, 3).double(), nn.Linear(3, 3).double(), nn.Linear(3, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = x + 2.0 * torch.relu(self.a(x))
        return self.c(u + torch.relu(self.b(u)) * torch.sigmoid(u)) * 3.0


def moved(x: torch.Tensor, radius: float, norm: str, domain: tuple[float, float]) -> torch.Tensor:
    """Points within the radius and the domain, most of them on the border."""
    if norm == "l2":
        return (x + disc(8000, len(x), radius * (1 - 1e-9))).clamp(*domain)
    t = 2.0 * torch.rand(8000, len(x), dtype=torch.float64) - 1.0
    return (x + radius * (1 - 1e-9) * torch.where(torch.rand(8000, 1) < 0.7, t.sign(), t)).clamp(*domain)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("module", [network([3, 12, 12, 3], nn.ReLU), network([3, 8, 8, 8, 3]), Residual()])
def test_radii_survive_sampling(module: nn.Module, norm: str) -> None:
    torch.manual_seed(1)
    x = torch.rand(4, 3, dtype=torch.float64)
    with torch.no_grad():
        y = module(x).argmax(1)
    report = curvverify.certified_radius(module, x, y, norm=norm, domain=(0.0, 1.0), attack=True)
    for k, s in enumerate(report.samples):
        assert max(s.radius_lipschitz, s.radius_taylor) < s.radius_certified <= s.radius_attacked
        with torch.no_grad():
            assert bool((module(moved(x[k], min(s.radius_certified, 3.0), norm, (0.0, 1.0))).argmax(1) == y[k]).all())
    assert {s.method for s in report.samples} & {"linear", "coupled"}


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_margins_hold_and_coupling_adds(norm: str) -> None:
    """At every stage the proved margins are below the sampled ones; coupled ones are better on the whole."""
    module = network([3, 16, 16, 3], nn.ReLU, seed=2)
    graph = load(module, shapes=(1, 3)).graph.to(torch.float64)
    x = torch.rand(4, 3, dtype=torch.float64)
    y = module(x).argmax(1).repeat_interleave(2)
    t = torch.tensor([[j for j in range(3) if j != int(i)] for i in y[::2]]).flatten()
    rows = difference_rows(3, y, t).reshape(4, 2, 3)
    bounds = RegionBounds(graph, norm, torch.zeros(3).double(), torch.ones(3).double())
    r = torch.tensor([0.02, 0.1, 0.2, 0.4], dtype=torch.float64)
    found = [bounds.margins(x, rows, r, stage) for stage in (LINEAR, coupled_stage(1), coupled_stage(2))]
    for k in range(4):
        with torch.no_grad():
            sampled = (module(moved(x[k], float(r[k]), norm, (0.0, 1.0))) @ rows[k].T).amin(0)
        for margins in found:
            assert bool((margins[k] <= sampled + 1e-12).all())
    assert float(found[2].sum()) > float(found[0].sum())


def test_decisions_settle_what_holds() -> None:
    module = network([3, 12, 12, 3], nn.ReLU)
    x = torch.rand(8, 3, dtype=torch.float64)
    y = module(x).argmax(1)
    largest = curvverify.certified_radius(module, x, y, domain=(0.0, 1.0))
    eps = sorted(s.radius_certified for s in largest.samples)[3]
    for e, norm in ((eps, "l2"), (0.3 * eps, "linf")):
        decided = curvverify.certified_radius(module, x, y, domain=(0.0, 1.0), eps=(e,), norm=norm, attack=True)
        assert sum(s.radius_certified >= e for s in decided.samples) >= 3
        assert all(s.radius_certified <= s.radius_attacked for s in decided.samples)


def test_bracket_closes_in_on_a_known_root() -> None:
    """margin(r) = 1 - 2 r - r^2 vanishes at sqrt(2) - 1."""
    ones = torch.ones(1, dtype=torch.float64)
    bracket = Bracket.of(ones, 0 * ones, 3 * ones)
    for _ in range(8):
        r = bracket.guess()
        bracket.note(torch.tensor([0]), r, 1.0 - 2.0 * r - r**2)
    assert float(bracket.low) <= 2**0.5 - 1 < float(bracket.high)
    assert float(bracket.high - bracket.low) < 0.02
    again = bracket.reopened()
    assert (float(again.low), float(again.high)) == (float(bracket.low), 3.0)
