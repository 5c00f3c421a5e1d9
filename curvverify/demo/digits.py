"""Two networks of the same shape (784-32-10) that read digits, one trained for its certificate, and one question.

    cd curvverify/demo; export DATA=mnist.npz
    curvverify train --data $DATA --arch mlp-2x32 --eps 1 --epochs 12 --out digits_certificate.onnx
    curvverify train --data $DATA --arch mlp-2x32 --method standard --epochs 12 --out digits_standard.onnx
    python -m curvverify.demo.digits

The question is about a zero drawn here, no sample of any data set: does every image that differs from it by at most
`RADIUS` in every pixel get class 0?  It does for the first network and not for the second.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent
CERTIFICATE = FOLDER / "digits_certificate.onnx"
STANDARD = FOLDER / "digits_standard.onnx"
PROPERTY = FOLDER / "digits_zero.vnnlib"

RADIUS = 0.08
SIZE = 28
LABEL = 0
CLASSES = 10


def zero() -> NDArray[np.float64]:
    """A ring with a soft edge, (28, 28) in [0, 1] with two decimals."""
    row, column = np.mgrid[0:SIZE, 0:SIZE] - (SIZE - 1) / 2.0
    distance = np.hypot(row / 1.25, column)
    return np.round(np.exp(-(((distance - 6.0) / 1.6) ** 2)), 2)


def property_text() -> str:
    """The question in VNN-LIB 1.0: inputs within the radius and [0, 1], some other class at least as high."""
    pixels = zero().ravel()
    lines = [f"; images within {RADIUS} of a drawn zero, in every pixel; unsafe: another class is at least as high"]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(pixels))]
    lines += [f"(declare-const Y_{k} Real)" for k in range(CLASSES)]
    for i, value in enumerate(pixels):
        low, high = max(round(value - RADIUS, 2), 0.0), min(round(value + RADIUS, 2), 1.0)
        lines.append(f"(assert (>= X_{i} {low:g})) (assert (<= X_{i} {high:g}))")
    others = " ".join(f"(and (>= Y_{k} Y_{LABEL}))" for k in range(CLASSES) if k != LABEL)
    return "\n".join([*lines, f"(assert (or {others}))", ""])


if __name__ == "__main__":
    PROPERTY.write_text(property_text(), encoding="utf-8")
