"""A query as the bounds see it: distinct rows over output and input, and what each disjunct asks of them.

A disjunct's unsafe set is {output y + input x <= bound}.  It is refuted on a box as soon as one of its rows is proved
to exceed its bound there: a proved `row_lower > bound` (bound rounded up, float32 form included).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvverify.bounding.substitution import Rows
from curvverify.spec.query import Polytope, Query
from curvverify.types import Interval


@dataclass(frozen=True, eq=False)
class Property:
    """G input boxes, D disjuncts each at most, K rows each at most, over R distinct rows.

    boxes: (G, n).  output: (R, m), input: (R, n) or None.  rows: (G, D, K) positions into the R rows, -1 where a
    disjunct has fewer rows; thresholds: (G, D, K); present: (G, D) disjuncts that exist.
    """

    boxes: Interval
    output: Tensor
    input: Tensor | None
    output_error: Tensor | None
    input_error: Tensor | None
    rows: Tensor
    thresholds: Tensor
    present: Tensor

    @property
    def groups(self) -> int:
        return self.rows.shape[0]

    def select_rows(self, index: Tensor, output_shape: tuple[int, ...], input_shape: tuple[int, ...]) -> Rows:
        """The chosen distinct rows as coefficients of the output node."""
        coefficients = self.output[index].reshape(1, -1, *output_shape)
        shift = None if self.input is None else self.input[index].reshape(1, -1, *input_shape)
        return Rows(coefficients, shift)

    def coefficient_slack(self, index: Tensor, output: Tensor, inputs: Tensor) -> Tensor:
        """How much (B, R) the chosen rows may be off because their decimals are not float64 numbers.

        `output` (B, m) and `inputs` (B, n) bound |y| and |x|.
        """
        slack = torch.zeros(output.shape[0], index.numel(), dtype=torch.float64)
        if self.output_error is not None:
            slack = slack + 1.01 * (output @ self.output_error[index].T)
        if self.input_error is not None:
            slack = slack + 1.01 * (inputs @ self.input_error[index].T)
        return slack

    def margins(self, group: Tensor, lower: Tensor) -> Tensor:
        """Proved margins (B, D, K) of boxes of the groups (B,), from row bounds (B, R); -inf for padding."""
        rows = self.rows[group]
        picked = lower.gather(1, rows.clamp(min=0).flatten(1)).reshape(rows.shape)
        return torch.where(rows >= 0, picked - self.thresholds[group], -torch.inf)

    def wanted(self, group: Tensor, open_disjuncts: Tensor) -> Tensor:
        """Positions of the distinct rows that some open disjunct (B, D) of the boxes asks for."""
        rows = self.rows[group][open_disjuncts]
        return rows[rows >= 0].unique()


def compile_query(query: Query) -> Property:
    """The query's non-empty boxes and their disjuncts, with identical rows shared."""
    groups = [g for g in query.groups if not g.box.empty]
    covers = [g.box.cover for g in groups]
    boxes = Interval(_stack([c[0] for c in covers]), _stack([c[1] for c in covers]))
    table = _RowTable(query)
    depth = max((len(g.disjuncts) for g in groups), default=0)
    width = max((p.rows for g in groups for p in g.disjuncts), default=0)
    rows = np.full((len(groups), depth, max(width, 1)), -1, np.int64)
    thresholds = np.zeros(rows.shape)
    present = np.zeros(rows.shape[:2], bool)
    for g, group in enumerate(groups):
        for d, polytope in enumerate(group.disjuncts):
            present[g, d] = True
            rows[g, d, : polytope.rows] = table.positions(polytope)
            thresholds[g, d, : polytope.rows] = polytope.bound_cover
    return Property(
        boxes,
        *table.tensors(),
        rows=torch.from_numpy(rows),
        thresholds=torch.from_numpy(thresholds),
        present=torch.from_numpy(present),
    )


def _stack(vectors: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(vectors)) if vectors else torch.zeros(0, 0, dtype=torch.float64)


class _RowTable:
    """Distinct rows in order of appearance."""

    def __init__(self, query: Query):
        self.query = query
        self.found: dict[bytes, int] = {}
        self.rows: list[tuple[np.ndarray, ...]] = []

    def positions(self, polytope: Polytope) -> np.ndarray:
        nothing = np.zeros((polytope.rows, self.query.inputs))
        inputs, error = polytope.input_matrix, polytope.input_error
        parts = (
            polytope.output_matrix,
            nothing if inputs is None else inputs,
            polytope.output_error,
            nothing if error is None else error,
        )
        return np.array([self._position(tuple(p[k] for p in parts)) for k in range(polytope.rows)], np.int64)

    def _position(self, row: tuple[np.ndarray, ...]) -> int:
        key = b"".join(np.ascontiguousarray(p).tobytes() for p in row)
        if key not in self.found:
            self.found[key] = len(self.rows)
            self.rows.append(row)
        return self.found[key]

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Output and input coefficients with their errors; None where all zero.  At least one row, to be gathered."""
        sizes = (self.query.outputs, self.query.inputs, self.query.outputs, self.query.inputs)
        rows = self.rows or [tuple(np.zeros(n) for n in sizes)]
        stacked = [torch.from_numpy(np.stack([r[i] for r in rows])) for i in range(len(sizes))]
        output, *rest = stacked
        inputs, output_error, input_error = (t if bool(t.any()) else None for t in rest)
        return output, inputs, output_error, input_error
