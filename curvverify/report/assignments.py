"""A witness as the VNN-LIB 2.0 standard's serialised assignments: one ONNX TensorProto file per variable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import numpy_helper

from curvverify.errors import UsageError
from curvverify.spec.query import Query, Variable
from curvverify.verification.result import Witness

TYPES = {"float64": np.float64, "float16": np.float16}
"""Element types other than float32, in which the witness itself was found and replayed."""


def write_assignments(query: Query, witness: Witness, folder: Path) -> list[Path]:
    """Write NAME.pb for every declared variable (X and Y, flat, for a 1.0 query); UsageError where it cannot."""
    variables = query.variables or (
        Variable("X", "float32", (query.inputs,), False),
        Variable("Y", "float32", (query.outputs,), True),
    )
    position = {False: 0, True: 0}
    written: list[Path] = []
    for variable in variables:
        begin = position[variable.output]
        position[variable.output] += variable.size
        values = (witness.y if variable.output else witness.x)[begin : begin + variable.size]
        array = np.array(values, TYPES.get(variable.element_type, np.float32)).reshape(variable.shape)
        path = folder / f"{variable.name}.pb"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(numpy_helper.from_array(array, variable.name).SerializeToString())
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written
