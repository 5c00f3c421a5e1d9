"""Imports go down the house only: a package may import from its own layer and from those below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "curvverify"

LAYERS = (
    {"errors", "types"},
    {"numerics"},
    {"spec"},
    {"graph", "ops"},
    {"bounding"},
    {"certificates"},
    {"verification"},
    {"plots", "report", "train"},
    {"plugins", "demo"},
    {"cli"},
)
"""From the bottom up; modules of one layer may import one another."""

RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
TOP = {"__init__", "__main__"}
"""The package's own front door may import everything."""


def layer_of(path: Path) -> str:
    """The part of the house a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[tuple[str, int]]:
    """(part of the house, line) for every import of our own in the file, at the top or inside functions."""
    found: set[tuple[str, int]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "curvverify" else [module]
        for name in names:
            head, *rest = name.split(".")
            if head == "curvverify" and rest:
                found.add((rest[0], node.lineno))
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = layer_of(path)
    if own in TOP:
        return
    assert own in RANK, f"{own} has no layer yet: give it one in {Path(__file__).name}"
    for part, line in imported_parts(path):
        assert part in RANK, f"{path}:{line}: imports {part!r}, which is no part of the house"
        assert RANK[part] <= RANK[own], f"{path}:{line}: {own} may not import {part}, which lies above it"


def test_every_layer_is_found() -> None:
    """The walk sees the package: an empty walk would pass everything."""
    assert {"errors", "types", "spec", "graph", "bounding", "verification", "cli"} <= {layer_of(path) for path in FILES}
