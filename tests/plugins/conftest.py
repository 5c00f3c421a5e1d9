"""The command-line fixture, for commands that a bridge adds to."""

from tests.cli.conftest import call

__all__ = ["call"]
