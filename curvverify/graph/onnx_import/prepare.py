"""An ONNX model made ready for conversion: shapes fixed, constants inlined, node names unique, opset raised."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curvverify.errors import UnreadableError, UnsupportedError, UsageError
from curvverify.graph.ports import Port
from curvverify.graph.tracing import Source

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

UPGRADED_OPSET = 17
"""The opset a model is raised to where its own is older than the converters."""


def default_opset(model: ModelProto) -> int | None:
    """The version of ONNX's own operator set that the model imports."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return max(versions) if versions else None


def parsed(content: bytes, name: str, folder: Path | None = None) -> ModelProto:
    """The model in a file's content, with the tensors it keeps in other files of its folder."""
    import onnx
    import onnx.external_data_helper
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as reason:
        raise UnreadableError(f"{name}: not an ONNX model: {reason}") from reason
    if not model.graph.output:
        raise UnreadableError(f"{name}: not an ONNX model, or one without outputs")
    if default_opset(model) is None and any(n.domain in ("", "ai.onnx") for n in model.graph.node):
        raise UnreadableError(f"{name}: the model does not say which operator set it uses")
    if any(map(onnx.external_data_helper.uses_external_data, model.graph.initializer)):
        if folder is None:
            raise UnreadableError(f"{name}: the model keeps tensors in other files; give its path")
        try:
            onnx.external_data_helper.load_external_data_for_model(model, str(folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as reason:
            raise UnreadableError(f"{name}: {reason}") from reason
    return model


# -- shapes --------------------------------------------------------------------------------------------------------


def with_shapes(model: ModelProto, shapes: Mapping[str, Sequence[int]] | None, name: str) -> ModelProto:
    """The model, changed so that its inputs have fixed shapes: batch 1, other dynamic dimensions from `shapes`.

    Shapes of intermediate values and outputs are dropped, for they may speak of the old ones.
    """
    constants = {c.name for c in model.graph.initializer} | {c.values.name for c in model.graph.sparse_initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    wanted = dict(shapes or {})
    problems = [p for value in model.graph.input if (p := _fix(value, wanted.pop(value.name, None)))]
    if wanted:
        problems.append(f"no input is called {', '.join(map(repr, wanted))}")
    if problems:
        raise UsageError(f"{name}: " + "; ".join(problems))
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return model


def _fix(value: ValueInfoProto, shape: Sequence[int] | None) -> str | None:
    """Write an input's shape into its declaration; what is wrong with it, if anything."""
    tensor = value.type.tensor_type
    dims: list[int | str] | None = None
    if tensor.HasField("shape"):
        dims = [d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in tensor.shape.dim]
    if shape is None:
        dynamic = [i for i, d in enumerate(dims or []) if not isinstance(d, int)]
        if dims is None or any(i > 0 for i in dynamic):
            return f"input {value.name!r} has the dynamic shape {dims}; give its shape by name: shapes={{...}}"
        shape = [1 if i in dynamic else int(d) for i, d in enumerate(dims)]
    elif dims is not None:
        fits = len(dims) == len(shape) and all(
            n == d or not isinstance(d, int) for n, d in zip(shape, dims, strict=True)
        )
        if not fits:
            return f"input {value.name!r} has the shape {dims} and cannot take {list(shape)}"
    tensor.ClearField("shape")
    for n in shape:
        tensor.shape.dim.add().dim_value = n
    return None


def input_ports(model: ModelProto, name: str) -> tuple[Port, ...]:
    """The inputs of a model with fixed shapes; UnsupportedError where one is not floating-point."""
    found = [
        Port(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim), element_type(v))
        for v in model.graph.input
    ]
    if wrong := [f"{p.name!r} ({p.dtype})" for p in found if not p.dtype.startswith(("float", "bfloat"))]:
        raise UnsupportedError(f"{name}: inputs must be floating-point; these are not: {', '.join(wrong)}")
    return tuple(found)


def element_type(value: ValueInfoProto) -> str:
    """The element type as ONNX and torch call it; float32 where it is not declared."""
    import onnx.helper

    kind = value.type.tensor_type.elem_type
    return onnx.helper.tensor_dtype_to_np_dtype(kind).name if kind else "float32"


# -- nodes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model whose nodes all have distinct names, with what the user calls them."""

    model: ModelProto
    sources: dict[str, Source]

    def source(self, node: NodeProto) -> Source:
        return self.sources.get(node.name) or Source(node.output[0], node.op_type, default_opset(self.model))


def prepared(model: ModelProto, known: Callable[[NodeProto, int], bool]) -> Prepared:
    """The model, changed: no nodes for constants, identities and dropout, in an opset whose nodes are `known`.

    `known(node, opset)` says whether there is a converter.  The opset is raised only where there is none.
    """
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    for entry in [*model.opset_import, *model.graph.node]:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    sources = _name_nodes(model)
    _inline_constants(model.graph)
    _drop_identities(model.graph)
    opset = default_opset(model) or UPGRADED_OPSET
    if opset < UPGRADED_OPSET and not all(known(node, opset) for node in model.graph.node):
        model = _upgraded(model)
        _inline_constants(model.graph)
        _drop_identities(model.graph)
    return Prepared(model, sources)


def _name_nodes(model: ModelProto) -> dict[str, Source]:
    """Distinct names for all nodes, and what they stand for: the node's own name, or its operator and position."""
    opset = {entry.domain: entry.version for entry in model.opset_import}
    taken: set[str] = set()
    sources: dict[str, Source] = {}
    for place, node in enumerate(model.graph.node):
        base = label = node.name or f"{node.op_type}_{place}"
        count = 0
        while label in taken:
            count += 1
            label = f"{base}/{count}"
        taken.add(label)
        node.name = f"node_{place}"
        sources[node.name] = Source(label, node.op_type, opset.get(node.domain))
    return sources


def _inline_constants(graph: GraphProto) -> None:
    """Constant nodes become initializers, which every converter can see."""
    import onnx

    kept = []
    for node in graph.node:
        tensor = _constant(node) if node.op_type == "Constant" and not node.domain else None
        if tensor is None:
            kept.append(node)
            continue
        stored = graph.initializer.add()
        stored.CopyFrom(tensor)
        stored.name = node.output[0]
    del graph.node[:]
    graph.node.extend(kept)
    if graph.sparse_initializer:
        raise UnsupportedError(f"{graph.name}: sparse initializers; store them densely ({onnx.__name__} can)")


def _constant(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node; None for strings and sparse tensors."""
    import numpy as np
    import onnx.helper
    import onnx.numpy_helper

    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return value
        if attribute.name in ("value_float", "value_floats"):
            return onnx.numpy_helper.from_array(np.asarray(value, dtype=np.float32))
        if attribute.name in ("value_int", "value_ints"):
            return onnx.numpy_helper.from_array(np.asarray(value, dtype=np.int64))
    return None


def _drop_identities(graph: GraphProto) -> None:
    """Identity and Dropout nodes (inference: the same thing) go, unless they give a graph output."""
    outputs = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for place, value in enumerate(node.input):
            node.input[place] = renamed.get(value, value)
        masked = len(node.output) > 1 and bool(node.output[1])
        if node.op_type not in ("Identity", "Dropout") or node.domain or masked:
            kept.append(node)
        elif node.output[0] in outputs:
            del node.input[1:]
            node.op_type = "Identity"
            kept.append(node)
        else:
            renamed[node.output[0]] = node.input[0]
    del graph.node[:]
    graph.node.extend(kept)


def _upgraded(model: ModelProto) -> ModelProto:
    """The model in a newer opset; unchanged where ONNX's converter cannot do it."""
    import onnx
    import onnx.version_converter

    model.ir_version = max(model.ir_version, 8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return onnx.version_converter.convert_version(model, UPGRADED_OPSET)
    except (RuntimeError, onnx.version_converter.ConvertError):
        return model
