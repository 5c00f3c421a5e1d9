"""What a converter is: from a node's attributes to a function from its inputs to its outputs.

Inputs that are left out are None; a converter sees through attributes that became inputs in a later opset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Attributes = Mapping[str, Any]
Converter = Callable[[Attributes], Callable[..., Any]]


def ints(value: Tensor | Sequence[int] | None) -> list[int] | None:
    """A list of integers given as an attribute or as a constant input."""
    if value is None:
        return None
    return [int(v) for v in (value.flatten().tolist() if isinstance(value, Tensor) else value)]


def plain(function: Callable[..., Any]) -> Converter:
    """An operator without attributes."""
    return lambda attributes: function
