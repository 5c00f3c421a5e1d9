"""Functions applied entry by entry."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from curvverify.graph.building import Builder, Operand, Var, broadcast
from curvverify.graph.lowering.rules import CannotLower, Rule


def named(name: str) -> Rule:
    """An operator of the registry without attributes."""

    def rule(t: Builder, x: Var) -> Var:
        return t.scalar(name, x)

    return rule


def neg(t: Builder, x: Var) -> Var:
    return t.affine(x, -1.0, None)


# -- powers, exponentials, logarithms ------------------------------------------------------------------------------


def power(t: Builder, x: Var, exponent: float) -> Var:
    match float(exponent):
        case 0.0:
            return t.constant(torch.ones(x.shape))
        case 1.0:
            return x
        case 0.5:
            return t.scalar("Sqrt", x)
        case -1.0:
            return t.scalar("Reciprocal", x)
        case other:
            return t.scalar("Power", x, exponent=other)


def pow_tensor(t: Builder, x: Operand, exponent: Operand) -> Var:
    """x ** y where one of them is constant."""
    if isinstance(exponent, Var):
        return pow_base(t, x, exponent)
    assert isinstance(x, Var)
    exponent = torch.as_tensor(exponent, dtype=torch.float64)
    values = exponent.unique()
    if values.numel() != 1:
        raise CannotLower("a power whose exponents differ from entry to entry; split it by exponent")
    return t.expand(power(t, x, values.item()), broadcast(x.shape, exponent.shape))


def pow_base(t: Builder, base: Operand, x: Var) -> Var:
    """c ** x = exp(x log c), c > 0 constant."""
    if isinstance(base, Var):
        raise CannotLower("a power of two variables; write it as exp(y log(x)) where x > 0")
    base = torch.as_tensor(base, dtype=torch.float64)
    if not bool((base > 0).all()):
        raise CannotLower("a power with a base that is not positive")
    return t.scalar("Exp", t.affine(x, base.log(), None))


def log1p(t: Builder, x: Var) -> Var:
    return t.scalar("Log", t.affine(x, None, 1.0))


def log_with_base(base: float) -> Rule:
    return lambda t, x: t.affine(t.scalar("Log", x), 1.0 / math.log(base), None)


def expm1(t: Builder, x: Var) -> Var:
    return t.affine(t.scalar("Exp", x), None, -1.0)


def hyperbolic(sign: float) -> Rule:
    """sinh and cosh: (exp(x) -+ exp(-x)) / 2."""
    return lambda t, x: t.sum([t.scalar("Exp", x), t.scalar("Exp", neg(t, x))], [0.5, 0.5 * sign])


def tan(t: Builder, x: Var) -> Var:
    return t.div(t.scalar("Sin", x), t.scalar("Cos", x))


def ceil(t: Builder, x: Var) -> Var:
    return neg(t, t.scalar("Floor", neg(t, x)))


# -- activations ---------------------------------------------------------------------------------------------------


def leaky_relu(t: Builder, x: Var, slope: float = 0.01) -> Var:
    return t.scalar("LeakyRelu", x, negative_slope=float(slope))


def prelu(t: Builder, x: Var, slope: Operand) -> Var:
    if isinstance(slope, Var):
        raise CannotLower("a slope that depends on the input")
    slope = torch.as_tensor(slope, dtype=torch.float64)
    if slope.numel() == 1:
        return leaky_relu(t, x, slope.item())
    shape = broadcast(x.shape, slope.shape)
    return t.scalar("PRelu", t.expand(x, shape), negative_slope=slope.expand(shape).contiguous())


def elu(t: Builder, x: Var, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Var:
    """scale * (x if x > 0 else alpha (exp(b x) - 1)), b = input_scale; = scale / b * elu(b x) with alpha b."""
    alpha, scale, b = float(alpha), float(scale), float(input_scale)
    if b == 1.0:
        y = t.scalar("Elu", x, alpha=alpha)
    elif b == 1.0 / alpha:
        y = t.scalar("Celu", x, alpha=alpha)
    else:
        y = t.affine(t.scalar("Elu", t.affine(x, b, None), alpha=alpha * b), 1.0 / b, None)
    return t.affine(y, scale, None)


def softplus(t: Builder, x: Var, beta: float = 1.0, threshold: float = 20.0) -> Var:
    """log(1 + exp(beta x)) / beta; torch's threshold only avoids overflow."""
    return t.scalar("Softplus", x, beta=float(beta))


def log_sigmoid(t: Builder, x: Var) -> tuple[Var, None]:
    return neg(t, softplus(t, neg(t, x))), None


def gelu(t: Builder, x: Var, *, approximate: str = "none") -> Var:
    return t.scalar("Gelu" if approximate == "none" else "GeluTanh", x)


def clamp(t: Builder, x: Var, low: Any = None, high: Any = None) -> Var:
    """min(max(x, low), high); scalar bounds in one operator."""
    if isinstance(low, Var | Tensor) or isinstance(high, Var | Tensor):
        y = x if low is None else t.maximum(x, low)
        return y if high is None else t.minimum(y, high)
    if high is None:
        return x if low is None else t.maximum(x, float(low))
    if low is None:
        return t.minimum(x, float(high))
    if low >= high:
        return t.constant(torch.full(x.shape, float(high)))
    if math.isinf(low) or math.isinf(high):
        return clamp(t, x, None if math.isinf(low) else low, None if math.isinf(high) else high)
    return t.scalar("Clip", x, lower=float(low), upper=float(high))


def hardtanh(t: Builder, x: Var, low: float = -1.0, high: float = 1.0) -> Var:
    return clamp(t, x, low, high)


