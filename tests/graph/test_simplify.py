"""Simplification keeps the function, shortens the graph and leaves structure alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from curvverify.graph import Graph, LoadedModel, load
from curvverify.graph.building import Builder, Var
from curvverify.graph.loading import finished
from curvverify.ops.linear import Convolution, Dense, Gather, Sum

SAMPLE = torch.linspace(-2.0, 2.0, 24, dtype=torch.float64).reshape(2, 3, 4)


def built(make: object, sample: Tensor = SAMPLE) -> Graph:
    """The simplified graph, compared with the unsimplified one at the sample."""
    builder = Builder(sample)
    out = make(builder, builder.input)  # type: ignore[operator]
    graph, _ = finished(builder, [out])
    torch.testing.assert_close(graph(sample.unsqueeze(0))[0], builder.value(out), rtol=1e-14, atol=1e-14)
    return graph


def names(graph: Graph | LoadedModel) -> list[str]:
    return [n.op.name for n in (graph.graph if isinstance(graph, LoadedModel) else graph)][1:]


PICKED = torch.tensor([[3.0, -1.0], [0.0, 5.0]])
FACTORS = torch.arange(1.0, 9.0).reshape(4, 2, 1)

CASES = {
    "reshapes": (lambda t, x: t.reshape(t.reshape(x, (6, 4)), (24,)), ["Reshape"]),
    "there and back": (
        lambda t, x: t.reshape(t.scalar("Relu", t.reshape(x, (6, 4))), (2, 3, 4)),
        ["Reshape", "Relu", "Reshape"],
    ),
    "permutes": (lambda t, x: t.permute(t.permute(x, (1, 2, 0)), (1, 2, 0)), ["Permute"]),
    "permutes back": (lambda t, x: t.permute(t.permute(x, (1, 2, 0)), (2, 0, 1)), ["Reshape"]),
    "slices": (
        lambda t, x: t.gather(t.permute(t.gather(x, t.positions(x)[:, 1:]), (2, 0, 1)), PICKED),
        ["Gather"],
    ),
    "scalings": (lambda t, x: t.affine(t.affine(x, 2.0, None), 3.0, 1.0), ["Diagonal"]),
    "shifts": (lambda t, x: t.affine(t.affine(x, None, 1.0), 3.0, 0.5), ["Diagonal"]),
    "no scaling": (lambda t, x: t.scalar("Tanh", t.affine(t.affine(x, 0.5, None), 2.0, None)), ["Diagonal", "Tanh"]),
    "sums": (
        lambda t, x: t.sub(t.add(t.scalar("Tanh", x), x), t.affine(t.add(x, t.scalar("Relu", x)), -2.0, None)),
        ["Tanh", "Relu", "Sum"],
    ),
    "cancelling": (lambda t, x: t.sub(t.add(t.scalar("Relu", x), x), x), ["Relu"]),
    "doubled": (lambda t, x: t.add(t.scalar("Relu", x), t.scalar("Relu", x)), ["Relu", "Diagonal"]),
    "scaling between moves": (
        lambda t, x: t.permute(t.affine(t.permute(x, (2, 0, 1)), FACTORS, None), (1, 2, 0)),
        ["Diagonal"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_becomes(name: str) -> None:
    make, expected = CASES[name]
    assert names(built(make)) == expected


def test_shifts_that_round_stay_apart() -> None:
    """0.1 + 0.2 is not exact, and the error would be relative to terms that may cancel later."""
    assert names(built(lambda t, x: t.affine(t.affine(x, None, 0.1), None, 0.2))) == ["Diagonal", "Diagonal"]


def test_sum_keeps_what_others_use() -> None:
    def make(t: Builder, x: Var) -> Var:
        inner = t.add(t.scalar("Tanh", x), x)
        return t.mul(t.scalar("Relu", inner), t.add(inner, t.scalar("Cos", x)))

    graph = built(make)
    assert names(graph).count("Sum") == 2


class Folded(nn.Module):
    """A layer, batch normalisation, and a reshape between them."""

    def __init__(self, layer: nn.Module, norm: nn.Module, shape: tuple[int, ...] | None = None):
        super().__init__()
        self.layer, self.norm, self.shape = layer, norm, shape
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.3, 2.0)  # type: ignore[arg-type]
        nn.init.normal_(norm.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.norm(y if self.shape is None else y.reshape(self.shape))


FOLDS = [
    (Folded(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (1, 3, 5, 5), ["Convolution"]),
    (Folded(nn.Conv1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6)), (1, 4, 5), ["Convolution"]),
    (Folded(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (1, 4, 3, 3), ["Convolution"]),
    (Folded(nn.Linear(5, 3), nn.BatchNorm1d(3)), (1, 5), ["Dense"]),
    (Folded(nn.Linear(5, 12), nn.BatchNorm2d(3), (1, 3, 2, 2)), (1, 5), ["Dense", "Reshape"]),
]


@pytest.mark.parametrize(("module", "shape", "expected"), FOLDS)
def test_normalisation_folds(module: nn.Module, shape: tuple[int, ...], expected: list[str]) -> None:
    assert names(load(module, shapes=shape, samples=20)) == expected


def test_a_shared_layer_is_not_folded() -> None:
    def make(t: Builder, x: Var) -> Var:
        layer = t.dense(x, torch.ones(2, 4).double())
        return t.mul(t.affine(layer, 2.0, 1.0), t.scalar("Tanh", layer))

    assert names(built(make)) == ["Dense", "Diagonal", "Tanh", "Product"]


def test_matrices_are_not_multiplied() -> None:
    graph = built(lambda t, x: t.dense(t.dense(x, torch.ones(100, 4).double()), torch.ones(4, 100).double()))
    assert names(graph) == ["Dense", "Dense"]


def test_structure_stays() -> None:
    """A padded convolution in a residual block stays what it is."""
    loaded = load(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 3, 2), nn.ReLU()), shapes=(1, 2, 4, 4))
    assert [type(n.op) for n in loaded.graph.nodes[1:3]] == [Gather, Convolution]
    linear = load(nn.Linear(4, 3), shapes=(1, 4)).graph.nodes[1].op
    assert isinstance(linear, Dense)
    assert linear.bias is not None


def test_rows_share_a_dense_layer() -> None:
    """Reshapes around a Dense that only regroup rows disappear."""
    graph = built(
        lambda t, x: t.reshape(t.dense(t.reshape(t.scalar("Relu", x), (6, 4)), torch.eye(4).double()[:3]), (2, 3, 3))
    )
    assert names(graph) == ["Relu", "Dense"]


def test_same_sum_of_scaled_terms() -> None:
    graph = built(lambda t, x: t.sum([t.affine(x, 2.0, None), t.scalar("Tanh", x), x], [1.0, -1.0, 0.5]))
    op = graph.nodes[-1].op
    assert isinstance(op, Sum)
    assert op.coefficients == (2.5, -1.0)
