"""A torch module as a layer graph whose constants are the module's live parameters.

`curvverify.graph.load` reads numbers; here every operator holds the tensors themselves, so that whatever is computed
from the graph has gradients by the parameters.  The module is traced once (torch.fx) and its graph rebuilt from the
parameters' present values whenever it is asked for; statistics of batch normalisation are the running ones.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.fx.proxy import TraceError

from curvverify.errors import UnsupportedModelError, UnsupportedNode, UsageError
from curvverify.graph.layers import Graph, Node
from curvverify.ops.base import Elementwise, Input, Op
from curvverify.ops.linear import Concatenate, Convolution, Dense, Diagonal, Reshape, Sum, TorchLinear
from curvverify.ops.registry import ELEMENTWISE
from curvverify.train.layers import CentredSoftplus, LipschitzBatchNorm, SpectralConv2d, SpectralLinear
from curvverify.train.sll import SLLConv2d, SLLLinear

Shape = tuple[int, ...]

OURS = (CentredSoftplus, LipschitzBatchNorm, SpectralConv2d, SpectralLinear, SLLLinear, SLLConv2d)

NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)

ADVICE = "differentiable constants know torch.nn's linear, convolution, normalisation, pooling and activation modules"


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, OURS) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Step:
    """One operation of the trace: what makes its operators from live parameters, and where its inputs are."""

    name: str
    make: Callable[[], list[Op]]
    inputs: tuple[int, ...]
    shape: Shape


class LiveModule:
    """A module with one input of shape `shape` (without the batch) and one output, ready to become graphs.

    Raises UnsupportedModelError with every operation that has no rule.
    """

    def __init__(self, module: nn.Module, shape: Shape):
        self.module, self.shape = module, tuple(shape)
        try:
            traced = fx.GraphModule(module, _Tracer().trace(module))
        except TraceError as error:
            raise UsageError(f"{type(module).__name__} cannot be traced: {error}") from error
        training = module.training
        parameter = next(module.parameters())
        module.eval()
        try:
            with torch.no_grad():
                ShapeProp(traced).propagate(torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device))
        finally:
            module.train(training)
        self._steps, self._output = _steps(module, traced)

    def graph(self) -> Graph:
        """The layer graph at the parameters' present values, differentiable by them."""
        nodes: list[Node] = [Node("input", Input(), (), self.shape)]
        place = [0]
        for step in self._steps:
            inputs = tuple(place[i] for i in step.inputs)
            for k, op in enumerate(step.make()):
                merged = _merged(nodes, op, inputs, self._steps, place)
                if merged is not None:
                    nodes[inputs[0]] = merged
                    continue
                shape = step.shape if not isinstance(op, Elementwise | Diagonal) else nodes[inputs[0]].shape
                nodes.append(Node(f"{step.name}.{k}" if k else step.name, op, inputs, shape, step.name))
                inputs = (len(nodes) - 1,)
            place.append(inputs[0])
        if place[self._output] != len(nodes) - 1:
            raise UsageError("the module computes something after its output")
        return Graph(tuple(nodes))


