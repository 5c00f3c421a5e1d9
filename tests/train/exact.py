"""The formulas of training with exact norms, from whole matrices: what the iterated values and gradients must meet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from curvverify.graph.layers import Graph
from curvverify.numerics.norms.estimates import Trained
from curvverify.ops.base import Linear
from curvverify.train import constants, pairs


@contextmanager
def exact_norms() -> Iterator[None]:
    """Inside, every norm that training iterates for is computed by singular values or eigenvalues."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "spectral_norm_differentiable", _operator_norm)
        patch.setattr(constants, "row_weighted_norm_differentiable", _row_weighted)
        patch.setattr(constants.Compositional, "_map_norm", _map_norm)
        patch.setattr(pairs.PairCurvature, "_form", _form)
        patch.setattr(pairs.PairCurvature, "_product", _product)
        yield


def _unit_inputs(shape: tuple[int, ...]) -> Tensor:
    return torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)


def _largest(images: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(images.flatten(1), 2)


def _operator_norm(op: Linear, shape: tuple[int, ...], *_: Any) -> Trained:
    return Trained(_largest(op.forward(_unit_inputs(shape), bias=False)), torch.zeros(1, *shape))


def _row_weighted(W: Tensor, *_: Any) -> Trained:
    return Trained(torch.linalg.matrix_norm(W.norm(dim=1, keepdim=True) * W, 2), torch.zeros(min(W.shape)))


def _map_norm(_: Any, graph: Graph, start: int, end: int) -> Tensor:
    return _largest(constants.centred_map(graph, start, end, _unit_inputs(graph.nodes[start].shape)))


def _form(_: Any, name: str, W: Tensor, edge: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(W.mT @ (edge.unsqueeze(2) * W))[:, -1]


def _product(_: Any, chain: pairs.Chain, first: int, last: int) -> Tensor:
    matrix = chain.matrices[first]
    for k in range(first, last):
        matrix = chain.activations[k].centre * chain.matrices[k + 1] @ matrix
    return torch.linalg.matrix_norm(matrix, 2)
