"""Networks, shapes and files as the command line names them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from curvverify.cli.inputs import Network, check_semantics, existing, one_network, parse_networks, parse_shapes
from curvverify.errors import UnreadableError, UnsupportedError, UsageError
from curvverify.spec import parse_query

QUERY_2 = """
(vnnlib-version <2.0>)
(declare-network f (declare-input X {type} [1,1]) (declare-output Y {type} [1,1]))
(assert (<= X[0,0] 1.0)) (assert (>= X[0,0] 0.0)) (assert (>= Y[0,0] 1.0))
"""
QUERY_1 = """
(declare-const X_0 Real) (declare-const Y_0 Real)
(assert (<= X_0 1.0)) (assert (>= X_0 0.0)) (assert (>= Y_0 1.0))
"""


def test_networks_with_and_without_names(tmp_path: Path) -> None:
    plain = tmp_path / "n=2.onnx"
    assert parse_networks(["f=a.onnx", "b.onnx", str(plain)]) == (
        Network("f", Path("a.onnx")),
        Network(None, Path("b.onnx")),
        Network(None, plain),
    )


def test_a_file_that_looks_like_a_named_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tllBench_n=2.onnx").touch()
    assert parse_networks(["tllBench_n=2.onnx"]) == (Network(None, Path("tllBench_n=2.onnx")),)


def test_the_competition_list() -> None:
    assert parse_networks(["[('f', 'a.onnx')]"]) == (Network("f", Path("a.onnx")),)
    two = parse_networks(["[('f', 'a.onnx'), ('g', 'b b.onnx')]"])
    with pytest.raises(UnsupportedError, match=r"b b\.onnx"):
        one_network(two)
    with pytest.raises(UsageError, match="pairs"):
        parse_networks(["[1, 2]"])


def test_no_network() -> None:
    with pytest.raises(UsageError, match="--network"):
        one_network(())


def test_existing_falls_back_to_gz(tmp_path: Path) -> None:
    packed = tmp_path / "a.onnx.gz"
    packed.write_bytes(gzip.compress(b""))
    assert existing(tmp_path / "a.onnx") == packed
    with pytest.raises(UnreadableError, match=r"b\.onnx: no such file"):
        existing(tmp_path / "b.onnx")
    with pytest.raises(UnreadableError, match="folder"):
        existing(tmp_path)


def test_shapes() -> None:
    assert parse_shapes(["X=1,3,32,32", "a=b=2"]) == {"X": (1, 3, 32, 32), "a=b": (2,)}
    for wrong in ("1,2", "X=", "X=1,a", "X=0", "X=-1,2"):
        with pytest.raises(UsageError, match="--shape"):
            parse_shapes([wrong])


def test_floating_point_queries_need_consent() -> None:
    query = parse_query(QUERY_2.format(type="float32"))
    with pytest.raises(UnsupportedError, match="--real-semantics"):
        check_semantics(query, consent=False)
    check_semantics(query, consent=True)


def test_real_and_first_version_queries_need_none() -> None:
    check_semantics(parse_query(QUERY_2.format(type="real")), consent=False)
    check_semantics(parse_query(QUERY_1), consent=False)
