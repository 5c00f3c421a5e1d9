"""What the command line says about files: networks with their names, shapes, and the `.gz` fall-back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curvverify.errors import UnreadableError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from curvverify.graph import LoadedModel
    from curvverify.spec.query import Query

SHAPE = re.compile(r"0*[1-9][0-9]*(,0*[1-9][0-9]*)*")
NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Network:
    """One `--network`: the name the query gives it (None where the user left it out) and its file."""

    name: str | None
    path: Path


def existing(path: Path) -> Path:
    """The file, or the one with `.gz` appended, as competition folders store large files; UnreadableError otherwise."""
    from curvverify.spec.text import existing as plain_or_packed

    found = plain_or_packed(path)
    if not found.is_file():
        raise UnreadableError(f"{path}: " + ("a folder, not a file" if path.is_dir() else "no such file"))
    return found


def parse_networks(arguments: Iterable[str]) -> tuple[Network, ...]:
    """`MODEL.onnx`, `f=MODEL.onnx`, or the competition's list `[('f', 'a.onnx'), ...]`, in order."""
    networks: list[Network] = []
    for text in arguments:
        if text.lstrip().startswith("["):
            networks += _parse_list(text)
        elif (named := NAMED.fullmatch(text)) and not Path(text).is_file():
            networks.append(Network(named[1], Path(named[2])))
        else:
            networks.append(Network(None, Path(text)))
    return tuple(networks)


def one_network(networks: tuple[Network, ...]) -> Network:
    """The only network given: a query over several is not supported, and one over none makes no sense."""
    if not networks:
        raise UsageError("no network given: add --network MODEL.onnx, or --network NAME=MODEL.onnx for VNN-LIB 2.0")
    first, *others = networks
    if others:
        given = ", ".join(str(network.path) for network in networks)
        raise UnsupportedError(f"queries over several networks are not supported yet; given: {given}")
    return first


def check_name(network: Network, query: Query) -> None:
    """UsageError where the network was given under a name that the query does not declare."""
    if network.name is not None and query.network and network.name != query.network:
        raise UsageError(
            f"{query.path} declares the network {query.network!r}, but --network names {network.name!r}: "
            f"write --network {query.network}={network.path}"
        )


def check_semantics(query: Query, consent: bool) -> None:
    """UnsupportedError where the query asks for an answer about a floating-point type and the user gave no consent.

    VNN-LIB 2.0: a solver must refuse a query over an ONNX type unless its analysis is sound for that type's own
    arithmetic.  Proofs here are about the network over the real numbers.
    """
    floats = [element_type for element_type in query.element_types if element_type != "real"]
    if not floats or consent:
        return
    raise UnsupportedError(
        f"{query.path}: the query asks about a network computing in {', '.join(floats)}; curvverify proves statements "
        "about the network over the real numbers, without the rounding errors of its execution. Declare the variables "
        "as `real`, or consent with --real-semantics (or CURVVERIFY_REAL_SEMANTICS=1)"
    )


def check_element_types(query: Query, loaded: LoadedModel) -> None:
    """UnreadableError where a declared ONNX type is not the model's own; `real` goes with every type."""
    for output, ports in ((False, loaded.inputs), (True, loaded.outputs)):
        declared = {v.element_type for v in query.variables if v.output == output} - {"real"}
        actual = {port.dtype for port in ports}
        if declared and declared != actual:
            raise UnreadableError(
                f"{query.path} declares {'outputs' if output else 'inputs'} of type {', '.join(sorted(declared))}, but "
                f"those of the network {loaded.name} are {', '.join(sorted(actual))}: declare these, or `real`"
            )


def parse_shapes(arguments: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """`X=1,3,32,32` -> {"X": (1, 3, 32, 32)}."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in arguments:
        name, _, numbers = text.rpartition("=")
        if not name or not SHAPE.fullmatch(numbers):
            raise UsageError(f"--shape {text!r}: write the input's name and its shape, as in --shape X=1,3,32,32")
        shapes[name] = tuple(int(number) for number in numbers.split(","))
    return shapes


def _parse_list(text: str) -> list[Network]:
    """The competition's spelling of several networks: one string that holds a Python list of (name, file) pairs."""
    try:
        pairs = ast.literal_eval(text.strip())
        return [Network(str(name), Path(path)) for name, path in pairs]
    except (ValueError, SyntaxError, TypeError) as error:
        raise UsageError(f"--network {text!r}: not a list of (name, file) pairs: {error}") from error
