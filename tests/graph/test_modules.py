"""torch modules of every style become layer graphs that compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvverify.errors import UsageError
from curvverify.graph import LoadedModel, load
from curvverify.graph.lowering import normalisation


def operators(loaded: LoadedModel) -> list[str]:
    return [node.op.name for node in loaded.graph]


def loaded_module(module: nn.Module, shape: tuple[int, ...]) -> LoadedModel:
    """The module loaded, and compared on 50 inputs by `load` and on a float32 one here."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.normal_(part.running_mean)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    loaded = load(module, shapes=shape, samples=50)
    x = torch.randn(shape)
    with torch.no_grad():
        expected = module.eval()(x.clone())
    ours = loaded.graph.to(torch.float32)(x.unsqueeze(0))
    torch.testing.assert_close(ours.flatten(), expected.flatten(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    return loaded


ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.PReLU(), nn.ELU(0.7), nn.CELU(0.6), nn.SELU(), nn.GELU()),
    *(nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-0.5, 2.0), nn.Tanh()),
    *(nn.Softplus(beta=5), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Softshrink(0.3), nn.Softmax(-1)),
    *(nn.LogSoftmax(-1), nn.Softmin(-1), nn.GLU(), nn.LayerNorm(6), nn.Threshold(0.2, 0.2), nn.RMSNorm(6)),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: str(a).replace(" ", ""))
def test_activations(activation: nn.Module) -> None:
    loaded = loaded_module(nn.Sequential(nn.Linear(4, 6), activation), (1, 4))
    assert operators(loaded)[:2] == ["Input", "Dense"]
    assert loaded.graph.nodes[1].source == "0"
    assert not any("Opaque" in name for name in operators(loaded))


LAYERS = [
    (nn.Conv1d(3, 4, 3, padding="same"), (1, 3, 7)),
    (nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"), (1, 3, 7, 6)),
    (nn.Conv2d(3, 6, 3, groups=3, dilation=2, bias=False), (1, 3, 7, 6)),
    (nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (1, 3, 4, 5)),
    (nn.Conv2d(3, 4, 3), (3, 7, 6)),
    (nn.BatchNorm2d(3), (1, 3, 4, 5)),
    (nn.InstanceNorm2d(3, affine=True), (1, 3, 4, 5)),
    (nn.GroupNorm(2, 4), (1, 4, 3, 3)),
    (nn.LocalResponseNorm(3), (1, 4, 3, 3)),
    (nn.MaxPool1d(3, 2, padding=1), (1, 3, 8)),
    (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (1, 3, 8, 7)),
    (nn.MaxPool2d(2, dilation=2), (1, 3, 8, 7)),
    (nn.MaxPool3d(2), (1, 2, 4, 4, 4)),
    (nn.AvgPool1d(3, 2, padding=1), (1, 3, 8)),
    (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), (1, 3, 8, 7)),
    (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), (1, 3, 8, 7)),
    (nn.AvgPool3d(2), (1, 2, 4, 4, 4)),
    (nn.AdaptiveAvgPool1d(3), (1, 2, 7)),
    (nn.AdaptiveAvgPool2d((3, 2)), (1, 2, 7, 5)),
    (nn.AdaptiveAvgPool2d(1), (1, 2, 7, 5)),
    (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 3, 4)),
    (nn.Upsample(size=(5, 7), mode="bilinear", align_corners=True), (1, 2, 3, 4)),
    (nn.Upsample(scale_factor=3, mode="nearest"), (1, 2, 3, 4)),
    (nn.PixelShuffle(2), (1, 8, 3, 3)),
    (nn.ZeroPad2d((1, 0, 2, 1)), (1, 2, 3, 3)),
    (nn.ReplicationPad2d(2), (1, 2, 3, 3)),
    (nn.ConstantPad1d(2, 0.7), (1, 2, 3)),
    (nn.Unfold(2), (1, 2, 4, 3)),
    (nn.GRU(3, 4, batch_first=True), (1, 5, 3)),
    (nn.LSTM(3, 4, batch_first=True), (1, 5, 3)),
]


