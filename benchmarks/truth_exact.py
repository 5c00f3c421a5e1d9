"""Exact minima of ReLU networks over boxes by mixed-integer programming, for `truth.py`."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

Layers = list[tuple[np.ndarray, np.ndarray]]


def least_of_row(layers: Layers, lower: np.ndarray, upper: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The point x of the box at which row . (y, x) is least, y = the network with ReLUs between its layers.

    Per hidden unit a >= 0, a >= z, a <= z - l (1 - d), a <= u d with a binary d and the interval l <= z <= u.  Raises
    RuntimeError where the solver does not prove its optimum.
    """
    inputs, hidden = len(lower), [len(bias) for _, bias in layers[:-1]]
    units = sum(hidden)
    size = inputs + 2 * units  # x, then every a, then every d
    cost = np.zeros(size)
    last, _ = layers[-1]
    outputs = len(last)
    cost[:inputs] = row[outputs:]
    cost[inputs + units - hidden[-1] : inputs + units] = row[:outputs] @ last
    matrix, low, high = lil_matrix((3 * units, size)), np.full(3 * units, -np.inf), np.zeros(3 * units)
    below, above = lower, upper
    top = np.concatenate([upper, np.zeros(units), np.ones(units)])
    begin, unit = 0, 0
    for weight, bias in layers[:-1]:
        positive, negative = weight.clip(min=0), weight.clip(max=0)
        l, u = positive @ below + negative @ above + bias, positive @ above + negative @ below + bias  # noqa: E741
        for k in range(len(bias)):
            a, d, r = inputs + unit, inputs + units + unit, 3 * unit
            columns = slice(begin, begin + weight.shape[1])
            matrix[r, columns], matrix[r, a], high[r] = weight[k], -1.0, -bias[k]  # z - a <= 0
            matrix[r + 1, columns], matrix[r + 1, a] = -weight[k], 1.0  # a - z + l (1 - d) <= 0
            matrix[r + 1, d], high[r + 1] = -min(l[k], 0.0), bias[k] - min(l[k], 0.0)
            matrix[r + 2, a], matrix[r + 2, d] = 1.0, -max(u[k], 0.0)  # a - u d <= 0
            top[a] = max(u[k], 0.0)
            unit += 1
        begin = inputs + unit - len(bias)
        below, above = l.clip(min=0), u.clip(min=0)
    bounds = Bounds(np.concatenate([lower, np.zeros(2 * units)]), top)
    whole = np.concatenate([np.zeros(inputs + units), np.ones(units)])
    rows = LinearConstraint(matrix.tocsr(), low, high)
    found = milp(cost, constraints=rows, bounds=bounds, integrality=whole, options={"mip_rel_gap": 0.0})
    if not found.success:
        raise RuntimeError(f"HiGHS: {found.message}")
    return found.x[:inputs]
