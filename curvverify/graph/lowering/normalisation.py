"""Softmax, and normalisation by mean and variance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvverify.graph.building import Builder, Operand, Var, normal
from curvverify.graph.lowering.rules import CannotLower, Rule
from curvverify.ops.linear import Diagonal, Reshape

MOST_PAIRS = 4_000_000
"""Largest number of pairs for which a softmax is made of the differences of all pairs."""


def _rivals(t: Builder, x: Var, dim: int) -> Var:
    """sum over j != i of exp(x_j - x_i) along `dim`: softmax is 1 / (1 + it).

    Every term falls in x_i and grows in one x_j, so that interval bounds of the sum are exact.
    """
    dim = normal(dim, x.ndim)
    x, masked = _unmasked(t, x)
    n = x.shape[dim]
    positions = t.positions(x).movedim(dim, -1)
    others = torch.tensor([[j for j in range(n) if j != i] for i in range(n)], dtype=torch.int64).reshape(n, n - 1)
    rival = positions[..., others]
    own = positions.unsqueeze(-1).expand(rival.shape)
    terms = t.scalar("Exp", t.sum([t.gather(x, rival), t.gather(x, own)], [1.0, -1.0]))
    if masked is not None:
        hidden = masked.movedim(dim, -1)
        if bool(hidden.all(-1).any()):
            raise CannotLower("a softmax over nothing but masked entries")
        terms = t.affine(terms, (~hidden[..., others]).to(torch.float64), None)
    total = t.reduce(terms, [-1], keepdim=False)
    back = list(range(x.ndim - 1))
    back.insert(dim, x.ndim - 1)
    return t.permute(total, back)


def _unmasked(t: Builder, x: Var) -> tuple[Var, Tensor | None]:
    """A masked value (a constant -inf added to some entries) without its mask, and the mask."""
    node = t.nodes[x.node]
    if not node.inputs:
        return x, None
    before = Var(node.inputs[0], t.nodes[node.inputs[0]].shape)
    if isinstance(node.op, Reshape):
        inner, masked = _unmasked(t, before)
        return (x, None) if masked is None else (t.reshape(inner, x.shape), masked.reshape(x.shape))
    if isinstance(node.op, Diagonal) and node.op.shift is not None:
        masked = node.op.shift == -torch.inf
        if bool(masked.any()):
            finite = torch.where(masked, 0.0, node.op.shift)
            return t.affine(before, node.op.factor, finite), masked.expand(x.shape)
    return x, None


def _shown(t: Builder, x: Var, y: Var, hidden: float) -> Var:
    """y, except at the masked entries of x."""
    masked = _unmasked(t, x)[1]
    if masked is None:
        return y
    return t.affine(y, (~masked).to(torch.float64), torch.where(masked, hidden, 0.0))


def _relative(t: Builder, x: Var, dim: int) -> tuple[Var, Var]:
    """x_i - x_0 along `dim`, and the logarithm of the sum of their exponentials."""
    dim = normal(dim, x.ndim)
    first = t.positions(x).narrow(dim, 0, 1).expand(x.shape)
    difference = t.sum([x, t.gather(x, first)], [1.0, -1.0])
    return difference, t.scalar("Log", t.reduce(t.scalar("Exp", difference), [dim]))


def _too_many(t: Builder, x: Var, dim: int) -> bool:
    """Whether the differences of all pairs are too many to be worth their tightness."""
    return x.size * (x.shape[dim] - 1) > MOST_PAIRS and _unmasked(t, x)[1] is None


def softmax(t: Builder, x: Var, dim: int, *_: object) -> Var:
    """1 / (1 + sum over j != i of exp(x_j - x_i)); where that is too large, exp(x_i - log(sum of exp(x_j)))."""
    if _too_many(t, x, dim):
        return t.scalar("Exp", t.sub(*_relative(t, x, dim)))
    y = t.scalar("Reciprocal", t.affine(_rivals(t, x, dim), None, 1.0))
    return _shown(t, x, y, 0.0)


def log_softmax(t: Builder, x: Var, dim: int, *_: object) -> Var:
    """-log(1 + sum over j != i of exp(x_j - x_i)); where that is too large, x_i - log(sum of exp(x_j))."""
    if _too_many(t, x, dim):
        return t.sub(*_relative(t, x, dim))
    y = t.affine(t.scalar("Log", t.affine(_rivals(t, x, dim), None, 1.0)), -1.0, None)
    return _shown(t, x, y, -torch.inf)


def logsumexp(t: Builder, x: Var, dims: Sequence[int], keepdim: bool = False) -> Var:
    return t.scalar("Log", t.reduce(t.scalar("Exp", x), dims, keepdim))


# -- mean and variance ---------------------------------------------------------------------------------------------


def centred(t: Builder, x: Var, axes: Sequence[int]) -> Var:
    return t.sub(x, t.mean(x, axes))


def variance(t: Builder, x: Var, axes: Sequence[int], keepdim: bool, correction: float) -> Var:
    """sum (x - mean)^2 / (n - correction)."""
    axes = [normal(a, x.ndim) for a in axes] or list(range(x.ndim))
    count = torch.Size(x.shape[a] for a in axes).numel()
    squares = t.scalar("Power", centred(t, x, axes), exponent=2.0)
    return t.reduce(squares, axes, keepdim, 1.0 / (count - correction))


def _correction(value: float | None) -> float:
    return 1.0 if value is None else float(value)


def var(
    t: Builder, x: Var, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Var:
    return variance(t, x, dim or [], keepdim, _correction(correction))


def std(
    t: Builder, x: Var, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Var:
    return t.scalar("Sqrt", var(t, x, dim, correction=correction, keepdim=keepdim))


def var_mean(
    t: Builder, x: Var, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Var, Var]:
    return var(t, x, dim, correction=correction, keepdim=keepdim), t.mean(x, dim or [], keepdim)


def std_mean(
    t: Builder, x: Var, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Var, Var]:
    return std(t, x, dim, correction=correction, keepdim=keepdim), t.mean(x, dim or [], keepdim)


def normalised(t: Builder, x: Var, axes: Sequence[int], eps: float) -> Var:
    """(x - mean) / sqrt(variance + eps)."""
    middle = centred(t, x, axes)
    spread = t.mean(t.scalar("Power", middle, exponent=2.0), axes)
    return t.mul(middle, t.scalar("Power", t.affine(spread, None, eps), exponent=-0.5))


def _scaled(t: Builder, x: Var, weight: Operand | None, bias: Operand | None) -> Var:
    y = x if weight is None else t.mul(x, weight)
    return y if bias is None else t.add(y, bias)


def layer_norm(
    t: Builder, x: Var, shape: Sequence[int], weight: Operand | None, bias: Operand | None, eps: float
) -> tuple[Var, None, None]:
    axes = range(x.ndim - len(shape), x.ndim)
    return _scaled(t, normalised(t, x, list(axes), eps), weight, bias), None, None


def group_norm(
    t: Builder,
    x: Var,
    weight: Operand | None,
    bias: Operand | None,
    batch: int,
    channels: int,
    size: int,
    groups: int,
    eps: float,
) -> tuple[Var, None, None]:
    y = t.reshape(normalised(t, t.reshape(x, (batch, groups, channels * size // groups)), [2], eps), x.shape)
    return _scaled(t, y, _channels(t, weight, x), _channels(t, bias, x)), None, None


def _channels(t: Builder, value: Operand | None, x: Var) -> Operand | None:
    """A value per channel, to be broadcast over (N, C, *spatial)."""
    shape = (-1, *(1 for _ in range(x.ndim - 2)))
    if isinstance(value, Var):
        return t.reshape(value, (value.size, *shape[1:]))
    return None if value is None else torch.as_tensor(value).reshape(shape)


def batch_norm(
    t: Builder,
    x: Var,
    weight: Operand | None,
    bias: Operand | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Var, None, None]:
    """With running statistics (x - mean) weight / sqrt(variance + eps) + bias; else with those of the batch."""
    if training or mean is None or variance is None:
        y = normalised(t, x, [d for d in range(x.ndim) if d != 1], eps)
        return _scaled(t, y, _channels(t, weight, x), _channels(t, bias, x)), None, None
    if any(isinstance(v, Var) for v in (weight, bias, mean, variance)):
        raise CannotLower("batch normalisation with parameters that depend on the input")
    factor = (variance.to(torch.float64) + eps).sqrt().reciprocal()
    factor = factor if weight is None else factor * torch.as_tensor(weight)
    offset = torch.zeros_like(factor) if bias is None else torch.as_tensor(bias)
    shift, size = offset - mean * factor, offset.abs() + (mean * factor).abs()
    factor, shift, size = (torch.as_tensor(_channels(t, c, x)) for c in (factor, shift, size))
    return t.affine(x, factor, shift, size), None, None


def batch_norm_inference(
    t: Builder,
    x: Var,
    weight: Operand | None,
    bias: Operand | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Var, None, None]:
    return batch_norm(t, x, weight, bias, mean, variance, False, momentum, eps)


def vector_norm(
    t: Builder, x: Var, ord: float = 2.0, dim: Sequence[int] | None = None, keepdim: bool = False, **_: object
) -> Var:
    axes = list(dim or [])
    if ord == 1:
        return t.reduce(t.scalar("Abs", x), axes, keepdim)
    if ord == 2:
        return t.scalar("Sqrt", t.reduce(t.scalar("Power", x, exponent=2.0), axes, keepdim))
    raise CannotLower(f"the norm of order {ord}; orders 1 and 2 are implemented")


RULES: dict[str, Rule] = {
    "_softmax": softmax,
    "softmax.int": softmax,
    "_safe_softmax": softmax,
    "_log_softmax": log_softmax,
    "log_softmax.int": log_softmax,
    "logsumexp": logsumexp,
    "var.correction": var,
    "std.correction": std,
    "var_mean.correction": var_mean,
    "std_mean.correction": std_mean,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "native_batch_norm": batch_norm,
    "cudnn_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm,
    "_native_batch_norm_legit.no_stats": lambda t, x, w, b, *rest: batch_norm(t, x, w, b, None, None, *rest),
    "_native_batch_norm_legit_no_training": batch_norm_inference,
    "_batch_norm_no_update": batch_norm_inference,
    "linalg_vector_norm": vector_norm,
    "norm.Scalar": vector_norm,
    "norm.ScalarOpt_dim": vector_norm,
}
