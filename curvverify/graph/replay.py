"""The original model's own answer: ONNX Runtime on the user's bytes, or the torch module.

Used to confirm witnesses, and to refuse a model whose layer graph means something else.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from curvverify.errors import ReplayError
from curvverify.graph.onnx_import.module import OnnxModule
from curvverify.graph.tracing import Widening

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

    from curvverify.graph.loading import LoadedModel

RUNTIME_AGREEMENT = 1e-4
"""Largest deviation of the graph from ONNX Runtime's float32, relative to the largest output."""

MODULE_AGREEMENT = 1e-10
"""Largest deviation of the graph from the module it was traced from, both in float64, relative likewise."""

LOOSE_AGREEMENT = 1e-6
"""The same for a user's torch module, whose softplus jumps by 2e-9 where the function does not, and for a graph whose
constants are not exactly the model's."""

SEED = 71

MOST_VALUES = 20_000_000
"""Largest number of values that the check keeps at a time."""


def session(content: bytes, name: str, threads: int = 1) -> InferenceSession:
    """An ONNX Runtime session on the CPU; ReplayError where it refuses the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as reason:
        newer = "; convert the model to an earlier IR version" if "IR version" in str(reason) else ""
        version = onnxruntime.__version__
        raise ReplayError(f"{name}: ONNX Runtime {version} does not accept the model{newer}: {reason}") from reason


class Replayer:
    """The model as the user gave it, on one flat input at a time."""

    def __init__(self, loaded: LoadedModel, threads: int = 1):
        self.loaded = loaded
        self._session = None if loaded.content is None else session(loaded.content, loaded.name, threads)

    def run(self, x: Tensor) -> Tensor:
        """The outputs, flattened, concatenated and in float32, at a flat (concatenated) input."""
        if self._session is None:
            return _module_values(self.loaded, x.to(torch.float64)).to(torch.float32)
        return torch.cat([torch.as_tensor(o).flatten().to(torch.float32) for o in self._run(self._session, x)])

    def _run(self, runtime: InferenceSession, x: Tensor, names: list[str] | None = None) -> list[Any]:
        feed = {}
        for port, part in zip(self.loaded.inputs, split(self.loaded, x), strict=True):
            feed[port.name] = part.to(getattr(torch, port.dtype)).numpy()
        return list(runtime.run(names or [p.name for p in self.loaded.outputs], feed))

    def first_difference(self, x: Tensor) -> str:
        """The first ONNX node whose value differs from the converted module's, in words; empty where none does."""
        module, content = self.loaded.module, self.loaded.content
        if not isinstance(module, OnnxModule) or content is None:
            return ""
        import onnx

        model = onnx.load_model_from_string(content)
        ours = module.values(*split(self.loaded, x.to(torch.float64)))
        names = [o for node in model.graph.node for o in node.output if isinstance(ours.get(o), Tensor)]
        theirs = self._run(session(_observed(model, names), self.loaded.name), x, names) if names else []
        makers = {o: node.name or node.op_type for node in model.graph.node for o in node.output}
        for name, value in zip(names, theirs, strict=True):
            mine = ours[name].flatten()
            if not deviation(mine, torch.as_tensor(value).flatten()) <= 10.0 * RUNTIME_AGREEMENT * largest(mine):
                return f"; the first node to differ is {makers[name]!r} (value {name!r})"
        return ""


def _observed(model: ModelProto, names: list[str]) -> bytes:
    """The model with intermediate values as further outputs."""
    import onnx

    observed = copy.deepcopy(model)
    present = {o.name for o in observed.graph.output}
    observed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    return observed.SerializeToString()


def split(loaded: LoadedModel, x: Tensor) -> list[Tensor]:
    """Copies of a flat input's parts, in the shapes of the model's inputs."""
    sizes = [torch.Size(p.shape).numel() for p in loaded.inputs]
    return [part.reshape(p.shape) for part, p in zip(x.flatten().clone().split(sizes), loaded.inputs, strict=True)]


