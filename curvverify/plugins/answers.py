"""What another competition tool answered, and whether its counterexample is one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from curvverify.errors import CurvverifyError, UnreadableError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from curvverify.spec.query import Query

WORDS = ("unsat", "sat", "unknown", "timeout", "error")
"""What the first line of a result file may be."""

CREDIT = 1e-4
"""Absolute distance outside the box within which the competition still credits a witness: such a one is moved inside
and replayed there."""

REFUSED = 3
"""Exit code of `confirm` where the witness does not hold."""


def verdict_of(text: str) -> str:
    """The word of a result file; UnreadableError where it is malformed."""
    first = text.split("\n", 1)[0].strip()
    if first not in WORDS:
        shown = repr(first[:60]) if first else "nothing"
        raise UnreadableError(f"malformed result file: its first line is {shown}, not one of {', '.join(WORDS)}")
    if first == "sat" and not text.strip().removeprefix("sat").strip():
        raise UnreadableError("malformed result file: sat without a witness")
    return first


def confirm(network: str, vnnlib: str, answer: str, result: str) -> int:
    """Replay the witness of the result file `answer`; where it holds, write `result` with ONNX Runtime's own outputs.

    0 where it holds, otherwise REFUSED with the reason on stderr.
    """
    from curvverify.report.witness import parse_witness, witness_text
    from curvverify.spec import load_query
    from curvverify.verification.result import Witness

    try:
        if network.lstrip().startswith("["):
            raise UnreadableError("a witness over several networks cannot be replayed")
        query = load_query(vnnlib)
        x, _ = parse_witness(Path(answer).read_text(encoding="utf-8", errors="replace"), query, "the witness")
        x, y = replayed(query, x, runtime(network))
        witness = Witness(tuple(x.tolist()), tuple(y.tolist()), True)
        Path(result).write_text(f"sat\n{witness_text(query, witness)}\n", encoding="utf-8")
    except CurvverifyError as error:
        sys.stderr.write(str(error))
        return REFUSED
    return 0


def replayed(
    query: Query, x: NDArray[np.float32], run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The input with its output where it is a counterexample with zero tolerance; UnreadableError says why not.

    An input outside of a box by at most CREDIT is moved into it first.
    """
    import numpy as np

    if x.size != query.inputs or not np.isfinite(x).all():
        raise UnreadableError(f"the witness has {x.size} finite inputs, the query {query.inputs}")
    outside = np.inf
    for group in query.groups:
        if group.box.empty:
            continue
        low, high = group.box.witness_range
        inside = np.clip(x, low, high)
        excess = float(np.abs(inside.astype(np.float64) - x).max())
        outside = min(outside, excess)
        if excess <= CREDIT:
            y = run(inside)
            if query.satisfied_by(inside, y) is not None:
                return inside, y
    if outside > CREDIT:
        raise UnreadableError(f"the witness does not replay: its input is outside of every box, by {outside:.3g}")
    raise UnreadableError("the witness does not replay: ONNX Runtime's output for its input is not in the unsafe set")


def runtime(path: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """ONNX Runtime's outputs for a flat float32 input, flattened and in float32, whatever operators the model has."""
    import numpy as np

    from curvverify.graph.loading import read_bytes
    from curvverify.graph.onnx_import import prepare
    from curvverify.graph.replay import session

    name, content = Path(path).name, read_bytes(path)
    parsed = prepare.parsed(content, name, Path(path).parent)
    if len(content) < parsed.ByteSize():  # tensors have come from other files
        content = parsed.SerializeToString()
    ports = prepare.input_ports(prepare.with_shapes(parsed, None, name), name)
    engine = session(content, name)
    ends = np.cumsum([int(np.prod(port.shape, dtype=np.int64)) for port in ports])

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        if x.size != ends[-1]:
            raise UnreadableError(f"{name} takes {ends[-1]} inputs, the witness has {x.size}")
        parts = np.split(x, ends[:-1])
        feed = {p.name: v.reshape(p.shape).astype(p.dtype) for p, v in zip(ports, parts, strict=True)}
        outputs = engine.run(None, feed)
        return np.concatenate([np.asarray(o).ravel().astype(np.float32) for o in outputs])

    return run
