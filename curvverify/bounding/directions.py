"""The directions of the input in which a network's remainders vary most: what to cut a box along."""

from __future__ import annotations

import torch
from torch import Tensor

from curvverify.bounding.coupling.generators import Strip, node_generators, row_remainders
from curvverify.bounding.relaxation import Relaxation
from curvverify.bounding.substitution import Rows
from curvverify.ops.base import Elementwise

ENTRIES = 256
"""Most entries whose linear forms are stacked, those with the largest remainders."""


def dominant_directions(relaxation: Relaxation, node: int, row: Rows, count: int) -> tuple[Tensor, Tensor]:
    """Directions v (K, n) with sum_i |v_i| r_i = 1 for one box of radius r, and their strengths (K,), K <= count.

    The chord forms z = c + J d of the entries behind at least one nonlinear node, each weighted by the square root of
    what its remainder takes from the row and divided by its half-width, are stacked; the v are the leading right
    singular vectors of J diag(r), and the strengths how far a form varies along them.  An estimate: any directions
    are sound.
    """
    graph, box = relaxation.graph, relaxation.box
    radius = (0.5 * box.width).flatten()
    strips: dict[int, Strip] = {}
    losses = row_remainders(relaxation, node, row, strips)
    deep = [i for i in losses if graph.levels[i] > 0 and isinstance(graph.nodes[i].op, Elementwise)]
    deep = deep or [i for i in losses if isinstance(graph.nodes[i].op, Elementwise)]
    stacked = [radius.new_zeros(0, len(radius))]
    for i, loss, entries in _largest({i: losses[i].abs().flatten() for i in deep}):
        source = graph.nodes[i].inputs[0]
        half = (0.5 * relaxation.intervals[source].width).flatten()[entries]
        forms = node_generators(relaxation, source, entries.unsqueeze(0), strips)[0].columns[0]
        stacked.append(forms * (loss.sqrt() / half.clamp(min=1e-12)).unsqueeze(1))
    forms = torch.cat(stacked).nan_to_num(0.0, 0.0, 0.0)
    _, sizes, vectors = torch.linalg.svd(forms, full_matrices=False)
    moves = radius > 0
    found, strengths = [], []
    for size, vector in zip(sizes[:count], vectors[:count], strict=True):
        length = vector[moves].abs().sum()
        if size > 1e-9 * sizes[0] and length > 0:
            found.append(torch.where(moves, vector / radius.clamp(min=1e-300), 0.0) / length)
            strengths.append(size * length)
    if not found:
        return radius.new_zeros(0, len(radius)), radius.new_zeros(0)
    return torch.stack(found), torch.stack(strengths)


def _largest(losses: dict[int, Tensor]) -> list[tuple[int, Tensor, Tensor]]:
    """Node, losses and flat entries of the largest losses."""
    if not losses:
        return []
    every = torch.cat(list(losses.values()))
    least = every.topk(min(ENTRIES, len(every))).values[-1]
    chosen = [(i, loss, ((loss >= least) & (loss > 0)).nonzero().squeeze(1)) for i, loss in losses.items()]
    return [(i, loss[entries], entries) for i, loss, entries in chosen if entries.numel()]
