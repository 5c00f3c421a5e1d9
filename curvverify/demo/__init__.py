"""The embedded example: a small smooth network this project trained itself, one property that holds, one that fails.

The task: tell the two interleaved half circles ("moons") apart.  `train_demo.py` made `moons.onnx`; the boxes of the
two properties were drawn by hand.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MODEL = FOLDER / "moons.onnx"
HOLDS = FOLDER / "holds.vnnlib"
FAILS = FOLDER / "fails.vnnlib"
