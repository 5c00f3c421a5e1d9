"""Residual layers that are 1-Lipschitz by construction.

    h(x) = x - 2 W^T T^-1 sigma(W x + b),     sigma with slope in [0, 1],  T_ii = sum_j |W W^T|_ij q_j / q_i,  q > 0.

Sound because: with d = x - y and s = sigma(W x + b) - sigma(W y + b), 0 <= s (W d - s) entry by entry, and T >= W W^T
(diagonal dominance), so that

    ||h(x) - h(y)||^2 = ||d||^2 - 4 s^T T^-1 W d + 4 s^T T^-1 W W^T T^-1 s <= ||d||^2 - 4 s^T T^-1 (W d - s) <= ||d||^2.

Source: Araujo, Havens, Delattre, Allauzen, Hu, A Unified Algebraic Perspective on Lipschitz Networks, ICLR 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvverify.train.layers import CentredSoftplus


class SLLLinear(nn.Module):
    """The layer above with a matrix W (inner, features)."""

    def __init__(self, features: int, inner: int, beta: float = 5.0):
        super().__init__()
        like = nn.Linear(features, inner)
        self.weight, self.bias = like.weight, like.bias
        self.log_q = nn.Parameter(torch.zeros(inner))
        self.act = CentredSoftplus(beta)

    def back(self) -> Tensor:
        """-2 T^-1 W (inner, features): its transpose takes the inner values back."""
        gram = (self.weight @ self.weight.mT).abs()
        q = self.log_q.exp()
        return self.weight * (-2.0 / ((gram @ q) / q).clamp(min=1e-12)).unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.linear(self.act(F.linear(x, self.weight, self.bias)), self.back().mT)


class SLLConv2d(nn.Module):
    """The layer above with a convolution W, kernel of odd size k and padding k // 2.

    |W W^T| is bounded by the kernel's correlation with itself, over all offsets: zero padding only drops terms.
    """

    def __init__(self, channels: int, inner: int, kernel: int = 3, beta: float = 5.0):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"the kernel's size must be odd, not {kernel}")
        like = nn.Conv2d(channels, inner, kernel)
        assert like.bias is not None
        self.weight, self.bias = like.weight, like.bias
        self.padding = kernel // 2
        self.log_q = nn.Parameter(torch.zeros(inner))
        self.act = CentredSoftplus(beta)

    def back(self) -> Tensor:
        """-2 T^-1 W (inner, channels, k, k): its transposed convolution takes the inner values back."""
        gram = F.conv2d(self.weight, self.weight, padding=self.weight.shape[-1] - 1).abs().sum((2, 3))
        q = self.log_q.exp()
        return self.weight * (-2.0 / ((gram @ q) / q).clamp(min=1e-12)).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(F.conv2d(x, self.weight, self.bias, padding=self.padding))
        return x + F.conv_transpose2d(inner, self.back(), padding=self.padding)
