"""Elementwise operators: one scalar function per entry, one small file per family.

To add one: a class in its family's file (for a smooth function `forward`, `slope` and the record of `facts`), a line in
`ops/registry.py`, a case in `tests/ops/cases.py`.

* `accuracy`: the one assumption about floating point.  `facts`: what a smooth operator declares.
* `smooth`: interval and convex pieces from the facts.  `tangents`: builds the envelope.  `envelope`: asked for points.
* `hinge`: the ReLU family.  `polygon`: envelopes with corners.  `select`: a fast choice between two tensors.
"""
