"""Softmax and normalisation found in graphs, and attacks on their constants by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import jvp

from curvverify.bounding.constants.block_constants import cumulant_bounds, entry_bounds
from curvverify.bounding.constants.blocks import Block, find_blocks
from curvverify.graph import load
from curvverify.graph.layers import Graph
from curvverify.graph.lowering import normalisation
from curvverify.ops.linear import Diagonal, Gather, Reduce, Sum

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # inside torch.func

SQRT2 = math.sqrt(2.0)
SOFTMAX = (0.5, SQRT2 / (3 * math.sqrt(3)), 0.5, SQRT2 / 4, 1 / (3 * math.sqrt(3)), SQRT2 / 4)
LOGSUMEXP = (1.0, 0.5, SQRT2 / (3 * math.sqrt(3)), 1.0, 0.5, SQRT2 / (3 * math.sqrt(3)))
CAUSAL = torch.full((4, 4), -math.inf).triu(1)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def graph_of(function: Callable[[Tensor], Tensor] | nn.Module, *shape: int) -> Graph:
    module = function if isinstance(function, nn.Module) else Function(function)
    return load(module, shapes=shape, check=False).graph


def last_block(graph: Graph) -> Block | None:
    """The block from the input to the output."""
    return next((b for b in find_blocks(graph) if (b.input, b.output) == (0, graph.output)), None)


def constants(block: Block) -> tuple[float, ...]:
    whole = (block.lipschitz, block.curvature, block.third_order)
    return (*whole, block.row_lipschitz, block.row_curvature, block.row_third_order)


def log_softmax_expected(n: int, shown: int | None = None) -> tuple[float, ...]:
    root = math.sqrt(shown or n)
    return (min(math.sqrt(n), SQRT2 * root), root * 0.5, root * LOGSUMEXP[2], SQRT2, 0.5, LOGSUMEXP[2])


def normalised_expected(n: int, eps: float, scale: float | None = None, centred: bool = True) -> tuple[float, ...]:
    s = 1 / n if scale is None else scale
    whole = (eps**-0.5, 1.5 * 0.8**2.5 * s**0.5 / eps, 3 * s * eps**-1.5)
    return (*whole, *((math.sqrt(1 - 1 / n) if centred else 1.0) * c for c in whole))


def scaled(expected: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(c * factor ** (k % 3 + 1) for k, c in enumerate(expected))


FOUND: list[tuple[str, Callable[[Tensor], Tensor] | nn.Module, tuple[int, ...], tuple[float, ...]]] = [
    ("softmax", nn.Softmax(-1), (1, 5), SOFTMAX),
    ("softmax", nn.Softmax(-1), (1, 2), SOFTMAX),
    ("softmax", nn.Softmax(1), (1, 4, 3), SOFTMAX),
    ("softmax", lambda x: F.softmax(x.permute(0, 2, 1), -1), (1, 4, 3), SOFTMAX),
    ("softmax", lambda x: F.softmax(x / 2, -1), (1, 4), scaled(SOFTMAX, 0.5)),
    ("softmax", nn.Softmin(-1), (1, 4), SOFTMAX),
    ("softmax", lambda x: x.exp() / x.exp().sum(-1, keepdim=True), (1, 4), SOFTMAX),
    ("softmax", lambda x: (x - x.amax(-1, True)).exp() / (x - x.amax(-1, True)).exp().sum(-1, True), (1, 4), SOFTMAX),
    ("softmax", lambda x: F.softmax(x + CAUSAL, -1), (1, 4, 4), SOFTMAX),
    ("softmax", lambda x: F.softmax(x[:, [0, 1, 2, 0]], -1), (1, 3), ()),
    ("log_softmax", nn.LogSoftmax(-1), (1, 5), log_softmax_expected(5)),
    ("log_softmax", nn.LogSoftmax(1), (1, 4, 3), log_softmax_expected(4)),
    ("log_softmax", lambda x: F.softmax(x, -1).log(), (1, 3), log_softmax_expected(3)),
    ("log_softmax", lambda x: x - x.logsumexp(-1, keepdim=True), (1, 3), log_softmax_expected(3)),
    ("log_softmax", lambda x: F.log_softmax(x + CAUSAL, -1), (1, 4, 4), log_softmax_expected(4)),
    ("logsumexp", lambda x: x.logsumexp(-1), (1, 4), LOGSUMEXP),
    ("logsumexp", lambda x: x.logsumexp((1, 2)), (1, 4, 2), LOGSUMEXP),
    ("normalisation", nn.LayerNorm(6, elementwise_affine=False), (1, 3, 6), normalised_expected(6, 1e-5)),
    ("normalisation", nn.InstanceNorm2d(2, eps=0.1), (1, 2, 3, 2), normalised_expected(6, 0.1)),
    (
        "normalisation",
        lambda x: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + 0.5).sqrt(),
        (1, 4),
        normalised_expected(4, 0.5, 1 / 3),
    ),
    ("rms_normalisation", nn.RMSNorm(4, 0.1, False), (1, 3, 4), normalised_expected(4, 0.1, centred=False)),
]


@pytest.mark.parametrize(("kind", "function", "shape", "expected"), FOUND)
def test_block_is_found(
    kind: str, function: Callable[[Tensor], Tensor] | nn.Module, shape: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    graph = graph_of(function, *shape)
    block = last_block(graph)
    assert block is not None
    assert block.kind == kind
    if expected:
        assert constants(block) == pytest.approx(expected, rel=1e-12, abs=1e-300)
        assert all(a >= b for a, b in zip(constants(block), expected, strict=True))
    x = torch.randn(200, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for size in (1e-3, 1.0, 30.0):
        value = graph(size * x)
        if block.range is not None:
            assert block.range.shape == graph.output_shape
            assert ((value >= block.range.lower) & (value <= block.range.upper)).all()


def test_where_all_pairs_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "MOST_PAIRS", 1)
    for function, expected in (
        (nn.Softmax(1), SOFTMAX),
        (nn.LogSoftmax(1), log_softmax_expected(4)),
        (lambda x: F.softmax(-2 * x, 1), scaled(SOFTMAX, 2.0)),
    ):
        block = last_block(graph_of(function, 1, 4, 3))
        assert block is not None
        assert constants(block) == pytest.approx(expected, rel=1e-12)


def test_attention() -> None:
    """The masked softmax inside, over the scores; what is added to them stays outside."""
    torch.manual_seed(0)

    def attention(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    graph = graph_of(attention, 1, 2, 4, 3)
    block = find_blocks(graph)[-1]
    assert block.kind == "softmax"
    assert constants(block) == pytest.approx(SOFTMAX, rel=1e-12)
    assert graph.nodes[block.input].size == 2 * 4 * 4
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=F.gelu, batch_first=True)
    kinds = [b.kind for b in find_blocks(graph_of(layer, 1, 3, 4))]
    assert kinds == ["softmax", "normalisation", "normalisation"]


def test_group_norm_with_its_weights() -> None:
    graph = graph_of(nn.GroupNorm(2, 4, eps=0.01), 1, 4, 2, 3)
    (block,) = find_blocks(graph)
    assert constants(block) == pytest.approx(normalised_expected(12, 0.01), rel=1e-12)
    assert [n.op.name for n in graph.nodes[block.output + 1 :]] == ["Reshape"]


def test_after_differences_and_other_blocks() -> None:
    """A normalisation of a difference, a softmax of a normalised value."""
    kinds = [b.kind for b in find_blocks(graph_of(lambda x: F.layer_norm(x - x.flip(-1), (4,)).softmax(-1), 1, 4))]
    assert kinds == ["normalisation", "softmax"]


def test_published_vision_transformer(shared_path: Path) -> None:
    """One softmax per attention block, over scores scaled by 1/4."""
    path = shared_path / "vnncomp" / "vit_2023" / "onnx" / "pgd_2_3_16.onnx"
    if not path.exists() and not path.with_name(f"{path.name}.gz").exists():
        pytest.skip(f"no {path}")
    blocks = find_blocks(load(path, check=False).graph)
    assert [b.kind for b in blocks] == ["softmax", "softmax"]
    for block in blocks:
        assert constants(block) == pytest.approx(scaled(SOFTMAX, 0.25), rel=1e-12)


def test_nothing_in_a_plain_network() -> None:
    assert find_blocks(graph_of(nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 2)), 1, 4)) == ()


NEAR = [
    lambda x: x.exp() / (2 * x).exp().sum(-1, keepdim=True),
    lambda x: x.exp() / x.exp().sum(-2, keepdim=True).sum(-1, keepdim=True) * 2 + x.exp() / x.exp().sum(-1, True),
    lambda x: (2 * x).exp() / x.exp().sum(-1, keepdim=True),
    lambda x: x.exp() / (x.exp().sum(-1, keepdim=True) + 1.0),
    lambda x: x.exp() / x.flip(1).exp().sum(-1, keepdim=True),
    lambda x: x.exp() / x.exp()[..., :-1].sum(-1, keepdim=True),
    lambda x: x.exp() / x.exp().mean(-1, keepdim=True),
    lambda x: (x - x.flip(-1)).exp() / (x - x.flip(-1)).exp().sum(-1, keepdim=True).flip(1),
    lambda x: (x * torch.arange(1.0, 5.0)).exp() / x.exp().sum(-1, keepdim=True),
    lambda x: x - x.exp().sum(-1, keepdim=True).add(0.5).log(),
    lambda x: 2 * x - x.logsumexp(-1, keepdim=True),
    lambda x: x + x.logsumexp(-1, keepdim=True),
    lambda x: x.exp().mean(-1).reciprocal(),
    lambda x: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + 1e-5),
    lambda x: (x - x.mean(-1, True)) / x.var(-1, keepdim=True).sqrt(),
    lambda x: (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + 1e-5),
    lambda x: (x - x.mean(-2, True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    lambda x: (x - 3 * x.mean(-1, True)) / ((x - 3 * x.mean(-1, True)).square().mean(-1, True) + 1e-5).sqrt(),
    lambda x: (x - x.mean(-1, True)) / ((x - x.mean(-1, True)).square().mean(-2, True) + 1e-5).sqrt(),
    lambda x: (x - x.mean(-1, True)) / (x.square().mean(-1, True) + 1e-5).sqrt(),
    lambda x: x / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    lambda x: x.flip(1) / (x.square().mean(-1, True) + 1e-5).sqrt(),
    lambda x: x / (x.square().mean(-1, True) - 1e-5).abs().sqrt(),
    lambda x: x / (x.pow(4).mean(-1, True) + 1e-5).sqrt(),
]


@pytest.mark.parametrize("number", range(len(NEAR)))
def test_near_misses_are_no_blocks(number: int) -> None:
    assert last_block(graph_of(NEAR[number], 1, 2, 4)) is None


def _mutants(graph: Graph) -> list[Graph]:
    """The graph with one constant of one node changed."""
    found: list[Graph] = []
    for place, node in enumerate(graph.nodes):
        changed: list[object] = []
        if isinstance(node.op, Gather):
            index = node.op.index.clone()
            index.view(-1)[-1] = (index.view(-1)[-1] + 1) % int(index.max() + 1)
            changed = [replace(node.op, index=index), replace(node.op, index=node.op.index.flip(-1).roll(1, 0))]
        elif isinstance(node.op, Sum):
            first, *others = node.op.coefficients
            changed = [replace(node.op, coefficients=(1.5 * first, *others))]
        elif isinstance(node.op, Reduce):
            changed = [replace(node.op, scale=1.25 * node.op.scale)]
        elif isinstance(node.op, Diagonal):
            constant = {"shift": 2.0} if node.op.shift is not None else {"factor": 3.0}
            changed = [replace(node.op, **{k: torch.tensor(v, dtype=torch.float64) for k, v in constant.items()})]
        for op in changed:
            nodes = list(graph.nodes)
            nodes[place] = replace(node, op=op)  # type: ignore[arg-type]
            found.append(Graph(tuple(nodes)))
    return found


@pytest.mark.parametrize("number", [0, 2, 4, 6, 8, 9, 11, 13, 14, 15, 17, 19, 20])
def test_changed_constants(number: int) -> None:
    """A graph with a changed constant has no block, or one whose constants and range hold for the changed graph."""
    _, function, shape, _ = FOUND[number]
    for graph in _mutants(graph_of(function, *shape)):
        block = last_block(graph)
        if block is not None:
            for order in (1, 2, 3):
                check(graph, block, order, count=400, steps=0)


# -- attacks -------------------------------------------------------------------------------------------------------


def directional(graph: Graph, order: int, x: Tensor, v: Tensor) -> Tensor:
    """D^k f(x)[v, ..., v] for every sample, flattened."""

    def derivative(k: int) -> Callable[[Tensor], Tensor]:
        return graph if k == 0 else lambda z: jvp(derivative(k - 1), (z,), (v,))[1]

    return derivative(order)(x).flatten(1)


def attack(graph: Graph, order: int, count: int, steps: int, scale: float = 1.0) -> tuple[float, float]:
    """The largest norms of D^k f(x)[v, ..., v] and of one entry of it found over x and unit v."""
    g = torch.Generator().manual_seed(order)
    shape = (count, *graph.input_shape)
    sizes = scale * 10 ** (
        4.0 * torch.rand(count, *(1 for _ in graph.input_shape), generator=g, dtype=torch.float64) - 3
    )
    x = sizes * torch.randn(shape, generator=g, dtype=torch.float64)
    v = torch.randn(shape, generator=g, dtype=torch.float64)
    v = torch.where(torch.rand(shape, generator=g) < 0.5, v, 0.0)
    v[::3] = (x * (1 + 1e-9))[::3]

    def norms(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        unit = v / v.flatten(1).norm(dim=1).clamp(min=1e-30).reshape(-1, *(1 for _ in shape[1:]))
        found = directional(graph, order, x, unit).nan_to_num()
        return found.norm(dim=1), found.abs().amax(1)

    values = norms(x, v)
    best = [float(t.max()) for t in values]
    if steps:  # gradient ascent from the best starts for the whole, and from those for one entry
        top = torch.cat([t.topk(8).indices for t in values])
        x, v = x[top], v[top]
        unit, length = (t.flatten(1).norm(dim=1).reshape(-1, *(1 for _ in shape[1:])) for t in (x, v))
        unit = unit.clamp(min=1e-3 * scale)
        xs, vs = (x / unit).requires_grad_(), (v / length).requires_grad_()
        optimiser = torch.optim.Adam([xs, vs])
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 0.15 * (1 - step / steps)
            whole, entry = norms(xs * unit, vs)
            best = [max(b, float(t.detach().max())) for b, t in zip(best, (whole, entry), strict=True)]
            optimiser.zero_grad()
            (-torch.cat([whole[:8], entry[8:]]).clamp(min=1e-30).log().sum()).backward()
            optimiser.step()
    return best[0], best[1]


def check(graph: Graph, block: Block, order: int, count: int, steps: int, scale: float = 1.0) -> tuple[float, float]:
    """Attained over claimed, for the whole and for one entry; never above 1."""
    found = attack(graph, order, count, steps, scale)
    claimed = constants(block)[order - 1 :: 3]
    slack = 1 + 1e-9
    assert found[0] <= slack * claimed[0]
    assert found[1] <= slack * claimed[1]
    return found[0] / claimed[0], found[1] / claimed[1]


ATTACKED = [
    (nn.Softmax(-1), (1, 2), 1.0),
    (nn.Softmax(-1), (1, 4), 1.0),
    (lambda x: F.softmax(x + CAUSAL[:3, :3], -1), (1, 3, 3), 1.0),
    (nn.LogSoftmax(-1), (1, 3), 1.0),
    (lambda x: x.logsumexp(-1), (1, 3), 1.0),
    (nn.LayerNorm(4, 0.1, False), (1, 4), 0.3),
    (nn.LayerNorm(3, 1e-5, False), (1, 2, 3), 3e-3),
    (nn.RMSNorm(3, 0.1, False), (1, 3), 0.3),
]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("number", range(len(ATTACKED)))
def test_constants_hold_and_are_tight(number: int, order: int) -> None:
    """All constants are sharp: gradient ascent attains them."""
    function, shape, scale = ATTACKED[number]
    graph = graph_of(function, *shape)
    block = last_block(graph)
    assert block is not None
    assert min(check(graph, block, order, 1000, 50, scale)) >= 0.97


@pytest.mark.parametrize("order", [1, 2, 3])
def test_repeated_and_shared_entries(order: int) -> None:
    """A member twice, an output twice, an entry in several groups."""
    graph = graph_of(lambda x: F.softmax(x[:, [0, 1, 2, 0]], -1), 1, 3)
    block = last_block(graph)
    assert block is not None
    whole, entry = check(graph, block, order, 1000, 30)
    assert whole >= 0.6
    assert entry >= 0.45
    shared = graph_of(lambda x: F.layer_norm(x[:, [[0, 1], [0, 2], [0, 3]]], (2,), eps=0.1), 1, 4)
    block = last_block(shared)
    assert block is not None
    assert check(shared, block, order, 1000, 30, 0.3)[0] >= 0.5


def test_bounds_of_a_variable_of_given_width() -> None:
    """What the proofs claim of cumulants, for random laws and for the laws that attain the bounds."""
    g = torch.Generator().manual_seed(0)
    p = torch.rand(200_000, 4, generator=g, dtype=torch.float64) ** 4 + 1e-12
    p[0] = torch.tensor([0.5, 0.5, 0.0, 0.0])
    p[1] = torch.tensor([0.5 + 12**-0.5, 0.5 - 12**-0.5, 0.0, 0.0])
    p /= p.sum(1, keepdim=True)
    v = torch.rand(p.shape, generator=g, dtype=torch.float64)
    v[:2] = torch.tensor([0.0, 1.0, 0.5, 0.5])
    v = SQRT2 * v / (v.amax(1, keepdim=True) - v.amin(1, keepdim=True))
    t = v - (p * v).sum(1, keepdim=True)
    m2, m3, m4 = ((p * t**k).sum(1) for k in (2, 3, 4))
    V = v - v[:, :1]
    M1, M2, M3 = ((p * V**k).sum(1) for k in (1, 2, 3))
    q = p[:, 0]
    entry = (q * M1, q * (2 * M1**2 - M2), q * (M3 - 6 * M1 * M2 + 6 * M1**3))
    for found, bound in zip((m2, m3, m4 - 3 * m2**2, *entry), (*cumulant_bounds(), *entry_bounds()), strict=True):
        assert 0.999 * bound <= found.abs().max() <= bound * (1 + 1e-12)