def _module_values(loaded: LoadedModel, x: Tensor) -> Tensor:
    """The torch module's outputs over the reals, in float64, flattened and concatenated."""
    assert loaded.module is not None
    with torch.no_grad(), Widening():
        result = loaded.module(*split(loaded, x))
    return torch.cat([r.flatten() for r in tree_flatten(result)[0] if isinstance(r, Tensor)])


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over entries that are finite in both; inf where the shapes differ."""
    ours, theirs = ours.to(torch.float64), theirs.to(torch.float64)
    if ours.shape != theirs.shape:
        return float("inf")
    finite = ours.isfinite() & theirs.isfinite()
    return (ours - theirs)[finite].abs().max().item() if bool(finite.any()) else 0.0


def largest(values: Tensor) -> float:
    """The largest finite magnitude."""
    finite = values[values.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def random_inputs(loaded: LoadedModel, samples: int) -> Tensor:
    """Half of them uniform on [0, 1], half normal with a standard deviation between 0.1 and 2; (samples, n)."""
    generator = torch.Generator().manual_seed(SEED)
    n = loaded.graph.nodes[0].size
    half = samples // 2
    uniform = torch.rand(samples - half, n, generator=generator)
    spread = torch.logspace(-1.0, 0.3, max(half, 1))[:half].unsqueeze(1)
    return torch.cat([uniform, torch.randn(half, n, generator=generator) * spread])


def check(loaded: LoadedModel, samples: int, threads: int = 1) -> None:
    """Refuse a model whose layer graph is not the model, on random float32 inputs.

    The float64 graph is compared with the module it was traced from, within rounding; and with ONNX Runtime within
    1e-4 of the outputs' scale plus ten times what float32 arithmetic does to the graph itself.  The scale is the
    largest output over all samples, and at least 1e-3 (or a thousandth of the largest value inside a network where
    all are smaller): outputs of saturated sigmoids carry the absolute error of ONNX Runtime's.
    """
    inputs = random_inputs(loaded, samples)
    exact, single, inside = _evaluated(loaded, inputs)
    _compare_module(loaded, inputs, exact)
    if loaded.content is None:
        return
    scale = max(largest(exact), 1e-3 * min(1.0, inside))
    allowed = RUNTIME_AGREEMENT * scale + 10.0 * deviation(single, exact)
    replayer = Replayer(loaded, threads)
    for x, ours in zip(inputs, exact, strict=True):
        found = deviation(ours, replayer.run(x))
        if not found <= allowed:
            where = replayer.first_difference(x)
            raise ReplayError(
                f"{loaded.name}: the layer graph and ONNX Runtime disagree by {found:.3g} "
                f"on outputs of size {scale:.3g}{where}"
            )


def _evaluated(loaded: LoadedModel, inputs: Tensor) -> tuple[Tensor, Tensor, float]:
    """The graph's outputs in float64 and in float32, (samples, n), and the largest value inside it."""
    graph = loaded.graph
    at_once = max(1, MOST_VALUES // sum(node.size for node in graph))
    exact, single, inside = [], [], 0.0
    with torch.no_grad():
        for part in inputs.split(at_once):
            shaped = part.reshape(-1, *graph.input_shape)
            values = graph.values(shaped.to(torch.float64))
            inside = max(inside, *map(largest, values))
            exact.append(values[-1].flatten(1))
            del values
            single.append(graph.to(torch.float32)(shaped).flatten(1))
    return torch.cat(exact), torch.cat(single), inside


def check_trace(loaded: LoadedModel, samples: int = 2) -> None:
    """Refuse a graph that differs from the module it was traced from at inputs other than the traced one.

    Catches what tracing cannot see: a value that reached Python without an operator, and was taken for a constant.
    """
    inputs = random_inputs(loaded, samples)
    _compare_module(loaded, inputs, _evaluated(loaded, inputs)[0])


def _compare_module(loaded: LoadedModel, inputs: Tensor, exact: Tensor) -> None:
    module = loaded.module
    if module is None:
        return
    scale = largest(exact)
    allowed = MODULE_AGREEMENT if isinstance(module, OnnxModule) and not loaded.notes else LOOSE_AGREEMENT
    for x, ours in zip(inputs.to(torch.float64), exact, strict=True):
        found = deviation(ours, _module_values(loaded, x))
        if not found <= allowed * scale:
            raise ReplayError(
                f"{loaded.name}: the layer graph and the module it was traced from disagree by {found:.3g} "
                f"on outputs of size {scale:.3g}"
            )
