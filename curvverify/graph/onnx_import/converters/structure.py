"""Operators that move entries about."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from curvverify.graph.onnx_import.converters.attributes import Attributes, Converter, ints, plain


def flatten(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor) -> Tensor:
        axis = a.get("axis", 1)
        axis = axis + x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:axis]), -1)

    return apply


def squeeze(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = ints(a.get("axes") if axes is None else axes)
        return x.squeeze() if chosen is None else x.squeeze([c % x.ndim for c in chosen])

    return apply


def unsqueeze(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = ints(a.get("axes") if axes is None else axes) or []
        for axis in sorted(c % (x.ndim + len(chosen)) for c in chosen):
            x = x.unsqueeze(axis)
        return x

    return apply


def slice_(a: Attributes) -> Callable[..., Tensor]:
    """Python's slicing; a negative step walks backwards."""

    def apply(x: Tensor, *inputs: Tensor | None) -> Tensor:
        names = ("starts", "ends", "axes", "steps")
        given = dict(zip(names, inputs, strict=False)) if inputs else a
        starts, ends, axes, steps = (ints(given.get(n)) for n in names)
        assert starts is not None
        assert ends is not None
        for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
            axis = (axes[place] if axes else place) % x.ndim
            step = steps[place] if steps else 1
            chosen = range(
                *slice(start, None if step < 0 and end < -x.shape[axis] else end, step).indices(x.shape[axis])
            )
            if step == 1:
                x = x.narrow(axis, chosen.start if chosen else 0, len(chosen))
            else:
                x = x.index_select(axis, torch.tensor([*chosen], dtype=torch.int64))
        return x

    return apply


def split(a: Attributes) -> Callable[..., tuple[Tensor, ...]]:
    def apply(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        axis = a.get("axis", 0)
        chosen = ints(a.get("split") if sizes is None else sizes)
        if chosen is None:
            parts = a.get("num_outputs") or a["outputs"]
            size = -(-x.shape[axis] // parts)
            chosen = [size] * (parts - 1) + [x.shape[axis] - size * (parts - 1)]
        return x.split(chosen, axis)

    return apply


def pad(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        amounts = ints(a.get("pads", a.get("paddings")) if pads is None else pads) or []
        chosen = [c % x.ndim for c in (ints(axes) or range(x.ndim))]
        fill = a.get("value", 0.0) if value is None or not value.numel() else value.item()
        mode = a.get("mode", "constant")
        for axis, low, high in zip(chosen, amounts[: len(chosen)], amounts[len(chosen) :], strict=True):
            x = _padded(x, axis, low, high, mode, fill)
        return x

    return apply


def _padded(x: Tensor, axis: int, low: int, high: int, mode: str, value: float) -> Tensor:
    n = x.shape[axis]
    if mode == "constant":
        behind = [0, 0] * (x.ndim - 1 - axis)
        return F.pad(x, [*behind, low, high], value=value) if low or high else x
    place = torch.arange(-low, n + high)
    if mode == "edge":
        place = place.clamp(0, n - 1)
    elif mode == "wrap":
        place = place % n
    elif mode == "reflect":
        period = max(2 * (n - 1), 1)
        place = (place % period).minimum((-place) % period)
    else:
        raise NotImplementedError(f"padding mode {mode!r}")
    return x.index_select(axis, place) if low or high else x


def transpose(a: Attributes) -> Callable[..., Tensor]:
    return lambda x: x.permute(a.get("perm") or list(range(x.ndim))[::-1])


def depth_to_space(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        b = a["blocksize"]
        if a.get("mode", "DCR") == "DCR":
            y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            y = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
        return y.reshape(n, c // b**2, h * b, w * b)

    return apply


def space_to_depth(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        b = a["blocksize"]
        return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)

    return apply


def trilu(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor, k: Tensor | None = None) -> Tensor:
        offset = 0 if k is None else int(k.item())
        return x.triu(offset) if a.get("upper", 1) else x.tril(offset)

    return apply


def scatter_elements(a: Attributes) -> Callable[..., Tensor]:
    if a.get("reduction", "none") != "none":
        raise NotImplementedError("ScatterElements with a reduction")
    return lambda x, index, updates: x.scatter(a.get("axis", 0), index % x.shape[a.get("axis", 0)], updates)


def scatter_nd(a: Attributes) -> Callable[..., Tensor]:
    if a.get("reduction", "none") != "none":
        raise NotImplementedError("ScatterND with a reduction")
    return lambda x, index, updates: x.index_put(index.unbind(-1), updates)


def gather_elements(a: Attributes) -> Callable[..., Tensor]:
    return lambda x, index: x.gather(a.get("axis", 0), index % x.shape[a.get("axis", 0)])


def gather_nd(a: Attributes) -> Callable[..., Tensor]:
    if a.get("batch_dims", 0):
        raise NotImplementedError("GatherND with batch dimensions")
    return lambda x, index: x[index.unbind(-1)]


def cast(a: Attributes) -> Callable[..., Tensor]:
    """To integers and truth values; among floating-point types the identity of the network over the reals."""
    import onnx.helper

    name = onnx.helper.tensor_dtype_to_np_dtype(a["to"]).name
    kind = torch.float64 if "float" in name else getattr(torch, name)
    return lambda x: x.to(kind)


def one_hot(a: Attributes) -> Callable[..., Tensor]:
    def apply(indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        hot = F.one_hot(indices.long() % int(depth.item()), int(depth.item()))
        return torch.where(hot.movedim(-1, a.get("axis", -1)).bool(), values[1], values[0])

    return apply


STRUCTURE: dict[str, Converter] = {
    "Cast": cast,
    "CastLike": plain(lambda x, like: x.to(like.dtype)),
    "DepthToSpace": depth_to_space,
    "Flatten": flatten,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Pad": pad,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Size": plain(lambda x: torch.tensor(x.numel())),
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
