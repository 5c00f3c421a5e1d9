"""What a rule is, and how it declines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]


class CannotLower(Exception):  # noqa: N818 - it is caught where it is raised for, and becomes an UnsupportedNode
    """The operator is known, and these arguments cannot be expressed; says what would help."""