class First(nn.Module):
    """The first result of a layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: str(v).split("(")[0])
def test_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    loaded_module(First(layer), shape)


class Block(nn.Module):
    """A residual block in the usual style: batch normalisation, in-place additions and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.short = nn.Conv2d(3, 8, 1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(x)))
        y = self.norm2(self.second(y))
        y += self.short(x)
        return self.head(torch.flatten(self.pool(self.relu(y)), 1))


def test_residual_block() -> None:
    loaded = loaded_module(Block(), (1, 3, 6, 6))
    assert operators(loaded) == [
        *("Input", "Convolution", "Relu", "Convolution", "Convolution", "Sum", "Relu", "Reduce", "Reshape", "Dense"),
    ]
    assert [n.name for n in loaded.graph][1:4] == ["first", "relu", "second"]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_layer(norm_first: bool, activation: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, activation, batch_first=True, norm_first=norm_first)
    loaded = loaded_module(layer, (1, 4, 8))
    assert ("Gelu" if activation == "gelu" else "Relu") in operators(loaded)
    assert operators(loaded).count("Reciprocal") == 1


def attention(causal: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: F.scaled_dot_product_attention(x, x, x.tanh(), is_causal=causal)


MASK = torch.tensor([[0.0, 1.0, 0.0, 1.0]])

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "attention": (attention(False), (1, 2, 4, 3)),
    "causal attention": (attention(True), (1, 2, 4, 3)),
    "masked softmax": (lambda x: (x + MASK.log()).softmax(-1), (1, 3, 4)),
    "where": (lambda x: torch.where(MASK.bool(), x, 2.0 * x.flip(-1)), (1, 3, 4)),
    "masked fill": (lambda x: x.masked_fill(MASK.bool(), 3.0), (1, 3, 4)),
    "einsum": (lambda x: torch.einsum("bij,bkj->bik", x, x.relu()), (1, 3, 4)),
    "norms": (lambda x: x / x.norm(dim=-1, keepdim=True) + x.abs().sum() + x.norm(p=1), (1, 3, 4)),
    "moments": (lambda x: x.var(-1) + x.std(1).sum() + x.mean(), (1, 3, 4)),
    "population": (lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1).sqrt(), (1, 5)),
    "extremes": (lambda x: x.max(-1).values - x.amin(-1) + x.max() + x.min(1)[0].sum(), (1, 3, 4)),
    "two values": (lambda x: torch.maximum(x, x.flip(-1)).minimum(x.cos()), (1, 3, 4)),
    "clamps": (lambda x: x.clamp(min=-0.3) + x.clamp(-1, 1) + x.clamp(max=MASK[0]), (1, 3, 4)),
    "powers": (lambda x: x**3 - 2**x + x.square() + (x.abs() + 1) ** -0.5 + 1 / (x.exp() + 1), (1, 3)),
    "logs": (lambda x: (x.abs() + 1).log2() + x.abs().log1p() + x.expm1() + (x * x + 1).rsqrt(), (1, 3)),
    "pieces": (lambda x: torch.cat([*x.chunk(2, 1), x[:, ::2], x[:, None, 0]], 1), (1, 4, 3)),
    "stack": (lambda x: torch.stack([x, MASK[:, :3].expand(1, 3), x.roll(1, 1)], 1).repeat(1, 2, 1), (1, 3)),
    "indices": (lambda x: x[:, [2, 0, 1, 0]].index_select(1, torch.tensor([3, 3])) + x.narrow(1, 1, 2), (1, 3)),
    "products": (lambda x: x.prod(-1) + x.cumsum(1)[:, -1] + x.outer(x)[0, 0] if x.ndim == 1 else x.prod(-1), (1, 5)),
    "both sides": (lambda x: x @ x.transpose(-1, -2) @ torch.ones(2, 3, 3).double()[0].to(x.dtype), (1, 3, 4)),
    "constant batch": (lambda x: torch.arange(24.0).to(x.dtype).reshape(2, 4, 3) @ x, (2, 3, 4)),
    "division": (lambda x: (1.0 - x) / (x * x + 1.0) / torch.tensor([1.0, 2.0, 3.0]), (1, 3)),
    "triangle": (lambda x: x.tril() + x.triu(1).relu(), (1, 3, 3)),
    "lerp": (lambda x: torch.lerp(x, x.relu(), 0.3) + torch.addcmul(x, x, x, value=0.5), (1, 3)),
    "constants": (lambda x: x.new_zeros(1, 3) + torch.zeros_like(x).cos() + x * torch.linspace(0, 1, 3), (1, 3)),
    "scatter": (lambda x: x.scatter(1, torch.tensor([[2, 0]]), 2.0 * x[:, :2]), (1, 3)),
    "casts": (lambda x: x.float().half().to(x.dtype) + x.detach().contiguous().clone(), (1, 3)),
    "remainder": (lambda x: x % 0.7 + torch.remainder(x, torch.tensor([0.3, 0.4, 0.5])), (1, 3)),
    "log of a sum": (lambda x: torch.logaddexp(x, x.cos()) + x.logsumexp(1, keepdim=True) + x.erfc(), (1, 3)),
    "vector": (lambda x: torch.addmv(x[0], torch.eye(3).to(x.dtype), x[0], beta=0.5, alpha=2.0), (1, 3)),
    "pairs": (lambda x: sum(torch.std_mean(x, 1)) + sum(torch.var_mean(x, 1, correction=0)), (2, 3)),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic"), (1, 2, 3, 4)),
    "sums": (lambda x: x + x - 3 * x + 0 * x.relu() + (x + x.cos()), (1, 3)),
}


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, shape = FUNCTIONS[name]
    if name == "casts":  # half precision rounds when run, and not over the reals
        assert operators(load(Function(function), shapes=shape)) == ["Input", "Diagonal"]
        return
    loaded_module(Function(function), shape)


