"""An ONNX graph as a torch module: every node converted, and run one after the other.

Our own converters come first, then onnx2torch's.  The only module that imports onnx2torch.
"""

from __future__ import annotations

import inspect
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from curvverify.errors import UnreadableError, UnsupportedError, UnsupportedModelError, UnsupportedNode
from curvverify.graph.onnx_import.converters import CONVERTERS, TYPES_ONLY
from curvverify.graph.onnx_import.prepare import Prepared
from curvverify.graph.tracing import Source, Tracer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def import_onnx2torch() -> types.ModuleType:
    """onnx2torch, without torchvision: only two object-detection operators use it, and its import takes seconds."""
    if "onnx2torch" in sys.modules:
        return sys.modules["onnx2torch"]
    placeholders: dict[str, types.ModuleType] = {}
    if "torchvision" not in sys.modules:
        operators = types.ModuleType("torchvision.ops")
        for name in ("box_convert", "nms", "roi_align"):
            setattr(operators, name, None)
        package = types.ModuleType("torchvision")
        package.__dict__["ops"] = operators
        placeholders = {"torchvision": package, "torchvision.ops": operators}
    sys.modules.update(placeholders)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import onnx2torch
    finally:
        for name in placeholders:
            del sys.modules[name]
    return onnx2torch


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor | None) -> Any:
        return self.function(*inputs)


@dataclass(frozen=True, eq=False)
class Step:
    """One ONNX node: its torch module, and the names of the values it takes and gives."""

    source: Source
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, known: dict[str, Any]) -> tuple[Any, ...]:
        """The node's outputs.  onnx2torch's modules take inputs after one that is left out by name."""
        arguments = [known[name] if name else None for name in self.inputs]
        while arguments and arguments[-1] is None:
            arguments.pop()
        named: dict[str, Any] = {}
        if any(a is None for a in arguments) and not isinstance(self.module, Applied):
            first = next(place for place, a in enumerate(arguments) if a is None)
            parameters = list(inspect.signature(self.module.forward).parameters)
            late = zip(parameters[first:], arguments[first:], strict=False)
            named, arguments = {k: v for k, v in late if v is not None}, arguments[:first]
        result = self.module(*arguments, **named)
        return tuple(result) if isinstance(result, tuple | list) else (result,)


class OnnxModule(nn.Module):
    """The network of an ONNX graph in float64, inputs and outputs in the graph's order."""

    def __init__(self, steps: list[Step], constants: dict[str, Tensor], inputs: list[str], outputs: list[str]):
        super().__init__()
        self.steps, self.inputs, self.outputs = steps, inputs, outputs
        self.parts = nn.ModuleList(step.module for step in steps).double().eval().requires_grad_(False)
        self.constants = {k: v.double() if v.is_floating_point() else v for k, v in constants.items()}

    def values(
        self,
        *inputs: Tensor,
        observe: Callable[[Source], None] = lambda source: None,
        found: Callable[[str, Any], None] = lambda name, value: None,
    ) -> dict[str, Any]:
        """Every value of the graph by name, told one by one as they are `found`."""
        known: dict[str, Any] = {**self.constants, **dict(zip(self.inputs, inputs, strict=True))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in self.steps:
                observe(step.source)
                for name, value in zip(step.outputs, step(known), strict=False):
                    known[name] = value
                    found(name, value)
        return known

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        known = self.values(*inputs)
        return tuple(known[name] for name in self.outputs)

    def trace(self, tracer: Tracer, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """The module's outputs, telling the tracer which node is at work and what to say if it fails."""

        def observe(source: Source) -> None:
            tracer.source = source

        for name, value in zip(self.inputs, inputs, strict=True):
            tracer.label(name, value)
        try:
            known = self.values(*inputs, observe=observe, found=tracer.label)
        except NotImplementedError as reason:
            tracer.refuse(tracer.source.operator, None, str(reason))
            raise UnsupportedModelError(tracer.model, tracer.unsupported) from reason
        except (RuntimeError, ValueError, IndexError, TypeError) as reason:
            at = f"node {tracer.source.name!r} ({tracer.source.operator})"
            raise UnsupportedError(f"{tracer.model}: {at} cannot be executed: {reason}") from reason
        return tuple(known[name] for name in self.outputs)


def known(node: NodeProto, opset: int) -> bool:
    """Whether there is a converter for the node at this version of the default operator set."""
    return _own(node) is not None or _theirs(node, opset) is not None


def _own(node: NodeProto) -> Callable[[dict[str, Any]], Callable[..., Any]] | None:
    return CONVERTERS.get(node.domain, {}).get(node.op_type)


def _theirs(node: NodeProto, opset: int) -> Callable[..., Any] | None:
    """onnx2torch's converter for the operator at that opset, or at an earlier one with the same meaning."""
    import_onnx2torch()
    from onnx2torch.node_converters.registry import get_converter

    earlier = range(opset, 0, -1) if node.op_type in TYPES_ONLY and not node.domain else (opset,)
    for version in earlier:
        try:
            return get_converter(node.op_type, version, node.domain)
        except NotImplementedError:
            continue
    return None


def _attributes(node: NodeProto) -> dict[str, Any]:
    import onnx.helper

    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {"outputs": len(node.output)} | {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def _converted(node: NodeProto, graph: Any, source: Source, opset: int) -> Step:
    """One node; NotImplementedError and its like say why not."""
    own = _own(node)
    if own is not None:
        return Step(source, Applied(own(_attributes(node))), tuple(node.input), tuple(node.output))
    theirs = _theirs(node, opset)
    if theirs is None:
        where = f"domain {node.domain!r}" if node.domain else "ONNX"
        raise NotImplementedError(
            f"this operator of {where} is not implemented; express it by others, or open an issue"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, mapping = theirs(graph.nodes[node.name], graph)
    return Step(source, module, tuple(mapping.inputs), tuple(mapping.outputs))


def converted(prepared: Prepared, path: str) -> OnnxModule:
    """The prepared model as a torch module; raises UnsupportedModelError listing every unknown node."""
    import_onnx2torch()
    from onnx2torch.onnx_graph import OnnxGraph

    model = prepared.model
    graph = OnnxGraph(model.graph)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    defined = {value.name for value in model.graph.input} | graph.initializers.keys() | {""}
    steps: list[Step] = []
    problems: list[tuple[Source, str, str]] = []
    for node in model.graph.node:
        source = prepared.source(node)
        if lost := [name for name in node.input if name not in defined]:
            raise UnreadableError(f"{path}: node {source.name!r} uses {lost[0]!r}, which no earlier node gives")
        defined.update(node.output)
        try:
            steps.append(_converted(node, graph, source, opsets.get(node.domain, 1)))
        except (NotImplementedError, KeyError, ValueError, RuntimeError) as reason:
            problems.append((source, node.output[0], str(reason)))
    if problems:
        shapes = _shapes(model)
        nodes = [UnsupportedNode(s.name, s.operator, s.opset, shapes.get(out), why) for s, out, why in problems]
        raise UnsupportedModelError(path, nodes)
    constants = {name: value.to_torch() for name, value in graph.initializers.items()}
    return OnnxModule(steps, constants, list(graph.input_values), list(graph.output_values))


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The inferred shapes of values, as far as they are known."""
    import onnx
    import onnx.shape_inference

    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    values = [v for v in [*inferred.value_info, *inferred.output] if v.type.tensor_type.HasField("shape")]
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
