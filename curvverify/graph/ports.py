"""The inputs and outputs of a model as the user named them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Port:
    """One input or output of a model, with its shape as used here (batch 1)."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
