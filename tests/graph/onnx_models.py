"""Tiny ONNX models for the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
RANDOM = np.random.default_rng(5)


def array(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Random float32 constants."""
    return RANDOM.uniform(low, high, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def network(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str] | None],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> ModelProto:
    """A model of float32 inputs; outputs are declared without shapes."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 21 else 10)


def single(
    operator: str,
    shape: Sequence[int],
    *constants: np.ndarray | None,
    opset: int = 17,
    outputs: int = 1,
    x_at: int = 0,
    domain: str = "",
    **attributes: Any,
) -> ModelProto:
    """One operator applied to the input X and constants; X is the argument number `x_at`."""
    names = [f"C{i}" if c is not None else "" for i, c in enumerate(constants)]
    names.insert(x_at, "X")
    values = {f"C{i}": c for i, c in enumerate(constants) if c is not None}
    results = ["Y"] if outputs == 1 else [f"Y{i}" for i in range(outputs)]
    node = helper.make_node(operator, names, results, name="the_node", domain=domain, **attributes)
    domains = [domain] if domain else []
    return network([node], {"X": shape}, results, values, opset, domains)


def versions(
    operator: str, candidates: Sequence[int] = (7, 9, 11, 13, 17, 18, 21), since: int = 1, until: int = 99
) -> list[int]:
    """One opset for every version of an operator among the candidates: the latest that has it."""
    chosen: dict[int, int] = {}
    for opset in candidates:
        if since <= opset <= until:
            try:
                schema = onnx.defs.get_schema(operator, max_inclusive_version=opset, domain="")
            except onnx.defs.SchemaError:
                continue
            chosen[schema.since_version] = opset
    return sorted(chosen.values())
