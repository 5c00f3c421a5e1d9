"""Operators that move entries about: views, slices, expansions, padding, concatenations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from curvverify.graph.building import Builder, Operand, Var
from curvverify.graph.lowering.rules import CannotLower, Rule


def overload(key: str) -> Callable[..., Any]:
    """The ATen operator of a key."""
    name, _, variant = key.partition(".")
    return getattr(getattr(torch.ops.aten, name), variant or "default")


def moved(key: str) -> Rule:
    """The rule of an operator whose result's entries are entries of its first argument, or zero.

    The operator itself, applied to the flat positions counted from 1, says which.
    """

    def rule(t: Builder, x: Operand, *args: Any, **kwargs: Any) -> Var | tuple[Var, ...]:
        if not isinstance(x, Var) or any(isinstance(a, Var) for a in args):
            raise CannotLower("an index that depends on the input")
        index = overload(key)(t.positions(x) + 1.0, *args, **kwargs)
        if isinstance(index, Tensor):
            return t.gather(x, index - 1.0)
        return tuple(t.gather(x, i - 1.0) for i in index)

    return rule


def placed(key: str) -> Rule:
    """The rule of an operator that writes a second argument's entries into the first: scatter, slice_scatter."""

    def rule(t: Builder, x: Operand, *args: Any, **kwargs: Any) -> Var:
        others = [i for i, a in enumerate(args) if isinstance(a, Var) or (isinstance(a, Tensor) and _floating(a))]
        if len(others) != 1:
            raise CannotLower("an index that depends on the input")
        values = args[others[0]]
        base = torch.arange(x.shape.numel() if isinstance(x, Tensor) else _size(x), dtype=torch.float64)
        count = base.numel()
        extra = torch.arange(_size(values), dtype=torch.float64).reshape(values.shape) + count
        changed = [*args]
        changed[others[0]] = extra
        index = overload(key)(base.reshape(_shape(x)), *changed, **kwargs)
        flat = [t.reshape(p, (p.size,)) if isinstance(p, Var) else torch.as_tensor(p).flatten() for p in (x, values)]
        return t.gather(t.cat(flat, 0), index)

    return rule


def _floating(a: Tensor) -> bool:
    return a.is_floating_point()


def _shape(x: Operand) -> tuple[int, ...]:
    return tuple(x.shape) if isinstance(x, Var | Tensor) else ()


def _size(x: Operand) -> int:
    return x.size if isinstance(x, Var) else torch.as_tensor(x).numel()


def index_put(t: Builder, x: Operand, indices: Sequence[Any], values: Operand, accumulate: bool = False) -> Var:
    """x with some entries replaced (or increased) by `values`."""
    if any(isinstance(i, Var) for i in indices):
        raise CannotLower("an index that depends on the input")
    count = _size(x)
    positions = torch.arange(count, dtype=torch.float64).reshape(_shape(x))
    written = positions[tuple(slice(None) if i is None else i for i in indices)]
    if isinstance(values, Var):
        v = t.expand(values, written.shape)
    else:
        v = torch.as_tensor(values, dtype=torch.float64).expand(written.shape).contiguous()
    if accumulate:
        raise CannotLower("index_put that accumulates")
    source = torch.arange(_size(v), dtype=torch.float64).reshape(_shape(v)) + count
    index = torch.ops.aten.index_put(positions, list(indices), source)
    flat = [t.reshape(p, (p.size,)) if isinstance(p, Var) else torch.as_tensor(p).flatten() for p in (x, v)]
    return t.gather(t.cat(flat, 0), index)


def pad(t: Builder, x: Var, pads: Sequence[int], value: float = 0.0) -> Var:
    """Constant padding: zeros by the gather, another constant as a shift of the new entries."""
    index = overload("constant_pad_nd")(t.positions(x) + 1.0, pads, 0.0) - 1.0
    y = t.gather(x, index)
    return t.affine(y, None, torch.where(index < 0, float(value), 0.0)) if value else y


def reshaped(key: str) -> Rule:
    """The rule of an operator that keeps the entries in row-major order."""

    def rule(t: Builder, x: Var, *args: Any, **kwargs: Any) -> Var:
        return t.reshape(x, overload(key)(torch.empty(x.shape, device="meta"), *args, **kwargs).shape)

    return rule


def same(t: Builder, x: Var, *args: Any, **kwargs: Any) -> Var:
    return x


def permute(t: Builder, x: Var, dims: Sequence[int]) -> Var:
    return t.permute(x, dims)


def transpose(t: Builder, x: Var, first: int, second: int) -> Var:
    return t.swap(x, first, second) if x.ndim else x


def matrix_transpose(t: Builder, x: Var) -> Var:
    return t.swap(x, 0, 1) if x.ndim == 2 else x


def cat(t: Builder, parts: Sequence[Var | Tensor], dim: int = 0) -> Var:
    return t.cat(parts, dim)


def stack(t: Builder, parts: Sequence[Var | Tensor], dim: int = 0) -> Var:
    rank = len(parts[0].shape) + 1
    dim = dim + rank if dim < 0 else dim

    def longer(p: Var | Tensor) -> Var | Tensor:
        return t.reshape(p, (*p.shape[:dim], 1, *p.shape[dim:])) if isinstance(p, Var) else p.unsqueeze(dim)

    return t.cat([longer(p) for p in parts], dim)


def copy(t: Builder, target: Operand, source: Operand, *args: Any, **kwargs: Any) -> Var:
    """What an in-place copy leaves in the target."""
    if isinstance(source, Var):
        return t.expand(source, _shape(target))
    return t.constant(torch.as_tensor(source, dtype=torch.float64).expand(_shape(target)))


def filled(t: Builder, target: Operand, value: Operand = 0.0) -> Var:
    """What an in-place fill leaves in the target."""
    return copy(t, target, value)


def constant_like(t: Builder, x: Var, *args: Any, **kwargs: Any) -> None:
    """Only the shape of the argument is used: the result does not depend on the input."""


_MOVED = (
    *("slice.Tensor", "select.int", "index.Tensor", "index_select", "gather", "take", "take_along_dim"),
    *("expand", "repeat", "flip", "roll", "tril", "triu", "diagonal", "diag_embed", "unfold", "im2col"),
    *("split.Tensor", "split_with_sizes", "unbind.int", "chunk", "unsafe_split.Tensor", "unsafe_split_with_sizes"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
)

_RESHAPED = ("view", "_unsafe_view", "unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims", "_reshape_alias")

_SAME = ("clone", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy", "_to_copy", "dropout")

_PLACED = ("scatter.src", "slice_scatter", "select_scatter", "index_copy")

_SHAPE_ONLY = ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")

RULES: dict[str, Rule] = {
    **{key: moved(key) for key in _MOVED},
    **{key: reshaped(key) for key in _RESHAPED},
    **dict.fromkeys(_SAME, same),
    **{key: placed(key) for key in _PLACED},
    **dict.fromkeys(_SHAPE_ONLY, constant_like),
    "constant_pad_nd": pad,
    "index_put": index_put,
    "permute": permute,
    "transpose.int": transpose,
    "t": matrix_transpose,
    "cat": cat,
    "stack": stack,
    "copy": copy,
    "fill.Scalar": filled,
    "fill.Tensor": filled,
    "zero": filled,
}
