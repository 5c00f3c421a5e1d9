"""Constants of every node from those of its inputs, operator by operator.

Composition h after g: L <= L_h L_g, C <= L_h C_g + C_h L_g^2, T <= L_h T_g + 3 C_h L_g C_g + T_h L_g^3, sharpened where
the entries of g have constants of their own: |sum_i u_i s_i (Dg p)_i (Dg q)_i| <= max_i(s_i l_i) L_g for unit u, p, q,
where l_i is the Lipschitz constant of the i-th entry.

Source: Entesari, Sharifi and Fazlyab, ICML 2024 (composition); the entrywise forms are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvverify.bounding.constants.setting import AnyBlock, Setting
from curvverify.bounding.constants.values import (
    Bound,
    Constants,
    Entries,
    largest,
    length,
    plus,
    scaled,
    times,
    total,
)
from curvverify.numerics.norms.scaling import enlarge
from curvverify.numerics.rounding import gamma
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.product import Product


def input_constants(setting: Setting) -> Constants:
    """x = centre + scale * xi."""
    scale = setting.scale
    zero = torch.zeros_like(scale)
    norm = largest(scale) if setting.norm == 2.0 else length(scale)
    none = Bound(0.0, "affine")
    return Constants(Bound(norm, "input"), none, none, Entries(scale, zero, zero))


def node_constants(setting: Setting, node: int, inputs: list[Constants]) -> Constants:
    """The rule of the node's kind."""
    op = setting.graph.nodes[node].op
    if isinstance(op, Linear):
        found = _linear(setting, node, op, inputs)
    elif isinstance(op, Elementwise):
        found = _elementwise(setting, node, inputs[0])
    elif isinstance(op, Product):
        found = _product(setting, node, *inputs)
    else:
        raise TypeError(f"node {setting.graph.nodes[node].name!r}: no rule for {op.name}")
    return found.consistent()


def block_constants(block: AnyBlock, inputs: Constants, shape: tuple[int, ...]) -> Constants:
    """Composition with a whole block whose own constants are known."""
    L, C, T = inputs.lipschitz.value, inputs.curvature.value, inputs.third_order.value
    return Constants(
        Bound(times(block.lipschitz, L), block.kind),
        Bound(plus(times(block.lipschitz, C), times(block.curvature, L, L)), block.kind),
        Bound(
            plus(times(block.lipschitz, T), times(3.0, block.curvature, L, C), times(block.third_order, L, L, L)),
            block.kind,
        ),
        Entries(
            torch.full(shape, times(block.row_lipschitz, L), dtype=torch.float64),
            torch.full(
                shape, plus(times(block.row_lipschitz, C), times(block.row_curvature, L, L)), dtype=torch.float64
            ),
            torch.full(
                shape,
                plus(
                    times(block.row_lipschitz, T),
                    times(3.0, block.row_curvature, L, C),
                    times(block.row_third_order, L, L, L),
                ),
                dtype=torch.float64,
            ),
        ),
    ).consistent()


def _linear(setting: Setting, node: int, op: Linear, inputs: list[Constants]) -> Constants:
    norms, rows = setting.structure.norms(node), setting.structure.row_norms(node)
    disjoint = len(inputs) > 1 and setting.structure.disjoint(node)

    def whole(values: list[float]) -> Bound:
        terms = [times(n, v) for n, v in zip(norms, values, strict=True)]
        if disjoint:
            return Bound(length(torch.tensor(terms, dtype=torch.float64)), "concatenation")
        return Bound(plus(*terms), "composition" if len(terms) == 1 else "sum")

    def entries(values: list[Tensor], norms_of: list[float]) -> Tensor:
        finite = all(bool(v.isfinite().all()) for v in values)
        by_norm = total(*(scaled(r, n) for r, n in zip(rows, norms_of, strict=True)))
        if not finite:
            values = [v.nan_to_num(nan=math.inf, posinf=math.inf) for v in values]
        by_entry = op.absolute(*(v.unsqueeze(0) for v in values), bias=False)[0]
        return torch.minimum(enlarge(by_entry, gamma(op.terms + 8)), by_norm)

    L = [c.lipschitz.value for c in inputs]
    C = [c.curvature.value for c in inputs]
    T = [c.third_order.value for c in inputs]
    return Constants(
        whole(L),
        whole(C),
        whole(T),
        Entries(
            entries([c.entries.lipschitz for c in inputs], L),
            entries([c.entries.curvature for c in inputs], C),
            entries([c.entries.third_order for c in inputs], T),
        ),
    )


