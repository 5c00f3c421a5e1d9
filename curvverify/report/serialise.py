"""Result records as JSON and back: whatever is written reads back equal.

Numbers that JSON cannot hold are the strings "inf", "-inf" and "nan"; tensors are nested lists (float64 when read).
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from importlib import import_module
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from curvverify.errors import UnreadableError

FORMAT = 1
RECORDS = {
    "Result": "curvverify.verification.result",
    "BoundsReport": "curvverify.verification.node_bounds",
    "CurvatureReport": "curvverify.bounding.constants.report",
    "CurvatureEstimates": "curvverify.bounding.constants.estimates",
}
SPECIAL = ("inf", "-inf", "nan")


def to_json(record: object) -> dict[str, Any]:
    """The record as plain JSON values, marked with its kind and the version of this format."""
    kind = type(record).__name__
    if kind not in RECORDS:
        raise TypeError(f"no JSON form for {kind}; known: {', '.join(RECORDS)}")
    return {"kind": kind, "format": FORMAT, **plain(record)}


def from_json(data: Mapping[str, Any]) -> Any:
    """The record that `to_json` wrote; UnreadableError where the data is something else."""
    kind, version = data.get("kind"), data.get("format")
    if kind not in RECORDS or version != FORMAT:
        raise UnreadableError(f"not a record of curvverify (kind {kind!r}, format {version!r})")
    record = getattr(import_module(RECORDS[kind]), kind)
    try:
        return _decode(record, {k: v for k, v in data.items() if k not in ("kind", "format")})
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"not a complete {kind} record: {error}") from error


def plain(value: Any) -> Any:
    """Plain JSON values: records as objects, tensors as lists, numbers that JSON cannot hold as strings."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().double().tolist())
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"no JSON form for {type(value).__name__}")


@lru_cache
def _hints(record: type) -> dict[str, Any]:
    return get_type_hints(record)


def _decode(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(next(a for a in arguments if a is not type(None)), value)
    if origin in (tuple, list):
        return origin(_decode_entries(arguments, value))
    if origin is not None and issubclass(origin, Mapping):
        return {key: _decode(arguments[1], entry) for key, entry in value.items()}
    if is_dataclass(kind):
        hints = _hints(kind)  # type: ignore[arg-type]
        return kind(**{name: _decode(hints[name], entry) for name, entry in value.items()})  # type: ignore[operator]
    if kind is Tensor:
        return torch.tensor(_restored(value), dtype=torch.float64)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind in (float, int):
        return kind(value)
    return _restored(value) if kind in (object, Any) else value


def _decode_entries(arguments: tuple[Any, ...], value: list[Any]) -> list[Any]:
    """Entries of a list or tuple: one type for all (`tuple[X, ...]`, `list[X]`), or one each."""
    if len(arguments) == 1 or arguments[-1] is Ellipsis:
        return [_decode(arguments[0], entry) for entry in value]
    return [_decode(kind, entry) for kind, entry in zip(arguments, value, strict=True)]


def _restored(value: Any) -> Any:
    """Untyped JSON with the special floats restored."""
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    return float(value) if value in SPECIAL else value
