"""Constants of all differences z_y - z_t of scores, over all of R^n or over a ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvverify.bounding.constants.analysis import Analysis, pair_constants
from curvverify.bounding.constants.report import Norm, analysis_over
from curvverify.bounding.constants.setting import Structure
from curvverify.bounding.region import Region
from curvverify.certificates.reduced import reduced


@dataclass(frozen=True, eq=False)
class PairTable:
    """(K, K) tensors: for z_y - z_t the Lipschitz constant, and -bend I <= Hessian <= top I; inf where not computed."""

    lipschitz: Tensor
    bend: Tensor
    top: Tensor

    def of(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(lipschitz, bend, top) of pairs (N)."""
        return self.lipschitz[y, t], self.bend[y, t], self.top[y, t]


def pair_table(analysis: Analysis, labels: list[int]) -> PairTable:
    """The constants of all pairs (y, t) with y among the labels.

    Sound because: the Hessian of z_t - z_y is minus that of z_y - z_t, so that its bounds change places.
    """
    K = analysis.setting.graph.nodes[analysis.setting.graph.output].size
    wanted = sorted({(min(y, t), max(y, t)) for y in labels for t in range(K) if t != y})
    full = torch.full((K, K), torch.inf, dtype=torch.float64)
    tables = {name: full.clone() for name in ("lipschitz", "bend", "top")}
    rows = pair_constants(analysis, wanted)
    for k, (y, t) in enumerate(wanted):
        for a, b, top, low in ((y, t, rows.upper[k], rows.lower[k]), (t, y, -rows.lower[k], -rows.upper[k])):
            tables["lipschitz"][a, b] = rows.lipschitz[k]
            tables["top"][a, b], tables["bend"][a, b] = top, -low
    return PairTable(**tables)


def global_pairs(structure: Structure, labels: list[int], norm: Norm = "l2") -> PairTable:
    """The constants over all of R^n."""
    smaller = reduced(structure.graph) if norm == "l2" else None
    if smaller is not None:
        structure = Structure(smaller.around(None))
    with torch.no_grad():
        analysis = analysis_over(structure, Region.everywhere(structure.graph.input_shape), norm)
        return pair_table(analysis, labels)
