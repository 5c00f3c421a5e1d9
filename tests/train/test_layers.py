"""The layers' constants: what each promises, in training mode too, and after a round trip through ONNX."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import curvverify
from curvverify.errors import UnsupportedModelError, UsageError
from curvverify.train.convert import convert_to_low_curvature
from curvverify.train.export import save_onnx
from curvverify.train.layers import (
    CentredSoftplus,
    LipschitzBatchNorm,
    LowCurvatureBlock,
    SpectralConv2d,
    SpectralLinear,
    settle,
)
from curvverify.train.sll import SLLConv2d, SLLLinear
from tests.train.networks import low_curvature, mlp, residual


def jacobian_norm(run: nn.Module, x: Tensor) -> float:
    matrix = torch.autograd.functional.jacobian(run, x)
    assert isinstance(matrix, Tensor)
    return float(torch.linalg.matrix_norm(matrix.reshape(-1, x.numel()), 2))


def test_centred_softplus() -> None:
    act = CentredSoftplus(4.0).double()
    z = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(act(z).sum(), z, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), z)
    assert float(act(torch.zeros(1, dtype=torch.float64)).detach()) == 0.0
    assert float(slope.detach().min()) > 0.0
    assert float(slope.detach().max()) < 1.0
    assert float(bend.max()) == pytest.approx(1.0, rel=1e-6)  # beta / 4 at 0


@pytest.mark.parametrize("gain", [0.3, 50.0])
def test_batch_norm_is_lipschitz_with_the_statistics_it_uses(gain: float) -> None:
    torch.manual_seed(1)
    norm = LipschitzBatchNorm(3, gain).double()
    x = torch.randn(64, 3, dtype=torch.float64) * torch.tensor([0.05, 1.0, 4.0])
    norm(10.0 * x)  # running statistics that have nothing to do with the next batch
    spread = (x.var(0, correction=0) + norm.eps).sqrt()
    y = norm.train()(x).detach()
    slopes = (y[1] - y[0]) / (x[1] - x[0])
    assert float(slopes.max()) == pytest.approx(min(gain, float((1.0 / spread).max())), rel=1e-6)
    y, running = norm.eval()(x).detach(), (norm.variance + norm.eps).sqrt()
    slopes = (y[1] - y[0]) / (x[1] - x[0])
    assert float(slopes.max()) == pytest.approx(min(gain, float((1.0 / running).max())), rel=1e-6)
    assert float(norm.log_slope().exp().detach()) == pytest.approx(float(slopes.max()), rel=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_spectral_convolution_is_normalised_at_its_size(stride: int) -> None:
    torch.manual_seed(2)
    layer = SpectralConv2d(2, 3, 3, stride, 1, bound=0.7).double().train()
    x = torch.rand(1, 2, 7, 7, dtype=torch.float64)
    for _ in range(60):
        layer(x)
    assert jacobian_norm(layer, x) == pytest.approx(0.7, rel=1e-4)
    settle(layer.eval())
    exact = jacobian_norm(layer, x)
    assert 0.7 * (1 - 1e-4) <= exact <= 0.7
    with pytest.raises(RuntimeError, match="images of size"):
        layer(torch.rand(1, 2, 8, 8, dtype=torch.float64))


def test_spectral_linear_settles() -> None:
    torch.manual_seed(3)
    layer = SpectralLinear(5, 4).double().train()
    layer(torch.rand(2, 5, dtype=torch.float64))
    settle(layer.eval())
    assert 1.0 - 1e-4 <= float(torch.linalg.matrix_norm(layer.effective().detach(), 2)) <= 1.0


@pytest.mark.parametrize(("layer", "shape"), [(SLLLinear(5, 7), (5,)), (SLLConv2d(2, 3), (2, 5, 5))])
def test_sll_is_one_lipschitz(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = layer.double()
    torch.manual_seed(4)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p))
    for _ in range(5):
        assert jacobian_norm(layer, 3.0 * torch.randn(1, *shape, dtype=torch.float64)) <= 1.0 + 1e-9
    if len(shape) == 1:
        report = curvverify.curvature(layer, shapes=(1, *shape))
        assert report.output.lipschitz_upper <= 1.0 + 1e-6


def test_block_is_the_larger_of_its_halves() -> None:
    torch.manual_seed(5)
    block = LowCurvatureBlock(2, 2, 1, 2.0).double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    block(x)
    settle(block.eval())
    branch = float((block.norm1.log_slope() + block.norm2.log_slope()).exp().detach())  # convolutions: at most 1
    assert jacobian_norm(block, x[:1]) <= 0.5 * (1.0 + branch) * (1 + 1e-6)


@pytest.mark.parametrize(("model", "shape"), [(mlp(3), (5,)), (residual(), (1, 4, 4)), (low_curvature(), (1, 4, 4))])
def test_round_trip_keeps_values_and_constants(model: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    model = model.float().double()  # the weights that the file will hold, before normalisation
    settle(model)
    path = tmp_path / "model.onnx"
    save_onnx(model.float(), shape, path)
    x = torch.rand(1, *shape)
    (y,) = onnxruntime.InferenceSession(str(path)).run(None, {"X": x.numpy()})
    assert torch.allclose(torch.from_numpy(y), model(x), atol=1e-5)
    before = curvverify.curvature(model, shapes=(1, *shape)).output
    after = curvverify.curvature(path).output
    assert after.lipschitz_upper == pytest.approx(before.lipschitz_upper, rel=1e-5)
    assert after.curvature_upper == pytest.approx(before.curvature_upper, rel=1e-5)


def test_conversion() -> None:
    torch.manual_seed(6)
    plain = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)
    )
    model = convert_to_low_curvature(plain, beta=8.0)
    kinds = [type(m).__name__ for m in model]
    assert kinds == ["SpectralConv2d", "LipschitzBatchNorm", "CentredSoftplus", "AvgPool2d", "Flatten", "Linear"]
    assert isinstance(plain[2], nn.ReLU)  # the original is left alone
    model(torch.rand(4, 1, 6, 6))
    settle(model.eval())
    assert curvverify.curvature(model, shapes=(1, 1, 6, 6)).output.curvature_upper < float("inf")


def test_conversion_refuses_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'1\.0'.*groups"):
        convert_to_low_curvature(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))))
    with pytest.raises(UsageError, match="no activation modules"):
        convert_to_low_curvature(nn.Sequential(nn.Linear(2, 2)))