def _elementwise(setting: Setting, node: int, x: Constants) -> Constants:
    s1 = setting.slopes[node][0].magnitude
    s2, s3 = setting.second[node].magnitude, setting.third[node].magnitude
    e = x.entries
    L, C, T = x.lipschitz.value, x.curvature.value, x.third_order.value
    bend = times(largest(scaled(s2, e.lipschitz)), L)
    twist = times(largest(scaled(s3, e.lipschitz, e.lipschitz)), L)
    slope = largest(s1)
    return Constants(
        Bound(times(slope, L), "composition"),
        Bound(plus(times(slope, C), bend), "composition"),
        Bound(plus(times(slope, T), times(3.0, mixed_bend(s2, x)), twist), "composition"),
        Entries(
            scaled(s1, e.lipschitz),
            total(scaled(s1, e.curvature), scaled(s2, e.lipschitz, e.lipschitz)),
            total(
                scaled(s1, e.third_order),
                scaled(s2, 3.0, e.lipschitz, e.curvature),
                scaled(s3, e.lipschitz, e.lipschitz, e.lipschitz),
            ),
        ),
    )


def _product(setting: Setting, node: int, u: Constants, v: Constants) -> Constants:
    of_u, of_v = (s.magnitude for s in setting.slopes[node])  # |v| and |u|
    a, b = u.entries, v.entries
    bu, bv = largest(of_u), largest(of_v)
    return Constants(
        Bound(plus(times(bu, u.lipschitz.value), times(bv, v.lipschitz.value)), "product"),
        Bound(plus(times(bu, u.curvature.value), times(bv, v.curvature.value), product_bend(u, v)), "product"),
        Bound(
            plus(
                times(bu, u.third_order.value),
                times(bv, v.third_order.value),
                product_third_order(u, v),
            ),
            "product",
        ),
        Entries(
            total(scaled(of_u, a.lipschitz), scaled(of_v, b.lipschitz)),
            total(scaled(of_u, a.curvature), scaled(of_v, b.curvature), scaled(a.lipschitz, 2.0, b.lipschitz)),
            total(
                scaled(of_u, a.third_order),
                scaled(of_v, b.third_order),
                scaled(a.lipschitz, 3.0, b.curvature),
                scaled(a.curvature, 3.0, b.lipschitz),
            ),
        ),
    )


def mixed_bend(s2: Tensor, x: Constants) -> float:
    """Upper bound on sup ||sigma'' o Dx p o D^2 x[q, r]||, |sigma''| <= s2 (*S)."""
    return min(
        times(largest(scaled(s2, x.entries.lipschitz)), x.curvature.value),
        times(largest(scaled(s2, x.entries.curvature)), x.lipschitz.value),
    )


def product_bend(u: Constants, v: Constants) -> float:
    """Upper bound on sup ||Du p o Dv q + Du q o Dv p||: the largest entry of one factor times the other's norm."""
    one = times(largest(u.entries.lipschitz), v.lipschitz.value)
    return times(2.0, min(one, times(u.lipschitz.value, largest(v.entries.lipschitz))))


def product_third_order(u: Constants, v: Constants) -> float:
    """Upper bound on the terms Du p o D^2 v[q, r] and D^2 u[p, q] o Dv r of a product's third derivative."""

    def cross(x: Constants, y: Constants) -> float:
        one = times(largest(x.entries.lipschitz), y.curvature.value)
        return min(one, times(x.lipschitz.value, largest(y.entries.curvature)))

    return times(3.0, plus(cross(u, v), cross(v, u)))