def hardsigmoid(t: Builder, x: Var) -> Var:
    return clamp(t, t.affine(x, 1.0 / 6.0, 0.5), 0.0, 1.0)


def softshrink(t: Builder, x: Var, width: float = 0.5) -> Var:
    """relu(x - w) - relu(-x - w)."""
    right = t.scalar("Relu", t.affine(x, None, -width))
    return t.sum([right, t.scalar("Relu", t.affine(x, -1.0, -width))], [1.0, -1.0])


def threshold(t: Builder, x: Var, at: float, below: float) -> Var:
    if at != below:
        raise CannotLower("a threshold that jumps; only threshold(x, c, c) = max(x, c) is continuous")
    return t.maximum(x, float(at))


def glu(t: Builder, x: Var, dim: int = -1) -> Var:
    a, b = t.positions(x).chunk(2, dim)
    return t.mul(t.gather(x, a), t.scalar("Sigmoid", t.gather(x, b)))


# -- of two values -------------------------------------------------------------------------------------------------


def remainder(t: Builder, x: Operand, divisor: Operand) -> Var:
    """x - c floor(x / c), c constant."""
    if not isinstance(x, Var) or isinstance(divisor, Var):
        raise CannotLower("a remainder whose divisor depends on the input")
    steps = t.scalar("Floor", t.div(x, divisor))
    return t.sub(x, t.mul(steps, divisor))


def logaddexp(t: Builder, a: Operand, b: Operand) -> Var:
    """a + softplus(b - a)."""
    return t.add(softplus(t, t.sub(b, a)), a)


def maximum(t: Builder, a: Operand, b: Operand) -> Var:
    return t.maximum(a, b)


def minimum(t: Builder, a: Operand, b: Operand) -> Var:
    return t.minimum(a, b)


def where(t: Builder, condition: Operand, a: Operand, b: Operand) -> Var:
    """Masks and a sum; what is masked out never counts, not even an infinite constant."""
    if isinstance(condition, Var):
        raise CannotLower("a condition that depends on the input; use max, min, relu or clip")
    mask = torch.as_tensor(condition)

    def part(value: Operand, chosen: Tensor) -> Var | Tensor:
        if isinstance(value, Var):
            return t.affine(value, chosen.to(torch.float64), None)
        return torch.where(chosen, torch.as_tensor(value, dtype=torch.float64), 0.0)

    if (bool(mask.all()) and isinstance(a, Var)) or (not bool(mask.any()) and isinstance(b, Var)):
        whole = a if bool(mask.all()) else b
        assert isinstance(whole, Var)
        other = [v.shape for v in (a, b) if isinstance(v, Var | Tensor)]
        return t.expand(whole, broadcast(mask.shape, *other))
    return t.add(part(a, mask), part(b, ~mask))


def masked_fill(t: Builder, x: Operand, mask: Operand, value: Operand) -> Var:
    return where(t, mask, value, x)


RULES: dict[str, Rule] = {
    "relu": named("Relu"),
    "sigmoid": named("Sigmoid"),
    "tanh": named("Tanh"),
    "silu": named("Silu"),
    "mish": named("Mish"),
    "hardswish": named("HardSwish"),
    "erf": named("Erf"),
    "erfc": lambda t, x: t.affine(t.scalar("Erf", x), -1.0, 1.0),
    "atan": named("Atan"),
    "sin": named("Sin"),
    "cos": named("Cos"),
    "exp": named("Exp"),
    "log": named("Log"),
    "sqrt": named("Sqrt"),
    "reciprocal": named("Reciprocal"),
    "abs": named("Abs"),
    "floor": named("Floor"),
    "sign": named("Sign"),
    "neg": neg,
    "ceil": ceil,
    "tan": tan,
    "sinh": hyperbolic(-1.0),
    "cosh": hyperbolic(1.0),
    "rsqrt": lambda t, x: power(t, x, -0.5),
    "square": lambda t, x: power(t, x, 2.0),
    "pow.Tensor_Scalar": power,
    "pow.Tensor_Tensor": pow_tensor,
    "pow.Scalar": pow_base,
    "exp2": lambda t, x: pow_base(t, 2.0, x),
    "expm1": expm1,
    "log1p": log1p,
    "log2": log_with_base(2.0),
    "log10": log_with_base(10.0),
    "leaky_relu": leaky_relu,
    "_prelu_kernel": prelu,
    "elu": elu,
    "celu": lambda t, x, alpha=1.0: elu(t, x, alpha, 1.0, 1.0 / alpha),
    "softplus": softplus,
    "log_sigmoid_forward": log_sigmoid,
    "gelu": gelu,
    "clamp": clamp,
    "clamp.Tensor": clamp,
    "clamp_min": lambda t, x, low: clamp(t, x, low, None),
    "clamp_min.Tensor": lambda t, x, low: clamp(t, x, low, None),
    "clamp_max": lambda t, x, high: clamp(t, x, None, high),
    "clamp_max.Tensor": lambda t, x, high: clamp(t, x, None, high),
    "hardtanh": hardtanh,
    "hardsigmoid": hardsigmoid,
    "softshrink": softshrink,
    "threshold": threshold,
    "glu": glu,
    "remainder.Scalar": remainder,
    "remainder.Tensor": remainder,
    "logaddexp": logaddexp,
    "maximum": maximum,
    "minimum": minimum,
    "fmax": maximum,
    "fmin": minimum,
    "where.self": where,
    "where.ScalarSelf": where,
    "where.ScalarOther": where,
    "masked_fill.Scalar": masked_fill,
    "masked_fill.Tensor": masked_fill,
}
