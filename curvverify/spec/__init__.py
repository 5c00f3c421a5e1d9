"""VNN-LIB files and instance lists: what is asked about a network."""

from curvverify.spec.instances import Expected, Instance, load_expected, load_instances
from curvverify.spec.load import load_query, parse_query
from curvverify.spec.query import Group, InputBox, Polytope, Query, Variable

__all__ = [
    "Expected",
    "Group",
    "InputBox",
    "Instance",
    "Polytope",
    "Query",
    "Variable",
    "load_expected",
    "load_instances",
    "load_query",
    "parse_query",
]
