"""Backward through slope ranges: enclosures of the derivative of scalar outputs by every node's value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.maps import CentredMaps
from curvverify.bounding.constants.setting import Setting
from curvverify.bounding.constants.values import scaled, total
from curvverify.numerics.norms.scaling import enlarge
from curvverify.numerics.rounding import TINY, gamma, nan_is_unbounded, outward, radius_upper, round_up
from curvverify.ops.base import Linear
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Of R rows: enclosures (R, *S) of the derivative by every node's value, and bounds (R) on its l_2 norm."""

    ranges: dict[int, Interval]
    norms: dict[int, Tensor]


def derivatives(setting: Setting, rows: Tensor, maps: CentredMaps | None) -> Derivatives:
    """Backward from the output through slope ranges; rows (R, *S_out).

    Sound because: every step is interval arithmetic, a linear node's in centre and radius form, |L|^T (r + gamma |c|)
    covering the radius and the rounding of the centre; an entry is at most the l_2 norm.
    """
    graph = setting.graph
    state: dict[int, Interval] = {graph.output: Interval(rows, rows)}
    norm = {graph.output: enlarge(rows.flatten(1).square().sum(1).sqrt(), gamma(rows[0].numel() + 8))}
    ranges: dict[int, Interval] = {}
    norms: dict[int, Tensor] = {}
    for v in range(graph.output, -1, -1):
        if v not in state:
            continue
        F, length = _clipped(state.pop(v), norm.pop(v), setting, rows, maps, v)
        ranges[v], norms[v] = F, length
        for i, G, n in _backward(setting, v, F, length):
            if i in state:
                state[i] = outward(state[i].lower + G.lower, state[i].upper + G.upper)
                state[i], norm[i] = nan_is_unbounded(state[i]), total(norm[i], n)
            else:
                state[i], norm[i] = G, n
    return Derivatives(ranges, norms)


def _clipped(
    F: Interval, norm: Tensor, setting: Setting, rows: Tensor, maps: CentredMaps | None, v: int
) -> tuple[Interval, Tensor]:
    """Both intersected with what each says of the other, and with the gains of the centred maps."""
    magnitude = F.magnitude.flatten(1)
    own = enlarge(magnitude.square().sum(1).sqrt(), gamma(magnitude.shape[1] + 8))
    norm = torch.minimum(norm, own.nan_to_num(nan=torch.inf, posinf=torch.inf))
    output = setting.graph.output
    if maps is not None and v in maps.sources and output in maps.targets:
        norm = torch.minimum(norm, maps.row_gains(output, v, rows.flatten(1)))
    reach = norm.reshape(-1, *(1 for _ in F.shape[1:]))
    return Interval(F.lower.maximum(-reach), F.upper.minimum(reach)), norm


def _backward(setting: Setting, v: int, F: Interval, norm: Tensor) -> list[tuple[int, Interval, Tensor]]:
    """What one node hands to its inputs: (input, range, norm)."""
    graph = setting.graph
    node = graph.nodes[v]
    block = setting.structure.blocks.get(v)
    if block is not None:
        reach = scaled(norm, block.lipschitz)
        wide = reach.reshape(-1, *(1 for _ in graph.nodes[block.input].shape)).expand(
            -1, *graph.nodes[block.input].shape
        )
        return [(block.input, Interval(-wide, wide), reach)]
    if isinstance(node.op, Linear):
        shapes = [graph.nodes[i].shape for i in node.inputs]
        bounds = setting.structure.norms(v)
        found = _adjoint_interval(node.op, shapes, F)
        return [(i, G, scaled(norm, n)) for i, G, n in zip(node.inputs, found, bounds, strict=True)]
    found = []
    for i, slope in zip(node.inputs, setting.slopes[v], strict=True):
        G = interval_product(F, Interval(slope.lower.unsqueeze(0), slope.upper.unsqueeze(0)))
        found.append((i, G, scaled(norm, float(slope.magnitude.max()))))
    return found


def interval_product(a: Interval, b: Interval) -> Interval:
    """Interval product, 0 times anything being 0."""
    corners = torch.stack(
        torch.broadcast_tensors(a.lower * b.lower, a.lower * b.upper, a.upper * b.lower, a.upper * b.upper)
    )
    zero = ((a.lower == 0) & (a.upper == 0)) | ((b.lower == 0) & (b.upper == 0))
    found = nan_is_unbounded(outward(corners.amin(0), corners.amax(0)))
    return Interval(torch.where(zero, 0.0, found.lower), torch.where(zero, 0.0, found.upper))


def _adjoint_interval(op: Linear, shapes: list[tuple[int, ...]], F: Interval) -> list[Interval]:
    """L_i^T F for every input."""
    if not bool(F.lower.isfinite().all() and F.upper.isfinite().all()):
        infinite = [torch.full((F.shape[0], *s), torch.inf, dtype=torch.float64) for s in shapes]
        return [Interval(-x, x) for x in infinite]
    centre = F.centre
    radius = radius_upper(F)
    values = op.adjoint(centre)
    slack = round_up(radius + gamma(op.terms + 8) * centre.abs())
    inputs = [torch.zeros(F.shape[0], *s, dtype=torch.float64, requires_grad=True) for s in shapes]
    with torch.enable_grad():
        spread = torch.autograd.grad(op.absolute(*inputs, bias=False), inputs, slack)
    found = []
    for value, r in zip(values, spread, strict=True):
        r = round_up(enlarge(r, gamma(op.terms + 8)) + TINY)
        found.append(nan_is_unbounded(Interval(value - r - 2.0**-52 * value.abs(), value + r + 2.0**-52 * value.abs())))
    return found
