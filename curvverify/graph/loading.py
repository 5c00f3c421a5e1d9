"""An ONNX file, a ModelProto or a torch module to a layer graph."""

from __future__ import annotations

import copy
import gzip
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curvverify.errors import UnreadableError, UsageError
from curvverify.graph.building import Builder, Var
from curvverify.graph.layers import Graph
from curvverify.graph.patterns import recognised
from curvverify.graph.ports import Port
from curvverify.graph.simplify import named, simplified, without_dead
from curvverify.graph.tracing import Source, Tracer, trace

if TYPE_CHECKING:
    from onnx import ModelProto

SEED = 20240
"""Of the sample input on which a network is traced."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network read in: its layer graph in float64, and what is needed to run the original."""

    graph: Graph
    name: str
    path: str | None
    sha256: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int | None = None
    content: bytes | None = None
    """The ONNX file, unpacked; None for a torch module."""
    module: nn.Module | None = None
    """The torch module in float64: the user's own, or the ONNX model converted."""
    notes: tuple[str, ...] = ()
    """Where the graph is not the network exactly: constants of recognised activations, within 1e-6."""


def load(
    model: str | os.PathLike[str] | ModelProto | nn.Module,
    shapes: Mapping[str, Sequence[int]] | Sequence[int] | Sequence[Sequence[int]] | None = None,
    check: bool = True,
    name: str | None = None,
    samples: int = 8,
) -> LoadedModel:
    """The layer graph of a network: an ONNX path (.gz too), a ModelProto, or a torch module.

    `shapes` gives the input shape of a torch module (or a list of them), or shapes of ONNX inputs with dynamic
    dimensions by name.  The graph is compared with the traced module on two random inputs; where `check`, on
    `samples` of them, and with ONNX Runtime too.
    Raises UnreadableError, UnsupportedModelError, ReplayError.
    """
    if isinstance(model, nn.Module):
        return _load_module(model, shapes, check, name, samples)
    return _load_onnx(model, shapes, check, name, samples)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A file's content, unpacked where it is gzip by its first bytes; PATH.gz serves where PATH is missing."""
    place = Path(path)
    if not place.exists() and Path(f"{place}.gz").exists():
        place = Path(f"{place}.gz")
    try:
        content = place.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError) as reason:
        raise UnreadableError(f"{path}: {reason}") from reason


def _load_onnx(
    model: str | os.PathLike[str] | ModelProto, shapes: Any, check: bool, name: str | None, samples: int
) -> LoadedModel:
    from curvverify.graph import replay
    from curvverify.graph.onnx_import import module as onnx_module
    from curvverify.graph.onnx_import import prepare

    if isinstance(model, str | os.PathLike):
        path, content, folder = str(model), read_bytes(model), Path(model).parent
        name = name or Path(model).name
    else:
        path, content, folder = None, model.SerializeToString(), None
        name = name or model.graph.name or "model"
    digest = hashlib.sha256(content).hexdigest()
    parsed = prepare.parsed(content, name, folder)
    if len(content) < parsed.ByteSize():  # tensors have come from other files
        content = parsed.SerializeToString()
    opset = prepare.default_opset(parsed)
    fixed = prepare.with_shapes(parsed, shapes, name)
    inputs, outputs = prepare.input_ports(fixed, name), list(fixed.graph.output)
    module = onnx_module.converted(prepare.prepared(fixed, onnx_module.known), name)
    builder, outs = trace(module.trace, [_sample(p.shape) for p in inputs], name)
    graph, notes = finished(builder, outs)
    ends = tuple(Port(v.name, o.shape, prepare.element_type(v)) for v, o in zip(outputs, outs, strict=True))
    loaded = LoadedModel(graph, name, path, digest, inputs, ends, opset, content, module, notes)
    if check:
        replay.check(loaded, samples)
    else:
        replay.check_trace(loaded)
    return loaded


def _load_module(model: nn.Module, shapes: Any, check: bool, name: str | None, samples: int) -> LoadedModel:
    if not shapes or isinstance(shapes, Mapping):
        raise UsageError("a torch module needs the shape of its input, batch included: load(module, shapes=(1, 784))")
    several = [tuple(s) for s in shapes] if isinstance(shapes[0], Sequence) else [tuple(shapes)]
    module = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    name = name or type(model).__name__
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    builder, outs = trace(_module_run(module), [_sample(s) for s in several], name)
    graph, notes = finished(builder, outs)
    inputs = tuple(Port(f"input_{i}" if i else "input", s) for i, s in enumerate(several))
    outputs = tuple(Port(f"output_{i}" if i else "output", o.shape) for i, o in enumerate(outs))
    loaded = LoadedModel(graph, name, None, digest.hexdigest(), inputs, outputs, module=module, notes=notes)
    from curvverify.graph import replay

    if check:
        replay.check(loaded, samples)
    else:
        replay.check_trace(loaded)
    return loaded


def _module_run(module: nn.Module) -> Any:
    """The module as `tracing.trace` runs it: hooks tell which submodule is at work."""

    def call(tracer: Tracer, inputs: list[Tensor]) -> Any:
        stack: list[Source] = []

        def enter(path: str) -> Any:
            def hook(part: nn.Module, _: Any) -> None:
                stack.append(tracer.source)
                tracer.source = Source(path, "")

            return hook

        def leave(*_: Any) -> None:
            tracer.source = stack.pop()

        handles = []
        for path, part in module.named_modules():
            if path:
                handles += [part.register_forward_pre_hook(enter(path)), part.register_forward_hook(leave)]
        try:
            return module(*inputs)
        finally:
            for handle in handles:
                handle.remove()

    return call


def _sample(shape: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def finished(builder: Builder, outputs: Sequence[Var]) -> tuple[Graph, tuple[str, ...]]:
    """The graph of the outputs, flattened and concatenated where there are several, and notes on what is not exact.

    A single output that is a scalar gets the shape (1,).
    """
    builder.source = "output"
    flat = [builder.reshape(o, (o.size,)) for o in outputs]
    out = flat[0] if outputs[0].shape == () else outputs[0]
    out = out if len(outputs) == 1 else builder.cat(flat, 0)
    nodes, notes = recognised(simplified(without_dead(builder.nodes, out.node)))
    return named(simplified(nodes)), notes
