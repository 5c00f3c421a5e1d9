"""A trained module as an ONNX file: one node per layer, normalisation folded in, readable by every verifier."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from curvverify.errors import UnsupportedError
from curvverify.graph.layers import Graph, Node
from curvverify.ops.base import Elementwise
from curvverify.ops.elementwise.softplus import Softplus
from curvverify.ops.linear import Concatenate, Convolution, Dense, Diagonal, Reshape, Sum, TorchLinear
from curvverify.train.layers import settle
from curvverify.train.live import LiveModule

OPSET = 20
IR_VERSION = 10

PLAIN = {"Relu", "Tanh", "Sigmoid", "Mish", "Gelu", "GeluTanh", "Silu", "Elu"}


def to_onnx(module: nn.Module, shape: tuple[int, ...], name: str = "network") -> onnx.ModelProto:
    """The module in evaluation mode, with inputs of `shape` (without the batch, which is 1), weights in float32.

    Spectrally normalised layers get their rigorous norms first (`settle`), in a copy.  UnsupportedError for an
    operation that `LiveModule` or this file does not know.
    """
    module = copy.deepcopy(module).cpu().eval()
    settle(module)
    writer = _Writer(LiveModule(module, shape).graph())
    proto = writer.model(name)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def save_onnx(module: nn.Module, shape: tuple[int, ...], path: str | os.PathLike[str]) -> None:
    """Write `to_onnx` to a file."""
    onnx.save(to_onnx(module, shape, Path(path).stem), path)


@dataclass(eq=False)
class _Writer:
    graph: Graph
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def model(self, name: str) -> onnx.ModelProto:
        values = ["X"]
        for v, node in enumerate(self.graph.nodes[1:], 1):
            target = "Y" if v == self.graph.output else node.name
            self._write(node, [values[i] for i in node.inputs], target)
            values.append(target)
        ends = [
            helper.make_tensor_value_info(label, TensorProto.FLOAT, [1, *shape])
            for label, shape in (("X", self.graph.input_shape), ("Y", self.graph.output_shape))
        ]
        graph = helper.make_graph(self.nodes, name, ends[:1], ends[1:], self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="curvverify")
        proto.ir_version = IR_VERSION
        return proto

    def constant(self, name: str, value: Tensor | float | list[int]) -> str:
        if isinstance(value, Tensor):
            array: np.ndarray = value.detach().numpy().astype(np.float32)
        else:
            array = np.array(value, np.int64 if isinstance(value, list) else np.float32)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def emit(self, kind: str, inputs: list[str], target: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [target], name=target, **attributes))

    def _write(self, node: Node, inputs: list[str], target: str) -> None:
        op = node.op
        if isinstance(op, Dense) and len(node.shape) == 1:
            names = [self.constant(f"{node.name}.weight", op.weight)]
            names += [] if op.bias is None else [self.constant(f"{node.name}.bias", op.bias)]
            self.emit("Gemm", [*inputs, *names], target, transB=1)
        elif isinstance(op, Convolution):
            self._convolution(node, op, inputs, target)
        elif isinstance(op, Diagonal):
            self._scaling(node, op, inputs[0], target)
        elif isinstance(op, Sum):
            self._sum(node, op, inputs, target)
        elif isinstance(op, Reshape):
            self.emit("Reshape", [*inputs, self.constant(f"{node.name}.shape", [1, *op.shape_out])], target)
        elif isinstance(op, Concatenate):
            self.emit("Concat", inputs, target, axis=op.axis + 1)
        elif isinstance(op, Elementwise):
            self._activation(node, op, inputs[0], target)
        elif isinstance(op, TorchLinear):
            self._pooling(op, inputs, target)
        else:
            raise UnsupportedError(f"node {node.name!r}: no ONNX form of {op.name} is written yet")

    def _convolution(self, node: Node, op: Convolution, inputs: list[str], target: str) -> None:
        names = [self.constant(f"{node.name}.weight", op.weight)]
        names += [] if op.bias is None else [self.constant(f"{node.name}.bias", op.bias)]
        attributes = {
            "strides": list(op.stride),
            "pads": [*op.padding, *op.padding],
            "dilations": list(op.dilation),
            "group": op.groups,
        }
        self.emit("ConvTranspose" if op.transposed else "Conv", [*inputs, *names], target, **attributes)

    def _scaling(self, node: Node, op: Diagonal, source: str, target: str) -> None:
        if op.factor is not None:
            scaled = target if op.shift is None else f"{node.name}.scaled"
            self.emit("Mul", [source, self.constant(f"{node.name}.factor", op.factor)], scaled)
            source = scaled
        if op.shift is not None:
            self.emit("Add", [source, self.constant(f"{node.name}.shift", op.shift)], target)

    def _sum(self, node: Node, op: Sum, inputs: list[str], target: str) -> None:
        terms = []
        for k, (c, x) in enumerate(zip(op.coefficients, inputs, strict=True)):
            if c != 1.0:
                self.emit("Mul", [x, self.constant(f"{node.name}.coefficient{k}", c)], f"{node.name}.term{k}")
                x = f"{node.name}.term{k}"
            terms.append(x)
        self.emit("Sum", terms, target)

    def _activation(self, node: Node, op: Elementwise, source: str, target: str) -> None:
        if isinstance(op, Softplus):
            if op.beta == 1.0:
                self.emit("Softplus", [source], target)
                return
            beta = self.constant(f"{node.name}.beta", op.beta)
            self.emit("Mul", [source, beta], f"{node.name}.in")
            self.emit("Softplus", [f"{node.name}.in"], f"{node.name}.out")
            self.emit("Div", [f"{node.name}.out", beta], target)
        elif op.name == "Silu":
            self.emit("Sigmoid", [source], f"{node.name}.gate")
            self.emit("Mul", [source, f"{node.name}.gate"], target)
        elif op.name in ("Gelu", "GeluTanh"):
            self.emit("Gelu", [source], target, approximate="tanh" if op.name == "GeluTanh" else "none")
        elif op.name == "Elu":
            self.emit("Elu", [source], target, alpha=float(op.alpha))  # type: ignore[attr-defined]
        elif op.name in PLAIN:
            self.emit(op.name, [source], target)
        else:
            raise UnsupportedError(f"node {node.name!r}: no ONNX form of {op.name} is written yet")

    def _pooling(self, op: TorchLinear, inputs: list[str], target: str) -> None:
        part = op.function
        if isinstance(part, nn.AdaptiveAvgPool2d) and part.output_size in (1, (1, 1)):
            self.emit("GlobalAveragePool", inputs, target)
        elif isinstance(part, nn.AvgPool2d) and not part.ceil_mode and part.divisor_override is None:
            kernel, stride, padding = (
                [v, v] if isinstance(v, int) else list(v) for v in (part.kernel_size, part.stride, part.padding)
            )
            self.emit(
                *("AveragePool", inputs, target),
                kernel_shape=kernel,
                strides=stride,
                pads=[*padding, *padding],
                count_include_pad=int(part.count_include_pad),
            )
        else:
            raise UnsupportedError(f"no ONNX form of {part} is written yet")
