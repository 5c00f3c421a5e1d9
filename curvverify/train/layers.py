"""Layers of small curvature and known Lipschitz constant, for anybody's torch model.

All of them export to ONNX and come back through the front end as a dense or convolutional layer, a per-channel scaling
or a softplus, so that nothing is lost on the way.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvverify.numerics.norms import spectral_norms_upper
from curvverify.numerics.norms.estimates import spectral_norm_differentiable
from curvverify.ops.linear import Convolution, Dense

LEAST_BETA = 1e-3
"""Keeps a learned beta positive."""

START_ITERATIONS = 15
"""Power iterations when a layer meets its input size; one per training step follows."""


class CentredSoftplus(nn.Module):
    """sigma(z) = log((1 + exp(beta z)) / 2) / beta: slope in (0, 1), second derivative at most beta / 4, sigma(0) = 0.

    beta -> infinity is ReLU, beta -> 0 is z / 2.  Learnable as beta = exp(log_beta) + 1e-3.
    Source: Srinivas, Matoba, Lakkaraju, Fleuret, NeurIPS 2022.
    """

    def __init__(self, beta: float = 5.0, learnable: bool = True):
        super().__init__()
        if not LEAST_BETA < beta < math.inf:
            raise ValueError(f"beta must lie above {LEAST_BETA}, not be {beta}")
        start = torch.tensor(math.log(beta - LEAST_BETA))
        self.log_beta = nn.Parameter(start, requires_grad=learnable)

    @property
    def beta(self) -> Tensor:
        return self.log_beta.exp() + LEAST_BETA

    def forward(self, x: Tensor) -> Tensor:
        beta = self.beta
        return (F.softplus(beta * x) - math.log(2.0)) / beta


class _Spectral(nn.Module):
    """A linear layer divided by its spectral norm and multiplied by `bound`.

    In training the norm comes from one power iteration per step on the operator at its true size, started where the
    last step ended: an estimate, at or below the norm.  `settle` puts a rigorous upper bound in its place, which
    evaluation and export then use: the layer is `bound`-Lipschitz from there on, until it is trained again.
    """

    weight: Tensor
    norm: Tensor
    vector: Tensor
    settled: Tensor

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.register_buffer("norm", torch.ones(()))
        self.register_buffer("vector", torch.zeros(0))
        self.register_buffer("settled", torch.tensor(False))

    def operator(self, weight: Tensor) -> Dense | Convolution:
        """The linear map that `weight` stands for, without bias."""
        raise NotImplementedError

    @property
    def shape_in(self) -> tuple[int, ...]:
        """The input's shape without the batch, once it is known."""
        raise NotImplementedError

    def effective(self) -> Tensor:
        """The weight that the layer applies: differentiable through the norm in training mode."""
        if not self.training:
            return self.weight * (self.bound / self.norm)
        fresh = self.vector.numel() != math.prod(self.shape_in)
        state = None if fresh else self.vector
        found = spectral_norm_differentiable(
            self.operator(self.weight), self.shape_in, state, START_ITERATIONS if fresh else 1
        )
        with torch.no_grad():
            self.vector, self.norm = found.state.detach().clone(), found.value.detach().clone()
            self.settled.fill_(False)
        return self.weight * (self.bound / found.value.clamp(min=1e-12))

    @torch.no_grad()
    def settle(self) -> None:
        """From now on, in evaluation mode, ||effective weight|| <= bound, up to its rounding to the weight's dtype."""
        (upper,) = spectral_norms_upper(self.operator(self.weight.double()), self.shape_in)
        self.norm.fill_(upper * (1.0 + 1e-6))
        self.settled.fill_(True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if (key := prefix + "vector") in state_dict:  # its size is that of the input it has met
            self.vector = torch.zeros_like(state_dict[key])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class SpectralLinear(_Spectral):
    """y = bound W x / ||W|| + c."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, bound: float = 1.0):
        super().__init__(bound)
        like = nn.Linear(inputs, outputs, bias)
        self.weight, self.bias = like.weight, like.bias
        self.inputs = inputs

    def operator(self, weight: Tensor) -> Dense:
        return Dense(weight)

    @property
    def shape_in(self) -> tuple[int, ...]:
        return (self.inputs,)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective(), self.bias)


class SpectralConv2d(_Spectral):
    """A convolution divided by its spectral norm as an operator on images of the size it meets, zero padding included.

    The size is taken from the first input; another size later is an error, for the norm would be another.
    """

    size: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        bound: float = 1.0,
    ):
        super().__init__(bound)
        like = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
        self.weight, self.bias = like.weight, like.bias
        self.stride, self.padding = (stride, stride), (padding, padding)
        self.register_buffer("size", torch.zeros(2, dtype=torch.int64))

    @property
    def shape_in(self) -> tuple[int, ...]:
        height, width = self.size.tolist()
        if not height:
            raise RuntimeError("a spectral convolution learns the size of its images from its first input: run it once")
        return self.weight.shape[1], height, width

    def operator(self, weight: Tensor) -> Convolution:
        spatial = self.shape_in[1:]
        out = [
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(spatial, self.padding, weight.shape[2:], self.stride, strict=True)
        ]
        return Convolution(weight, None, self.stride, self.padding, (1, 1), 1, spatial, tuple(out))

    def forward(self, x: Tensor) -> Tensor:
        if not bool(self.size.any()):
            self.size.copy_(torch.tensor(x.shape[-2:]))
            if not self.training:
                self.settle()
        elif tuple(x.shape[-2:]) != self.shape_in[1:]:
            raise RuntimeError(f"images of size {tuple(x.shape[-2:])}, but the norm is that of {self.shape_in[1:]}")
        return F.conv2d(x, self.effective(), self.bias, self.stride, self.padding)


class LipschitzBatchNorm(nn.Module):
    """Batch normalisation with Lipschitz constant at most gain: y = min(1, gain s) (x - mean) / sqrt(var + eps) + c.

    s = min over channels of sqrt(var + eps), so that the largest factor is min(1 / s, gain).  Mean and variance are the
    batch's in training and the running ones in evaluation, in both places where they occur: the constant holds for the
    map with the statistics it normalises with, in either mode.  (Clipping by the running variance while normalising by
    the batch's, as published, bounds nothing.)  gain = exp(log_gain) is learned; there is no other scale.

    x (N, C) or (N, C, *spatial).  Source: Srinivas et al., NeurIPS 2022, with that repair.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, gain: float = 10.0, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.log_gain = nn.Parameter(torch.tensor(math.log(gain)))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def factor(self, variance: Tensor) -> Tensor:
        """The factors (C) at a variance."""
        spread = (variance + self.eps).sqrt()
        return (self.log_gain.exp() * spread.min()).clamp(max=1.0) / spread

    def log_slope(self) -> Tensor:
        """log of the largest factor at the running variance: the logarithm of the layer's Lipschitz constant."""
        return self.factor(self.variance).max().log()

    def forward(self, x: Tensor) -> Tensor:
        wide = (1, -1, *(1 for _ in x.shape[2:]))
        mean, variance = self.mean, self.variance
        if self.training:
            axes = [0, *range(2, x.dim())]
            variance, mean = torch.var_mean(x, axes, correction=0)
            count = x.numel() // x.shape[1]
            with torch.no_grad():
                self.mean.lerp_(mean, self.momentum)
                self.variance.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
        factor = self.factor(variance)
        return x * factor.reshape(wide) + (self.bias - mean * factor).reshape(wide)


class LowCurvatureBlock(nn.Module):
    """A residual block as a map on two halves: activation((shortcut(x) + norm(conv(activation(norm(conv(x)))))) / 2).

    Sound because: x -> (x, x) / sqrt 2 and (a, b) -> (a + b) / sqrt 2 are 1-Lipschitz, so the block has the larger of
    the two halves' constants times the activation's, where the plain sum has their sum.
    """

    def __init__(self, inputs: int, channels: int, stride: int = 1, beta: float = 5.0):
        super().__init__()
        self.conv1 = SpectralConv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm1 = LipschitzBatchNorm(channels)
        self.act1 = CentredSoftplus(beta)
        self.conv2 = SpectralConv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = LipschitzBatchNorm(channels)
        plain = stride == 1 and inputs == channels
        self.shortcut = nn.Identity() if plain else SpectralConv2d(inputs, channels, 1, stride, 0, bias=False)
        self.act2 = CentredSoftplus(beta)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(0.5 * (self.shortcut(x) + y))


def settle(model: nn.Module) -> None:
    """Put rigorous norms into every spectrally normalised layer of the model; call it after training, before export."""
    for module in model.modules():
        if isinstance(module, _Spectral):
            module.settle()
