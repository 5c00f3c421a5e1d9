"""What can go wrong, one class per exit code of the command line."""

from __future__ import annotations

from dataclasses import dataclass


class CurvverifyError(Exception):
    """Base class of every error that is the user's to fix; anything else is a bug of ours."""

    exit_code = 1


class UsageError(CurvverifyError):
    """The call itself makes no sense: unknown option, contradicting arguments."""

    exit_code = 2


class UnsupportedError(CurvverifyError):
    """The input is well formed, and this version cannot handle it."""

    exit_code = 3


class UnreadableError(CurvverifyError):
    """The input cannot be read: missing, truncated, malformed, or of the wrong shape."""

    exit_code = 4


class ParseError(UnreadableError):
    """A malformed text file: names the file, the line, and what was expected."""

    def __init__(self, path: str, line: int | None, message: str):
        self.path, self.line = path, line
        place = path if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {message}")


@dataclass(frozen=True)
class UnsupportedNode:
    """One node that the front end cannot translate."""

    name: str
    operator: str
    opset: int | None
    shape: tuple[int, ...] | None
    help: str

    def __str__(self) -> str:
        opset = "" if self.opset is None else f", opset {self.opset}"
        shape = "" if self.shape is None else f", output shape {list(self.shape)}"
        return f"node {self.name!r}: operator {self.operator}{opset}{shape}: {self.help}"


class UnsupportedModelError(UnsupportedError):
    """Lists every node of a model that is not supported, at once."""

    def __init__(self, model: str, nodes: list[UnsupportedNode]):
        self.model, self.nodes = model, tuple(nodes)
        lines = "\n".join(f"  {node}" for node in nodes)
        super().__init__(f"{model}: {len(nodes)} unsupported node(s)\n{lines}")


class ReplayError(UnsupportedError):
    """The layer graph and ONNX Runtime disagree: the model was not understood and is refused."""