def _merged(nodes: list[Node], op: Op, inputs: Shape, steps: list[_Step], place: list[int]) -> Node | None:
    """A scaling taken into the matrix or kernel right before it, where nobody else uses that."""
    if not isinstance(op, Diagonal) or inputs[0] != len(nodes) - 1:
        return None
    before = nodes[inputs[0]]
    users = sum(i < len(place) and place[i] == inputs[0] for step in steps for i in step.inputs)
    if users > 1 or not isinstance(before.op, Dense | Convolution):
        return None
    layer = before.op
    if isinstance(layer, Dense) and len(before.shape) != 1:
        return None

    def per_row(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.reshape(-1) if value.numel() > 1 else value

    factor, shift, weight, bias = per_row(op.factor), per_row(op.shift), layer.weight, layer.bias
    if factor is not None:
        weight = weight * (factor.reshape(-1, *(1 for _ in range(weight.dim() - 1))) if factor.dim() else factor)
        bias = None if bias is None else bias * factor
    if shift is not None:
        bias = (torch.zeros_like(weight[(slice(None), *(0,) * (weight.dim() - 1))]) if bias is None else bias) + shift
    return replace(before, op=replace(layer, weight=weight, bias=bias))


# -- from the trace to steps ---------------------------------------------------------------------------------------


def _steps(module: nn.Module, traced: fx.GraphModule) -> tuple[list[_Step], int]:
    steps: list[_Step] = []
    place: dict[fx.Node, int] = {}
    problems: list[UnsupportedNode] = []
    output = 0
    modules = dict(module.named_modules())
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            if place:
                raise UsageError("differentiable constants need a module with one input")
            place[node] = 0
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise UsageError("differentiable constants need a module with one output")
            output = place.get(node.args[0], 0)
        elif node.op == "get_attr" or not any(a in place for a in node.all_input_nodes):
            continue  # a constant, taken where it is used
        elif node.op == "call_module" and isinstance(part := modules[str(node.target)], SLLLinear | SLLConv2d):
            (x,) = node.args
            assert isinstance(x, fx.Node)
            steps += _residual(part, str(node.target), place[x], len(steps), _shape(x))
            place[node] = len(steps)
        else:
            rule = (
                _module_rule(modules, node, place) if node.op == "call_module" else _function_rule(node, place, module)
            )
            if rule is None:
                what = type(modules[str(node.target)]).__name__ if node.op == "call_module" else str(node.target)
                where = str(node.target) if node.op == "call_module" else node.name
                problems.append(UnsupportedNode(where, what, None, None, ADVICE))
                place[node] = 0
                continue
            make, inputs = rule
            if make is None:
                place[node] = place[inputs[0]]
                continue
            name = _unique(str(node.target) if node.op == "call_module" else node.name, steps)
            steps.append(_Step(name, make, tuple(place[i] for i in inputs), _shape(node)))
            place[node] = len(steps)
    if problems:
        raise UnsupportedModelError(type(module).__name__, problems)
    return steps, output


def _residual(part: SLLLinear | SLLConv2d, name: str, source: int, done: int, shape: Shape) -> list[_Step]:
    """x + back(sigma(W x + b)) as three steps and their join."""
    if isinstance(part, SLLLinear):
        inner: Shape = (len(part.weight),)

        def there() -> list[Op]:
            return [Dense(part.weight, part.bias)]

        def back() -> list[Op]:
            return [Dense(part.back().mT)]
    else:
        inner, p = (len(part.weight), *shape[1:]), part.padding

        def there() -> list[Op]:
            return [Convolution(part.weight, part.bias, (1, 1), (p, p), (1, 1), 1, shape[1:], shape[1:])]

        def back() -> list[Op]:
            return [Convolution(part.back(), None, (1, 1), (p, p), (1, 1), 1, shape[1:], shape[1:], transposed=True)]

    return [
        _Step(f"{name}.there", there, (source,), inner),
        _Step(f"{name}.act", lambda: _centred_softplus(part.act), (done + 1,), inner),
        _Step(f"{name}.back", back, (done + 2,), shape),
        _Step(f"{name}.join", lambda: [Sum((1.0, 1.0))], (source, done + 3), shape),
    ]


def _unique(name: str, steps: list[_Step]) -> str:
    """The name, with a number where an earlier step has it."""
    taken = {s.name for s in steps}
    return name if name not in taken else next(f"{name}#{k}" for k in range(2, 10**6) if f"{name}#{k}" not in taken)


def _shape(node: fx.Node) -> Shape:
    return tuple(node.meta["tensor_meta"].shape[1:])


Rule = tuple[Callable[[], list[Op]] | None, list[fx.Node]]


def _module_rule(modules: dict[str, nn.Module], node: fx.Node, place: dict[fx.Node, int]) -> Rule | None:
    part, x = modules[str(node.target)], node.args[0] if len(node.args) == 1 else None
    if not isinstance(x, fx.Node):
        return None
    shape_in, shape_out = _shape(x), _shape(node)
    if isinstance(part, NEUTRAL):
        return None, [x]
    make = _linear_module(part, shape_in, shape_out) or _activation(part)
    return None if make is None else (make, [x])


def _linear_module(part: nn.Module, shape_in: Shape, shape_out: Shape) -> Callable[[], list[Op]] | None:
    if isinstance(part, SpectralLinear):
        return lambda: [Dense(part.effective(), part.bias)]
    if isinstance(part, nn.Linear):
        return lambda: [Dense(part.weight, part.bias)]
    if isinstance(part, SpectralConv2d):
        return lambda: [_convolution(part, part.effective(), part.bias, shape_in, shape_out)]
    if isinstance(part, nn.Conv2d) and part.padding_mode == "zeros" and not isinstance(part.padding, str):
        return lambda: [_convolution(part, part.weight, part.bias, shape_in, shape_out, part.dilation, part.groups)]
    if isinstance(part, LipschitzBatchNorm):
        return lambda: [_channelwise(f := part.factor(part.variance), part.bias - part.mean * f, shape_in)]
    if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.track_running_stats:
        return lambda: [_batch_norm(part, shape_in)]
    if isinstance(part, nn.Flatten) and math.prod(shape_in) == math.prod(shape_out):
        return lambda: [Reshape(shape_in, shape_out)]
    if isinstance(part, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        fan = math.prod(shape_in) // max(shape_in[0], 1)
        return lambda: [TorchLinear(part, shape_in, fan, type(part).__name__)]
    return None


def _convolution(
    part: Any,
    weight: Tensor,
    bias: Tensor | None,
    shape_in: Shape,
    shape_out: Shape,
    dilation: Shape = (1, 1),
    groups: int = 1,
) -> Convolution:
    return Convolution(
        weight, bias, tuple(part.stride), tuple(part.padding), tuple(dilation), groups, shape_in[1:], shape_out[1:]
    )


def _channelwise(factor: Tensor, shift: Tensor, shape: Shape) -> Diagonal:
    wide = (-1, *(1 for _ in shape[1:]))
    return Diagonal(factor.reshape(wide), shift.reshape(wide))


def _batch_norm(part: nn.BatchNorm1d | nn.BatchNorm2d, shape: Shape) -> Diagonal:
    assert part.running_mean is not None
    assert part.running_var is not None
    factor = (part.running_var + part.eps).rsqrt()
    factor = factor if part.weight is None else factor * part.weight
    shift = -part.running_mean * factor
    return _channelwise(factor, shift if part.bias is None else shift + part.bias, shape)


def _centred_softplus(part: CentredSoftplus) -> list[Op]:
    beta = part.beta
    return [Diagonal(beta), ELEMENTWISE["Softplus"](), Diagonal(1.0 / beta, -math.log(2.0) / beta)]


SIMPLE: dict[type[nn.Module], str] = {
    nn.Tanh: "Tanh",
    nn.Sigmoid: "Sigmoid",
    nn.SiLU: "Silu",
    nn.Mish: "Mish",
    nn.ReLU: "Relu",
}


def _activation(part: nn.Module) -> Callable[[], list[Op]] | None:
    if isinstance(part, CentredSoftplus):
        return lambda: _centred_softplus(part)
    if type(part) in SIMPLE:
        return lambda: [ELEMENTWISE[SIMPLE[type(part)]]()]
    if isinstance(part, nn.Softplus):
        return lambda: [ELEMENTWISE["Softplus"](beta=float(part.beta))]  # type: ignore[call-arg]
    if isinstance(part, nn.GELU):
        return lambda: [ELEMENTWISE["GeluTanh" if part.approximate == "tanh" else "Gelu"]()]
    if isinstance(part, nn.ELU):
        return lambda: [ELEMENTWISE["Elu"](alpha=float(part.alpha))]  # type: ignore[call-arg]
    return None


FUNCTIONS: dict[Any, str] = {
    torch.tanh: "Tanh",
    "tanh": "Tanh",
    torch.sigmoid: "Sigmoid",
    "sigmoid": "Sigmoid",
    torch.relu: "Relu",
    F.relu: "Relu",
    "relu": "Relu",
    F.silu: "Silu",
}

RESHAPING = {torch.flatten, "flatten", "reshape", "view", torch.reshape}


def _function_rule(node: fx.Node, place: dict[fx.Node, int], module: nn.Module) -> Rule | None:
    """A function or method: sums, products with constants, reshapes, concatenations, activations."""
    target, arguments = node.target, list(node.args)
    if target is torch.cat:
        return _concatenation(node, place)
    found = [a for a in arguments if isinstance(a, fx.Node) and a in place]
    if not found or "alpha" in node.kwargs or "out" in node.kwargs:
        return None
    if target in FUNCTIONS:
        return (lambda: [ELEMENTWISE[FUNCTIONS[target]]()]), found
    if target in RESHAPING:
        before, after = _shape(found[0]), _shape(node)
        return ((lambda: [Reshape(before, after)]), found) if math.prod(before) == math.prod(after) else None
    added = target in (operator.add, torch.add, operator.iadd)
    if (added or target in (operator.sub, torch.sub)) and len({_shape(x) for x in found}) == 1 < len(found):
        return (lambda: [Sum((1.0, 1.0 if added else -1.0))]), found
    if target in (operator.mul, torch.mul, operator.truediv) and len(found) == 1:
        constant = next((a for a in arguments if a is not found[0]), None)
        if isinstance(constant, int | float) and (target is not operator.truediv or arguments[0] is found[0]):
            factor = 1.0 / constant if target is operator.truediv else float(constant)
            return (lambda: [Diagonal(torch.tensor(factor, dtype=next(module.parameters()).dtype))]), found
    return None


def _concatenation(node: fx.Node, place: dict[fx.Node, int]) -> Rule | None:
    tensors, *rest = [*node.args, *(node.kwargs[k] for k in ("tensors", "dim") if k in node.kwargs)]
    dim = rest[0] if rest else 0
    if not isinstance(tensors, list | tuple) or not isinstance(dim, int):
        return None
    parts = [a for a in tensors if isinstance(a, fx.Node) and a in place]
    axis = dim % (len(_shape(node)) + 1) - 1
    if len(parts) < len(tensors) or axis < 0:
        return None
    sizes = tuple(_shape(p)[axis] for p in parts)
    return (lambda: [Concatenate(axis, sizes)]), parts
