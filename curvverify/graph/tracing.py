"""A torch module to a layer graph, by running it once on a sample input and recording what depends on the input.

Whatever does not depend on the input (shape arithmetic, constant folding, masks) is simply computed.  Tensors that do
are mapped to nodes; every ATen operator applied to one is lowered by its rule, and the rule's result is compared with
torch's own.  Everything runs in float64: floating-point casts are the identity of the network over the reals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from curvverify.errors import ReplayError, UnsupportedModelError, UnsupportedNode
from curvverify.graph.building import Builder, Var
from curvverify.graph.lowering import RULES
from curvverify.graph.lowering.rules import CannotLower
from curvverify.ops.base import Op

AGREEMENT = 1e-7
"""Largest deviation of a rule's value from torch's, relative to the largest entry."""


RENAMED = {
    "transpose_": "transpose.int",
    "t_": "t",
    "squeeze_": "squeeze",
    "squeeze_.dim": "squeeze.dim",
    "unsqueeze_": "unsqueeze",
}
"""In-place operators that only look at the same memory in another way, with what they look like afterwards."""


DECIDING = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique_dim", "_unique2"})
"""Operators whose result decides what is executed next, or a shape."""

CONTROL_FLOW = "data-dependent control flow: a Python value or a shape is taken from the input"


@dataclass(frozen=True)
class Source:
    """Where in the user's model an operator comes from."""

    name: str
    operator: str = ""
    opset: int | None = None


@dataclass(frozen=True, eq=False)
class Opaque(Op):
    """Stands for the result of an unsupported operator until the error is raised."""

    result: Tensor

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.result


