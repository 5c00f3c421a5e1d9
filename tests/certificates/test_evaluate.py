"""Enclosures of margins and gradients against exact arithmetic, and the fast pass against autograd."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import nn

from curvverify.bounding.constants.rows import difference_rows
from tests.certificates.networks import evaluator_of, network


class Residual(nn.Module):
    """x + tanh(A x), times a gate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = nn.Linear(4, 4).double(), nn.Linear(4, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = x + torch.tanh(self.a(x))
        return self.c(u * torch.sigmoid(self.b(u)))


@pytest.mark.parametrize("module", [network([4, 7, 6, 3]), network([4, 9, 3], nn.Softplus), Residual()])
def test_fast_and_enclosed_agree_with_autograd(module: nn.Module) -> None:
    E = evaluator_of(module, 4)
    x = torch.randn(6, 4, dtype=torch.float64)
    y, t = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 2, 0, 2, 0, 1])
    rows = difference_rows(3, y, t)
    z = x.clone().requires_grad_(True)
    h = (module(z) * rows).sum(1)
    (g,) = torch.autograd.grad(h.sum(), z)
    value, gradient = E.search(x, rows)
    torch.testing.assert_close(value, h.detach())
    torch.testing.assert_close(gradient, g)
    found = E.enclose(x, rows)
    assert bool(((found.lower < h) & (h < found.upper)).all())
    assert bool(((found.gradient - g).norm(dim=1) <= found.error + 1e-12).all())
    assert float((found.upper - found.lower).max()) < 1e-11
    assert float(found.error.max()) < 1e-10


def test_enclosure_holds_in_exact_arithmetic() -> None:
    mpmath.mp.dps = 40
    module = network([3, 5, 3], nn.Tanh, seed=4)
    E = evaluator_of(module, 3)
    x = torch.randn(4, 3, dtype=torch.float64) * 3
    rows = difference_rows(3, torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long))
    found = E.enclose(x, rows)
    W, b, V, c = (p.detach() for p in module.parameters())
    for k in range(4):
        z = [sum(mpmath.mpf(float(W[i, j])) * float(x[k, j]) for j in range(3)) + float(b[i]) for i in range(5)]
        h = sum((mpmath.mpf(float(V[0, i])) - float(V[1, i])) * mpmath.tanh(z[i]) for i in range(5))
        h += mpmath.mpf(float(c[0])) - float(c[1])
        assert float(found.lower[k]) <= h <= float(found.upper[k])
        for j in range(3):
            weights = [mpmath.mpf(float(V[0, i])) - float(V[1, i]) for i in range(5)]
            g = sum(weights[i] * mpmath.sech(z[i]) ** 2 * float(W[i, j]) for i in range(5))
            assert abs(g - float(found.gradient[k, j])) <= float(found.error[k])


def test_not_a_number_is_enclosed_by_nothing() -> None:
    E = evaluator_of(network([2, 4, 3]), 2)
    rows = difference_rows(3, torch.tensor([0]), torch.tensor([1]))
    found = E.enclose(torch.tensor([[float("nan"), 0.0]], dtype=torch.float64), rows)
    assert float(found.lower) == -torch.inf
    assert float(found.error) == torch.inf
