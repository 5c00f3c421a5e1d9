"""Labelled samples: read from an .npz file with arrays x_<split> and y_<split>, and checked against a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvverify.errors import UnreadableError, UsageError


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs x (N, n) in float64 and their labels y (N), checked; and the domain that comes with them."""

    x: Tensor
    y: Tensor
    scaled: bool
    """Whether they were bytes, divided by 255."""

    def __len__(self) -> int:
        return len(self.x)


def checked_samples(
    x: Any,
    y: Any,
    size: int,
    classes: int,
    domain: tuple[float, float] | None = None,
    what: str = "",
    shape: tuple[int, ...] = (),
) -> Samples:
    """The samples as tensors; UsageError where they make no sense for a network of that size.

    x: (N, ...) with `size` entries each (a single sample may come without N), N > 0, bytes or floating point; y: N
    integers from 0 on below `classes`.  Entries lie in the `domain`, where there is one.  Images (H, W, C) for a
    network whose inputs have the shape (C, H, W) or (1, C, H, W) are turned.
    """
    xs, ys = as_array(x), np.atleast_1d(as_array(y))
    image = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if len(image) == 3 and xs.shape[-3:] == (*image[1:], image[0]) != image:
        xs = np.moveaxis(xs, -1, -3)
    where = f"{what}: " if what else ""
    if xs.dtype == object or xs.dtype.kind not in "fiub":
        raise UsageError(f"{where}inputs of type {xs.dtype}: give bytes or floating-point numbers")
    if xs.size == size and len(ys) == 1:
        xs = xs.reshape(1, -1)
    if xs.ndim < 2 or int(np.prod(xs.shape[1:])) != size:
        raise UsageError(f"{where}inputs of shape {xs.shape}: the network takes {size} numbers per sample")
    if ys.ndim != 1 or len(ys) != len(xs):
        raise UsageError(f"{where}{len(xs)} inputs, but labels of shape {ys.shape}")
    if ys.dtype.kind not in "iu" and not (ys.dtype.kind == "f" and bool(np.all(ys == np.floor(ys)))):
        raise UsageError(f"{where}labels must be integers, not {ys.dtype}")
    if not len(xs):
        raise UsageError(f"{where}there are no samples")
    bad = (ys < 0) | (ys >= classes)
    if bool(bad.any()):
        first = int(bad.argmax())
        raise UsageError(f"{where}label {ys[first]} of sample {first}: the network has the classes 0 to {classes - 1}")
    scaled = xs.dtype == np.uint8
    flat = torch.from_numpy(np.ascontiguousarray(xs.reshape(len(xs), -1)).astype(np.float64))
    if scaled:
        flat = flat / 255.0
    broken = ~flat.isfinite().all(1)
    if bool(broken.any()):
        raise UsageError(f"{where}sample {int(broken.double().argmax())} has entries that are NaN or infinite")
    if domain is not None:
        outside = ((flat < domain[0]) | (flat > domain[1])).any(1)
        if bool(outside.any()):
            first = int(outside.double().argmax())
            raise UsageError(f"{where}sample {first} leaves the domain [{domain[0]:g}, {domain[1]:g}]")
    return Samples(flat, torch.from_numpy(ys.astype(np.int64)), scaled)


def as_array(value: Any) -> np.ndarray:
    """Tensors, lists and arrays as an array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def read_split(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The arrays x_<split> and y_<split> of an .npz file as they are; UnreadableError where there are none."""
    names = (f"x_{split}", f"y_{split}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = set(archive.files)
            missing = [name for name in names if name not in held]
            if missing:
                there = ", ".join(sorted(held)) or "nothing"
                what = f"there is no array {' or '.join(missing)}; it holds {there}"
                raise UnreadableError(f"{path}: no {names[0]} and {names[1]}: {what}")
            return archive[names[0]], archive[names[1]]
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise UnreadableError(f"{path}: not an .npz file of plain arrays: {error}") from error
