"""Elementwise operators: one scalar function per entry, one small file per family.

To add one: a class in its family's file (for a smooth function `forward`, `slope`, the record of `facts` and the
`branches`), a line in `ops/registry.py`, a case in `tests/ops/cases.py`.

* `levels`: what a function declares about its derivatives.  `branches`: bounds on them.  `secants`: on their quotients.
* `accuracy`: the one assumption about floating point.  `facts`: what a smooth operator declares.
* `smooth`: interval and convex pieces from the facts.  `tangents`: builds the envelope.  `envelope`: asked for points.
* `hinge`: the ReLU family.  `polygon`: envelopes with corners.  `select`: a fast choice between two tensors.
"""
