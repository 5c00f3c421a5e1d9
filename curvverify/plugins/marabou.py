"""Marabou: our bounds on the variables of its input query.  Needs the package maraboupy (pip install maraboupy)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from curvverify.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from curvverify.plugins.exchange import BoundsFile


def variables(network: Any) -> dict[str, np.ndarray]:
    """The variables of every ONNX value of a `Marabou.read_onnx(...)`, in row-major order.

    Reading the same graph numbers the variables in the same way; UsageError where more have been added since.
    UnsupportedError where maraboupy is not installed.
    """
    if importlib.util.find_spec("maraboupy") is None:
        raise UnsupportedError("the bridge to Marabou needs the package maraboupy: pip install maraboupy")
    from maraboupy.MarabouNetwork import MarabouNetwork  # type: ignore[import-not-found]
    from maraboupy.parsers.ONNXParser import ONNXParser  # type: ignore[import-not-found]

    again = MarabouNetwork()
    parser = ONNXParser(again, network.graph, network.inputNames, network.outputNames)
    parser.parseGraph()
    if again.numVars != network.numVars:
        raise UsageError(f"the network has {network.numVars} variables, its file {again.numVars}: tighten it when read")
    return {name: np.asarray(values).ravel() for name, values in parser.varMap.items()}


def tighten(network: Any, bounds: BoundsFile) -> int:
    """Intersect the bounds of the network's variables with ours; how many ends are tighter now.

    The inputs' own bounds are the property's and stay.  UsageError where no value of the file is one of the network.
    """
    places = variables(network)
    inputs = set(network.inputNames)
    shared = [name for name in bounds.values if name in places and name not in inputs]
    if not shared:
        raise UsageError(f"none of the {len(bounds.values)} values with bounds is one of the network's")
    changed = 0
    for name in shared:
        known = bounds.values[name]
        for variable, low, high in zip(places[name], known.lower.ravel(), known.upper.ravel(), strict=True):
            variable = int(variable)
            if np.isfinite(low) and low > network.lowerBounds.get(variable, -np.inf):
                network.setLowerBound(variable, float(low))
                changed += 1
            if np.isfinite(high) and high < network.upperBounds.get(variable, np.inf):
                network.setUpperBound(variable, float(high))
                changed += 1
    return changed
