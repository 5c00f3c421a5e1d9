"""`curvverify supports --CAPABILITY`: what this tool can do, as the VNN-LIB 2.0 standard's chapter 7 asks it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import typer

from curvverify.errors import UsageError


@dataclass(frozen=True)
class Capability:
    """One question of the standard: its flag, what it asks, and how the lines of the answer come about."""

    flag: str
    help: str
    lines: Callable[[], Iterable[object]]


def _operators() -> Iterable[object]:
    from curvverify.graph import supported_operators

    return sorted(supported_operators())


def _opsets() -> Iterable[object]:
    from curvverify.graph import supported_opsets

    return supported_opsets()


CAPABILITIES = (
    Capability("onnx-opset-versions", "smallest and largest ONNX opset", _opsets),
    Capability("onnx-element-types", "element types the analysis is sound for", lambda: ["real"]),
    Capability("onnx-operators", "ONNX operators, one a line", _operators),
    Capability("onnx-operators-unsat-proofs", "operators with proof objects", lambda: []),
    Capability("vnnlib-versions", "smallest and largest VNN-LIB version", lambda: ["1.0", "2.0"]),
    Capability("hidden-node-theories", "hidden nodes in queries", lambda: ["NH"]),
    Capability("multiple-input-output-theories", "several inputs or outputs", lambda: ["SIO"]),
    Capability("multiple-network-theories", "several networks in one query", lambda: ["SNET"]),
    Capability("multiple-node-comparison-theories", "constraints over several nodes", lambda: ["MNC"]),
    Capability("arithmetic-complexity-theories", "arithmetic in constraints", lambda: ["LIN"]),
    Capability("optimised-disjunctive-reasoning", "disjunctions treated without normal form", lambda: ["false"]),
    Capability("serialise-assignments", "witnesses as ONNX TensorProto files", lambda: ["true"]),
    Capability("unsat-proofs", "proof objects for unsat", lambda: ["false"]),
)


def _one_flag_per_capability(command: Callable[..., None]) -> Callable[..., None]:
    """Spell the table as the command's parameters."""
    parameters = []
    for capability in CAPABILITIES:
        info = typer.Option(f"--{capability.flag}", help=capability.help)
        name = capability.flag.replace("-", "_")
        annotation = Annotated[bool, info]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


@_one_flag_per_capability
def supports(**asked: bool) -> None:
    """Print what this tool supports, one item a line."""
    chosen = [c for c in CAPABILITIES if asked[c.flag.replace("-", "_")]]
    if not chosen:
        raise UsageError(f"ask for a capability: {', '.join('--' + c.flag for c in CAPABILITIES)}")
    for capability in chosen:
        for line in capability.lines():
            typer.echo(line)
