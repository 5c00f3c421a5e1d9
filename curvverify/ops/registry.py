"""The elementwise operators by name: the one list that the front end, the tests and the documentation read."""

from __future__ import annotations

from curvverify.ops.base import Elementwise
from curvverify.ops.elementwise.clip import Clip
from curvverify.ops.elementwise.elu import Celu, Elu, Selu
from curvverify.ops.elementwise.gelu import Gelu, GeluTanh
from curvverify.ops.elementwise.hinge import Abs, LeakyRelu, PRelu, Relu
from curvverify.ops.elementwise.power import Log, Power, Reciprocal, Sqrt
from curvverify.ops.elementwise.sigmoid import Atan, Erf, Sigmoid, Tanh
from curvverify.ops.elementwise.silu import HardSwish, Mish, Silu
from curvverify.ops.elementwise.softplus import Exp, Softplus
from curvverify.ops.elementwise.step import Floor, Sign
from curvverify.ops.elementwise.trigonometric import Cos, Sin

ELEMENTWISE: dict[str, type[Elementwise]] = {
    op.__name__: op
    for op in (
        *(Relu, LeakyRelu, PRelu, Abs, Clip),
        *(Sigmoid, Tanh, Erf, Atan),
        *(Exp, Softplus, Elu, Celu, Selu),
        *(Gelu, GeluTanh, Silu, Mish, HardSwish),
        *(Sin, Cos),
        *(Log, Sqrt, Reciprocal, Power),
        *(Floor, Sign),
    )
}
