"""Bounds on the values of a network as files and dictionaries that other tools take and give.

A file of bounds states lower <= value <= upper, entry by entry, for values of the ONNX file by name, over a box of
inputs.  JSON and npz hold the same: `kind`, `format`, the hash of the model, the box, and the values; a file without
hash or box (another tool's) is taken at its word.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from curvverify.bounding.region import RegionLike, region_of
from curvverify.errors import UnreadableError, UsageError
from curvverify.types import Interval
from curvverify.verification.given import Given, given

if TYPE_CHECKING:
    from curvverify.graph import LoadedModel
    from curvverify.verification.node_bounds import BoundsReport

KIND, FORMAT = "curvverify bounds", 1
SUFFIXES = (".json", ".npz", ".vnnlib")


@dataclass(frozen=True, eq=False)
class ValueBounds:
    """Bounds (float64) on one value, flat or in the value's shape; infinite where nothing is known."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BoundsFile:
    """Bounds by value name, what they are about, and where they come from."""

    values: Mapping[str, ValueBounds]
    model_sha256: str = ""
    box: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Lower and upper ends (n,) of the inputs over which they hold."""
    nameless: tuple[str, ...] = ()
    """Values of the model without bounds: constants, and what was folded into others."""
    source: str = ""
    sha256: str = field(default="")


def exported(report: BoundsReport, loaded: LoadedModel, single: bool = False) -> BoundsFile:
    """The report's bounds by the names of the model's values; `single`: rounded outward to float32 numbers.

    A torch module has no such names: its nodes' own are taken.
    """
    from curvverify.graph.onnx_import.module import OnnxModule

    found: dict[str, ValueBounds] = {}
    for node in report.nodes:
        bounds = Interval(node.lower, node.upper)
        for name in node.values if loaded.content is not None else (node.name,):
            low, high = (t.numpy() for t in (outward(bounds) if single else bounds).both)
            found[name] = ValueBounds(low, high)
    steps = loaded.module.steps if isinstance(loaded.module, OnnxModule) else []
    nameless = tuple(name for step in steps for name in step.outputs if name and name not in found)
    first = report.nodes[0]
    box = (first.lower.flatten().numpy(), first.upper.flatten().numpy())
    return BoundsFile(found, loaded.sha256, box, nameless, loaded.name)


def outward(bounds: Interval) -> Interval:
    """The smallest enclosing bounds whose ends are float32 numbers, in float64."""
    low, high = bounds.lower.to(torch.float32), bounds.upper.to(torch.float32)
    infinity = torch.full_like(low, torch.inf)
    low = torch.where(low.double() > bounds.lower, torch.nextafter(low, -infinity), low)
    high = torch.where(high.double() < bounds.upper, torch.nextafter(high, infinity), high)
    return Interval(low.double(), high.double())


def write_bounds(path: Path, bounds: BoundsFile) -> None:
    """Write a .json or .npz file; UsageError for another suffix, or where it cannot be written."""
    head: dict[str, Any] = {"kind": KIND, "format": FORMAT, "model": bounds.source, "nameless": list(bounds.nameless)}
    head["model_sha256"] = bounds.model_sha256
    try:
        if path.suffix == ".json":
            if bounds.box is not None:
                head["box"] = {"lower": _listed(bounds.box[0]), "upper": _listed(bounds.box[1])}
            values = {n: {"lower": _listed(v.lower), "upper": _listed(v.upper)} for n, v in bounds.values.items()}
            path.write_text(json.dumps(head | {"values": values}) + "\n", encoding="utf-8")
        elif path.suffix == ".npz":
            arrays = {f"{side}:{n}": getattr(v, side) for n, v in bounds.values.items() for side in ("lower", "upper")}
            if bounds.box is not None:
                arrays |= {"box:lower": bounds.box[0], "box:upper": bounds.box[1]}
            with path.open("wb") as stream:
                np.savez_compressed(stream, **{"head": np.array(json.dumps(head)), **arrays})  # type: ignore[arg-type]
        else:
            raise UsageError(f"{path}: bounds are written as {', '.join(SUFFIXES)}")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def read_bounds(path: Path) -> BoundsFile:
    """The bounds of a .json or .npz file; UnreadableError names the file and what is wrong with it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from error
    try:
        head, values, box = _read_npz(path) if content[:2] == b"PK" else _read_json(content)
        found = {name: _checked(path, name, low, high) for name, (low, high) in values.items()}
        ends = None if box is None else (np.asarray(box[0], float).ravel(), np.asarray(box[1], float).ravel())
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UnreadableError(f"{path}: not a file of bounds: {error}") from error
    if not found:
        raise UnreadableError(f"{path}: no bounds in it: expected values by name, each with lower and upper")
    digest = hashlib.sha256(content).hexdigest()
    return BoundsFile(found, str(head.get("model_sha256", "")), ends, (), str(path), digest)