def test_nothing_happens() -> None:
    """The identity, and an output that does not depend on the input."""
    identity = loaded_module(nn.Identity(), (1, 3))
    assert operators(identity) == ["Input", "Reshape"]
    constant = loaded_module(Function(lambda x: torch.tensor([[1.0, 2.0]])), (1, 3))
    torch.testing.assert_close(constant.graph(torch.randn(4, 1, 3).double())[3], torch.tensor([[1.0, 2.0]]).double())


def test_input_changed_in_place() -> None:
    loaded = loaded_module(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), (1, 3))
    assert operators(loaded) == ["Input", "Relu", "Dense"]


def test_common_parts_are_shared() -> None:
    loaded = loaded_module(Function(lambda x: x[:, :2].relu() * 2.0 + x[:, :2].relu()[:, [1, 0]]), (1, 3))
    assert operators(loaded).count("Relu") == 1


def test_large_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a size, a softmax goes through the logarithm of the sum instead of all differences."""
    monkeypatch.setattr(normalisation, "MOST_PAIRS", 10)
    for function in (torch.softmax, torch.log_softmax):
        loaded = loaded_module(Function(lambda x, f=function: f(x, 1)), (2, 4, 3))
        assert max(node.size for node in loaded.graph) == 24


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"sum": a @ b, "first": a.relu()}


def test_several_inputs_and_outputs() -> None:
    loaded = load(Two(), shapes=[(1, 2, 3), (1, 3, 2)])
    assert [(p.name, p.shape) for p in loaded.inputs] == [("input", (1, 2, 3)), ("input_1", (1, 3, 2))]
    assert [p.shape for p in loaded.outputs] == [(1, 2, 2), (1, 2, 3)]
    assert (loaded.graph.input_shape, loaded.graph.output_shape) == ((12,), (10,))


def test_shape_is_needed() -> None:
    with pytest.raises(UsageError, match="shape of its input"):
        load(nn.Linear(3, 2))
