"""Radii with constants of the ball that the radius itself defines: regional and anchored curvature.

Constants over a ball of radius R prove a radius min(R, f(R)), f falling with R; the largest is where f(R) = R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvverify.bounding.constants.analysis import Analysis
from curvverify.bounding.constants.anchored import anchored_constants
from curvverify.bounding.constants.report import analysis_over, with_rows
from curvverify.bounding.constants.rows import difference_rows
from curvverify.bounding.constants.setting import Structure
from curvverify.bounding.region import region_of
from curvverify.certificates.closed_form import cubic_radius, lipschitz_radius, taylor_radius
from curvverify.certificates.reduced import reduced
from curvverify.graph.layers import Graph
from curvverify.types import Ball

METHODS = ("anchored", "local lipschitz", "cubic")

HERE = 1e-6
"""The Hessian at the sample itself is bounded over a ball so much smaller."""

BEYOND = 1.1
"""The first ball relative to the known radius."""

MET = 1.02
"""The fixed point is met when f(R) is within this factor of R."""


@dataclass(frozen=True, eq=False)
class LocalConstants:
    """For every margin z_y - z_t, t != y in order, on a ball: tensors (K - 1)."""

    lipschitz: Tensor
    anchored: Tensor
    """h >= margin - g r - anchored r^2 / 2: of the gradient relative to the centre, or of the Hessian from below."""
    bend: Tensor
    top: Tensor
    third: Tensor
    """Lipschitz constant of the Hessian."""


@dataclass(frozen=True, eq=False)
class LocalRadius:
    """The proved radius of a sample, the formula that gave it, and the constants of the last ball it was proved in."""

    radius: float
    method: str


def margins_graph(graph: Graph, y: int) -> Graph:
    """The graph whose outputs are z_y - z_t for all t != y in order."""
    size = graph.nodes[graph.output].size
    others = torch.arange(size)[torch.arange(size) != y]
    return with_rows(graph, difference_rows(size, torch.full_like(others, y), others), f"margins of class {y}")


@dataclass(eq=False)
class LocalAnalyser:
    """Constants on balls; norms of the network's operators are computed once per label."""

    graph: Graph
    structures: dict[int, Structure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reduced = reduced(self.graph)

    def _structure(self, x: Tensor, y: int) -> tuple[Structure, Tensor]:
        """The margins of class y as a graph, and the centre in its input."""
        if self.reduced is None:
            if y not in self.structures:
                self.structures[y] = Structure(margins_graph(self.graph, y))
            return self.structures[y], x.reshape(self.graph.input_shape)
        graph = margins_graph(self.reduced.around(x), y)
        known = self.structures.setdefault(y, Structure(graph))  # the graphs differ in their first constant only
        return known.like(graph), torch.zeros(self.reduced.shape, dtype=torch.float64)

    @torch.no_grad()
    def region(self, x: Tensor, y: int, radius: float) -> tuple[Analysis, Tensor]:
        """The margins of the sample x (n) of class y over the ball of that radius, and its centre in their input."""
        structure, centre = self._structure(x, y)
        return analysis_over(structure, region_of(Ball(centre, radius), structure.graph.input_shape)), centre

    def constants(self, x: Tensor, y: int, radius: float) -> LocalConstants:
        """For the sample x (n) of class y over the ball of that radius."""
        region, centre = self.region(x, y, radius)
        entries = region.nodes[-1].entries
        curvature, third = entries.curvature.flatten(), entries.third_order.flatten()
        bend, top = _forms(region)
        with torch.no_grad():
            anchored = anchored_constants(region, centre)
            relative = anchored.nodes[-1].entries
            if anchored.row_curvature is not None:
                curvature = torch.minimum(curvature, anchored.row_curvature)
            curvature = torch.minimum(curvature, relative.curvature.flatten())
            lipschitz = torch.minimum(entries.lipschitz.flatten(), relative.lipschitz.flatten())
        return LocalConstants(lipschitz, torch.minimum(curvature, bend), bend, top, third)

    def radius(
        self,
        x: Tensor,
        y: int,
        margin: Tensor,
        slope: Tensor,
        known: float,
        limit: float,
        *,
        tries: int = 7,
        decide: bool = False,
    ) -> LocalRadius:
        """The largest radius of the fixed point found in so many balls, between the known one and the limit.

        The first ball is little larger than the known one: constants that prove less there prove no more further out.

        margin and slope (K - 1) as in `closed_form`.  To `decide`, the ball of the limit itself comes first.
        """
        best = LocalRadius(known, "")
        low, high = known, limit
        R = min(BEYOND * known, limit) if known > 0.0 else min(limit, 1e-3)
        here, _ = _forms(self.region(x, y, HERE * R)[0])
        R = limit if decide else R
        for _ in range(tries):
            c = self.constants(x, y, R)
            radii = torch.stack(
                [
                    taylor_radius(margin, slope, c.anchored),
                    lipschitz_radius(margin, c.lipschitz),
                    cubic_radius(margin, slope, here, c.third),
                ]
            )
            each, which = radii.max(0)
            found = float(each.min())
            proved = min(R, found)
            if proved > best.radius:
                best = LocalRadius(proved, METHODS[int(which[int(each.argmin())])])
            if found >= R:
                low = max(low, R)
                if found <= MET * R:
                    break
                high = min(high, found)
            else:
                if found <= known:
                    break
                low = max(low, found)
                high = min(high, R)
            if not high > MET * low:
                break
            R = math.sqrt(max(low, 1e-3 * high) * high)
        return best


def _forms(region: Analysis) -> tuple[Tensor, Tensor]:
    """(bend, top) of every output: -bend I <= Hessian <= top I on the region."""
    curvature = region.nodes[-1].entries.curvature.flatten()
    if region.rows is None:
        return curvature, curvature
    bend, top = torch.minimum(curvature, -region.rows.lower), torch.minimum(curvature, region.rows.upper)
    return bend.clamp(min=0.0), top.clamp(min=0.0)