Pair = tuple[Any, Any]


def _read_json(content: bytes) -> tuple[dict[str, Any], dict[str, Pair], Pair | None]:
    data = json.loads(content)
    values = {name: (entry["lower"], entry["upper"]) for name, entry in data["values"].items()}
    box = data.get("box")
    return data, values, None if box is None else (box["lower"], box["upper"])


def _read_npz(path: Path) -> tuple[dict[str, Any], dict[str, Pair], Pair | None]:
    with np.load(path, allow_pickle=False) as arrays:
        head = json.loads(str(arrays["head"])) if "head" in arrays else {}
        names = [key.removeprefix("lower:") for key in arrays.files if key.startswith("lower:")]
        values = {name: (arrays[f"lower:{name}"], arrays[f"upper:{name}"]) for name in names}
        box = (arrays["box:lower"], arrays["box:upper"]) if "box:lower" in arrays else None
    return head, values, box


def _checked(path: Path, name: str, lower: Any, upper: Any) -> ValueBounds:
    low, high = (np.asarray(side, dtype=np.float64) for side in (lower, upper))
    if low.shape != high.shape:
        raise UnreadableError(f"{path}: value {name!r}: {low.size} lower bounds and {high.size} upper bounds")
    if np.isnan(low).any() or np.isnan(high).any():
        raise UnreadableError(f"{path}: value {name!r}: a bound is not a number")
    if (low > high).any():
        k = int(np.argmax((low > high).ravel()))
        ends = f"[{low.ravel()[k]:.9g}, {high.ravel()[k]:.9g}]"
        raise UnreadableError(f"{path}: value {name!r}, entry {k}: its bounds are empty: {ends}")
    return ValueBounds(low, high)


def _listed(values: NDArray[np.float64]) -> Any:
    """Nested lists whose infinite entries are the strings that Python's float reads."""
    if np.isfinite(values).all():
        return values.tolist()
    return [_listed(part) for part in values] if values.ndim else str(float(values))


def given_file(path: Path, loaded: LoadedModel, region: RegionLike) -> Given:
    """The bounds of a file for the network and the region, as a proof may rest on them.

    Raises UsageError where the file is about another model or does not cover the region; see `verification.given`.
    """
    file = read_bounds(path)
    if file.model_sha256 and file.model_sha256 != loaded.sha256:
        raise UsageError(
            f"{path} holds bounds of another model: sha256 {file.model_sha256[:12]}..., {loaded.name} has "
            f"{loaded.sha256[:12]}..."
        )
    box = region_of(region, loaded.graph.input_shape).box
    lower, upper = box.lower.flatten(), box.upper.flatten()
    if file.box is not None:
        low, high = (torch.from_numpy(end) for end in file.box)
        if low.numel() != lower.numel():
            raise UsageError(f"{path} is about boxes of {low.numel()} inputs, {loaded.name} has {lower.numel()}")
        outside = (low > lower) | (high < upper)
        if bool(outside.any()):
            k = int(outside.to(torch.int8).argmax())
            raise UsageError(
                f"{path} holds for input {k} in [{low[k]:.9g}, {high[k]:.9g}], which does not cover "
                f"[{lower[k]:.9g}, {upper[k]:.9g}]"
            )
    values = {n: Interval(torch.from_numpy(v.lower), torch.from_numpy(v.upper)) for n, v in file.values.items()}
    return given(loaded, Interval(lower, upper), values, f"{path} (sha256 {file.sha256[:16]})")
