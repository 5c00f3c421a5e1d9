"""Training and validation samples of an .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curvverify.errors import UnreadableError, UsageError
from curvverify.spec.dataset import read_split

SHUFFLE = 20240
"""Which samples are set aside does not depend on the run's seed, so that runs compare."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Inputs in float32, images as (N, C, H, W), and labels; the validation part is never trained on."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])


def read_training(path: Path, validation: int, limit: int = 0) -> TrainingData:
    """x_train and y_train of the file, `validation` samples of them set aside; bytes are divided by 255.

    Images (H, W) get one channel, (H, W, C) with C <= 4 become (C, H, W).
    UnreadableError and UsageError where that makes no sense.
    """
    x, y = read_split(path, "train")
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise UnreadableError(f"{path}: x_train is {x.dtype}; bytes or floating-point inputs are needed")
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise UnreadableError(f"{path}: y_train must be {len(x)} whole numbers, not {y.dtype} of shape {y.shape}")
    if not len(x) or int(y.min()) < 0:
        raise UnreadableError(f"{path}: y_train must hold classes from 0 up")
    count = min(limit or len(x), len(x))
    if not 0 < validation < count:
        raise UsageError(f"--validation {validation}: between 1 and {count - 1} of the {count} training samples")
    inputs = images(x)
    if not bool(inputs.isfinite().all()):
        raise UnreadableError(f"{path}: x_train has entries that are NaN or infinite")
    labels = torch.from_numpy(y.astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(SHUFFLE).permutation(len(x))[:count])
    held, used = order[:validation], order[validation:]
    return TrainingData(inputs[used], labels[used], inputs[held], labels[held], int(labels.max()) + 1)


def images(x: np.ndarray) -> Tensor:
    """Inputs as networks of this package take them, in float32."""
    values = torch.from_numpy(x.astype(np.float32))
    if x.dtype == np.uint8:
        values = values / 255.0
    if values.dim() == 3:
        values = values.unsqueeze(1)
    elif values.dim() == 4 and values.shape[-1] <= 4 < values.shape[1]:
        values = values.permute(0, 3, 1, 2).contiguous()
    return values
