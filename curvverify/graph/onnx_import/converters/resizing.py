"""ONNX Resize and Upsample: one linear map per axis, a selection for `nearest`, a matrix for `linear` and `cubic`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from curvverify.graph.onnx_import.converters.attributes import Attributes, Converter


def _source_positions(n: int, m: int, scale: float, mode: str) -> list[float]:
    """Where every output entry lies on the input axis, by ONNX's coordinate transformation modes."""
    if mode == "half_pixel":
        return [(i + 0.5) / scale - 0.5 for i in range(m)]
    if mode == "half_pixel_symmetric":
        centre = n / 2 * (1 - m / (n * scale))
        return [centre + (i + 0.5) / scale - 0.5 for i in range(m)]
    if mode == "pytorch_half_pixel":
        return [(i + 0.5) / scale - 0.5 if m > 1 else 0.0 for i in range(m)]
    if mode == "align_corners":
        return [i * (n - 1) / (m - 1) if m > 1 else 0.0 for i in range(m)]
    if mode == "asymmetric":
        return [i / scale for i in range(m)]
    raise NotImplementedError(f"coordinate transformation mode {mode!r}")


def _nearest(x: float, mode: str) -> int:
    match mode:
        case "round_prefer_floor":
            return math.ceil(x - 0.5)
        case "round_prefer_ceil":
            return math.floor(x + 0.5)
        case "floor":
            return math.floor(x)
        case "ceil":
            return math.ceil(x)
    raise NotImplementedError(f"nearest mode {mode!r}")


def _weights(fraction: float, mode: str, a: float) -> dict[int, float]:
    """Interpolation weights of the neighbours, by offset from the entry at or below."""
    if mode == "linear":
        return {0: 1.0 - fraction, 1: fraction}
    t = fraction
    return {
        -1: ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
        0: ((a + 2) * t - (a + 3)) * t * t + 1,
        1: ((a + 2) * (1 - t) - (a + 3)) * (1 - t) ** 2 + 1,
        2: ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
    }


def _matrix(positions: Sequence[float], n: int, mode: str, a: Attributes) -> Tensor:
    """The interpolation matrix (out, in)."""
    matrix = torch.zeros(len(positions), n, dtype=torch.float64)
    for row, position in enumerate(positions):
        base = math.floor(position)
        for offset, weight in _weights(position - base, mode, a.get("cubic_coeff_a", -0.75)).items():
            place = base + offset
            if a.get("exclude_outside", 0) and not 0 <= place < n:
                continue
            matrix[row, min(max(place, 0), n - 1)] += weight
    return matrix / matrix.sum(1, keepdim=True) if a.get("exclude_outside", 0) else matrix


def _along(x: Tensor, axis: int, m: int, scale: float, a: Attributes) -> Tensor:
    n = x.shape[axis]
    positions = _source_positions(n, m, scale, a.get("coordinate_transformation_mode", "half_pixel"))
    mode = a.get("mode", "nearest")
    if mode == "nearest":
        rounding = a.get("nearest_mode", "round_prefer_floor")
        chosen = [min(max(_nearest(p, rounding), 0), n - 1) for p in positions]
        return x.index_select(axis, torch.tensor(chosen))
    matrix = _matrix(positions, n, mode.removeprefix("bi").removeprefix("tri"), a)
    return (x.movedim(axis, -1) @ matrix.t().to(x.dtype)).movedim(-1, axis)


def resized(x: Tensor, scales: Sequence[float] | None, sizes: Sequence[int] | None, a: Attributes) -> Tensor:
    if a.get("antialias", 0):
        raise NotImplementedError("Resize with antialias = 1")
    if a.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotImplementedError("Resize with a policy that keeps the aspect ratio")
    axes = [c % x.ndim for c in a.get("axes") or range(x.ndim)]
    for place, axis in enumerate(axes):
        n = x.shape[axis]
        m = sizes[place] if sizes is not None else math.floor(n * scales[place]) if scales is not None else n
        scale = scales[place] if sizes is None and scales is not None else m / n
        if m != n or scale != 1.0:
            x = _along(x, axis, int(m), float(scale), a)
    return x


def _floats(value: Tensor | None) -> list[float] | None:
    return None if value is None or not value.numel() else [float(v) for v in value.tolist()]


def resize(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor, *inputs: Tensor | None) -> Tensor:
        if len(inputs) == 1:  # opset 10 is Upsample-9 under a new name
            return resized(x, _floats(inputs[0]), None, {**a, **UPSAMPLING})
        _, scales, sizes = (*inputs, None, None)[:3]
        return resized(x, _floats(scales), None if sizes is None else [int(v) for v in sizes.tolist()] or None, a)

    return apply


UPSAMPLING = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def upsample(a: Attributes) -> Callable[..., Tensor]:
    def apply(x: Tensor, scales: Tensor | None = None) -> Tensor:
        return resized(x, a.get("scales") if scales is None else _floats(scales), None, {**a, **UPSAMPLING})

    return apply


RESIZING: dict[str, Converter] = {"Resize": resize, "Upsample": upsample}