class Widening(TorchDispatchMode):
    """Everything in float64 while it is active: floating-point casts are the identity over the reals."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No, for skipping it means importing it, which takes a second."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **{k: _widened(v) for k, v in (kwargs or {}).items()})
        return result if _written(func, args) is not None else tree_map(_double, result)


class Tracer(Widening):
    """Records into a builder while it is active; `source` is where the module currently is."""

    def __init__(self, builder: Builder, model: str = "model"):
        super().__init__()
        self.builder, self.model = builder, model
        self.source = Source("")
        self.unsupported: list[UnsupportedNode] = []
        self._vars: dict[int, Var] = {}
        self._alive: list[Tensor] = []
        self._writes: dict[int, list[tuple[int, Tensor]]] = {}
        self._born: dict[int, int] = {}
        self._time = 0
        self._captured: dict[int, tuple[Tensor, int, Source]] = {}
        self._left_out: dict[int, Source] = {}

    # -- what is known about tensors -----------------------------------------------------------------------------

    def track(self, tensor: Tensor, var: Var) -> None:
        """From now on this tensor is that node's value."""
        self._vars[id(tensor)] = var
        self._alive.append(tensor)

    def var(self, tensor: object) -> Var | None:
        """The node of a tensor; None where it does not depend on the input."""
        return self._vars.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def label(self, name: str, value: object) -> None:
        """The model calls this tensor by a name."""
        if name and (var := self.var(value)) is not None:
            self.builder.label(var, name)

    def opaque(self, value: Tensor) -> Var:
        """A node for a value that could not be lowered."""
        return self.builder.apply(Opaque(value.unsqueeze(0)), self.builder.input)

    def refuse(self, operator: str, value: object, help: str) -> None:
        """Note an unsupported operator; the error is raised when the whole model has been seen."""
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        label = self.source.operator or operator
        if label != operator:
            help = f"{help} (torch operator {operator})"
        note = UnsupportedNode(self.source.name or "forward", label, self.source.opset, shape, help)
        if note not in self.unsupported:
            self.unsupported.append(note)

    # -- the dispatch --------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {k: _widened(v) for k, v in (kwargs or {}).items()}
        flat = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
        key = _key(func)
        self.check_current(flat, key)
        written = _written(func, args)
        if any(id(a) in self._left_out for a in flat):
            return self._leave_out(func, flat, args, kwargs, harmless=written is None and key not in DECIDING)
        involved = any(id(a) in self._vars for a in flat)
        if written is None:
            result = tree_map(_double, func(*args, **kwargs))
            if involved:
                self._lower(key, args, kwargs, result)
            self._remember(result)
            return result
        lowered = self._functional(key, args, kwargs) if involved else None
        result = func(*args, **kwargs)
        if lowered is not None:
            self._overwrite(written, lowered, moves=key not in RENAMED)
        return result

    def _lower(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Give the results of an operator their nodes."""
        found = self._apply(key, args, kwargs, result)
        outs = list(result) if isinstance(result, tuple | list) else [result]
        for out, var in zip(outs, found, strict=True):
            if isinstance(out, Tensor) and var is not None:
                self.track(out, var)
            elif isinstance(out, Tensor) and len(outs) > 1:
                self._left_out[id(out)] = self.source
                self._alive.append(out)

    def _functional(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Var:
        """The node of what an in-place operator is about to write."""
        name, dot, overload = key.partition(".")
        pure = RENAMED.get(key, f"{name.removesuffix('_')}{dot}{overload}")
        name, _, overload = pure.partition(".")
        try:
            function = getattr(getattr(torch.ops.aten, name), overload or "default")
        except AttributeError:
            self.refuse(key, args[0], "no rule for this in-place operator; use the one that makes a new tensor")
            return self.opaque(args[0])
        if id(args[0]) not in self._vars:
            args = (args[0].clone(), *args[1:])  # the operator is about to change the constant itself
        result = tree_map(_double, function(*args, **kwargs))
        found = self._apply(pure, args, kwargs, result)[0]
        assert found is not None
        return found

    def _overwrite(self, target: Tensor, var: Var, moves: bool) -> None:
        """The target has a new value; where it `moves` memory, others that share it are out of date."""
        if moves:
            self._time += 1
            self._writes.setdefault(_memory(target), []).append((self._time, target))
        self.track(target, self.builder.reshape(var, tuple(target.shape)))
        self._born[id(target)] = self._time

    def _apply(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[Var | None]:
        """The nodes of an operator's results, opaque ones where it has no rule."""
        outs = list(result) if isinstance(result, tuple | list) else [result]
        places = [v for a in tree_flatten((args, kwargs))[0] if (v := self.var(a)) is not None]
        if any(isinstance(self.builder.nodes[v.node].op, Opaque) for v in places):
            if key in DECIDING:
                self.refuse(key, None, CONTROL_FLOW)
            return [self.opaque(o) if isinstance(o, Tensor) else None for o in outs]  # the cause has been noted
        self.builder.source = self.source.name
        self._capture(args, kwargs)
        try:
            found = self._rule(key, args, kwargs, outs)
        except CannotLower as reason:
            self.refuse(key, outs[0], str(reason))
            return [self.opaque(o) if isinstance(o, Tensor) else None for o in outs]
        self._agree(key, outs, found)
        return found

    def _rule(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any], outs: list[Any]) -> list[Var | None]:
        if key in DECIDING:
            raise CannotLower(CONTROL_FLOW)
        rule = RULES.get(key)
        if not _floating(outs):
            raise CannotLower("an integer or boolean value that depends on the input")
        if rule is None:
            raise CannotLower("no rule for this operator; add one in curvverify/graph/lowering")
        wrapped, options = tree_map(lambda a: v if (v := self.var(a)) is not None else a, (args, kwargs))
        try:
            found = rule(self.builder, *wrapped, **options)
        except ValueError as reason:  # an operator does not take these attributes
            raise CannotLower(str(reason)) from reason
        found = list(found) if isinstance(found, tuple | list) else [found]
        return found + [None] * (len(outs) - len(found))

    # -- checks --------------------------------------------------------------------------------------------------

    def _agree(self, key: str, outs: list[Any], found: list[Var | None]) -> None:
        """The rule's value is torch's value."""
        for out, var in zip(outs, found, strict=False):
            if not isinstance(out, Tensor) or var is None:
                continue
            ours = self.builder.value(var)
            if ours.shape != out.shape or not _close(ours, out):
                raise ReplayError(f"node {self.source.name!r}: the rule of torch operator {key} disagrees with torch")

    def _leave_out(
        self, func: Any, flat: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], harmless: bool
    ) -> Any:
        """Execute an operator on a value that no node stands for; so has its result none, until it is needed."""
        self.source, here = next(self._left_out[id(a)] for a in flat if id(a) in self._left_out), self.source
        if not harmless:
            self.needed([a for a in flat if id(a) in self._left_out])
        result = func(*args, **kwargs)
        for out in tree_flatten(result)[0]:
            if isinstance(out, Tensor):
                self._left_out[id(out)] = self.source
                self._alive.append(out)
        self.source = here
        return result

    def needed(self, tensors: Sequence[Tensor]) -> None:
        """Note that a value is needed, though no node stands for it and it depends on the input."""
        for a in tensors:
            if id(a) in self._left_out:
                self.source = self._left_out[id(a)]
                self.refuse(self.source.operator, a, "its indices, or another second result, are used")

    def check_current(self, tensors: Sequence[Tensor], key: str) -> None:
        """Stop at the use of a tensor whose memory has been changed through another."""
        for a in tensors:
            for time, target in self._writes.get(_memory(a), ()):
                if time > self._born.get(id(a), 0) and _overlap(a, target):
                    help = "a tensor is used after another that shares its memory was changed in place; copy it first"
                    self.refuse(key, a, help)
                    raise UnsupportedModelError(self.model, self.unsupported)

    def _remember(self, result: Any) -> None:
        """A new tensor knows of all that has been written so far."""
        if self._time:
            for out in tree_flatten(result)[0]:
                if isinstance(out, Tensor):
                    self._born[id(out)] = self._time
                    self._alive.append(out)

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the constants a rule has seen, to notice when they change."""
        for a in tree_flatten((args, kwargs))[0]:
            if isinstance(a, Tensor) and id(a) not in self._vars:
                self._captured.setdefault(id(a), (a, a._version, self.source))

    def changed_constants(self) -> Iterator[UnsupportedNode]:
        """Constants that were changed in place after a node had used them."""
        for tensor, version, source in self._captured.values():
            if tensor._version != version:
                help = "a constant used here is changed in place later; make it a new tensor instead"
                yield UnsupportedNode(source.name, source.operator, source.opset, tuple(tensor.shape), help)


def _key(func: Any) -> str:
    name = func._schema.name.removeprefix("aten::")
    overload = func._overloadname
    return name if overload == "default" else f"{name}.{overload}"


def _written(func: Any, args: tuple[Any, ...]) -> Tensor | None:
    """The argument that an in-place operator writes to."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write and place < len(args):
            return args[place] if isinstance(args[place], Tensor) else None
    return None


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _double(value: Any) -> Any:
    narrow = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(torch.float64) if narrow else value


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _floating(outs: Sequence[Any]) -> bool:
    """Whether the first result holds real numbers."""
    return not outs or not isinstance(outs[0], Tensor) or outs[0].is_floating_point()


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have entries in common."""
    whole = a.untyped_storage().nbytes() // a.element_size()
    if a.numel() == whole or b.numel() == whole:
        return True
    cells = torch.zeros(whole, dtype=torch.bool)
    cells.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(cells.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def _close(ours: Tensor, theirs: Tensor) -> bool:
    finite = ours.isfinite() & theirs.isfinite()
    scale = theirs[finite].abs().max().item() if bool(finite.any()) else 0.0
    return torch.allclose(ours[finite], theirs[finite], rtol=0.0, atol=AGREEMENT * (1e-3 + scale))


def trace(
    run: Callable[[Tracer, list[Tensor]], Any], samples: Sequence[Tensor], model: str
) -> tuple[Builder, list[Var]]:
    """The layer graph of `run`, called once with the sample inputs, and its output nodes.

    With one input, node 0 has its shape; with several, node 0 is the concatenation of the flattened inputs.
    """
    samples = [s.to(torch.float64) for s in samples]
    builder = Builder(samples[0].clone() if len(samples) == 1 else torch.cat([s.flatten() for s in samples]))
    tracer = Tracer(builder, model)
    start = 0
    for sample in samples:
        positions = torch.arange(start, start + sample.numel(), dtype=torch.float64).reshape(sample.shape)
        tracer.track(sample, builder.gather(builder.input, positions) if len(samples) > 1 else builder.input)
        start += sample.numel()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), tracer:
            results = run(tracer, list(samples))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    found = [r for r in tree_flatten(results)[0] if isinstance(r, Tensor)]
    tracer.needed(found)
    tracer.check_current(found, "output")
    if problems := [*tracer.unsupported, *tracer.changed_constants()]:
        raise UnsupportedModelError(model, problems)
    builder.source = "output"
    return builder, [v if (v := tracer.var(r)) is not None else builder.constant(r) for r in found]
