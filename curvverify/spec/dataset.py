"""Labelled samples from an .npz file: arrays x_<split> and y_<split>."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curvverify.errors import UnreadableError, UsageError


def load_samples(path: Path, split: str, limit: int | None, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(x, y): inputs (N, *shape) in float64 and labels (N,) in int64, the first `limit` of them.

    uint8 inputs are divided by 255; float inputs are taken as they are.  `shape` is the network's input shape; a
    sample only needs as many entries.
    Raises UnreadableError where the file is no .npz or an array is missing, has NaN or infinite entries or the wrong
    size; UsageError where there is no sample.
    """
    x, y = read_split(path, split)
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise UnreadableError(f"{path}: x_{split} is {x.dtype}; uint8 images or floating-point inputs are needed")
    size = math.prod(shape)
    if x.ndim < 2 or math.prod(x.shape[1:]) != size:
        raise UnreadableError(f"{path}: x_{split} has samples of shape {x.shape[1:]}; the network takes {size} entries")
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise UnreadableError(f"{path}: y_{split} must be {len(x)} whole numbers, not {y.dtype} of shape {y.shape}")
    if not len(x):
        raise UsageError(f"{path}: the split {split!r} has no samples")
    x, y = x[:limit], y[:limit]
    values = torch.from_numpy(x.astype(np.float64)).reshape(-1, *shape)
    if x.dtype == np.uint8:
        values = values / 255.0
    bad = (~values.flatten(1).isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise UnreadableError(f"{path}: x_{split}[{int(bad[0])}] has entries that are not finite")
    return values, torch.from_numpy(y.astype(np.int64))


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
