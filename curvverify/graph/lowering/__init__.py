"""How every ATen operator becomes nodes of the layer graph: one rule per operator, one table.

A rule takes the builder and the operator's own arguments, in which variables are `Var` and everything else is
concrete, and returns the result (a `Var`, or a tuple of them for several results).  Keys are `name` or
`name.overload` as torch spells them.
"""

from __future__ import annotations

from curvverify.graph.lowering import algebra, normalisation, pooling, reduction, scalar, structure
from curvverify.graph.lowering.rules import Rule

__all__ = ["RULES"]


def _table() -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for family in (algebra, normalisation, pooling, reduction, scalar, structure):
        if twice := found.keys() & family.RULES.keys():
            raise ValueError(f"two rules for {sorted(twice)}")
        found |= family.RULES
    return found


RULES: dict[str, Rule] = _table()
