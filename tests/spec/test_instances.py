"""instances.csv and expected.csv."""

import gzip
from pathlib import Path

import pytest

from curvverify.errors import ParseError, UnreadableError
from curvverify.spec import load_expected, load_instances


@pytest.mark.parametrize("header", ["", "onnx,vnnlib,timeout\n"])
def test_paths_are_relative_to_the_file_and_fall_back_to_gz(tmp_path, header):
    (tmp_path / "n.onnx.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "q.vnnlib").touch()
    (tmp_path / "instances.csv").write_text(header + "n.onnx, ./q.vnnlib,116\n\nabsent.onnx,absent.vnnlib,210.5\r\n")
    first, second = load_instances(tmp_path / "instances.csv")
    assert (first.onnx, first.vnnlib, first.timeout) == (tmp_path / "n.onnx.gz", tmp_path / "q.vnnlib", 116.0)
    assert (second.onnx, second.timeout, second.error) == (tmp_path / "absent.onnx", 210.5, None)


def test_several_networks_are_an_error_of_their_instance_only(tmp_path):
    (tmp_path / "i.csv").write_text("\"[('f', 'a.onnx'), ('g', 'b.onnx')]\",q.vnnlib,100\na.onnx,q.vnnlib,1\n")
    both, single = load_instances(tmp_path / "i.csv")
    assert "several networks" in str(both.error)
    assert both.onnx == Path("[('f', 'a.onnx'), ('g', 'b.onnx')]")
    assert single.error is None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a.onnx,q.vnnlib,1\na.onnx,q.vnnlib\n", 2, "expected 3 columns, found 2"),
        ("onnx,vnnlib,timeout\na.onnx,q.vnnlib,soon\n", 2, "expected seconds, found 'soon'"),
    ],
)
def test_errors_name_the_line(tmp_path, text, line, message):
    (tmp_path / "i.csv").write_text(text)
    with pytest.raises(ParseError, match=message) as caught:
        load_instances(tmp_path / "i.csv")
    assert caught.value.line == line


def test_a_missing_list(tmp_path):
    with pytest.raises(UnreadableError, match="No such file"):
        load_instances(tmp_path / "instances.csv")


def test_expected(tmp_path):
    (tmp_path / "expected.csv").write_text(
        "onnx,vnnlib,timeout,verdict,confidence,fastest_s\na.onnx,q.vnnlib,116,unsat,13tools,0.91\na.onnx,r.vnnlib,116,unknown,,\n"
    )
    decided, open_ = load_expected(tmp_path / "expected.csv")
    assert (decided.verdict, decided.confidence, decided.fastest_s) == ("unsat", "13tools", 0.91)
    assert (open_.verdict, open_.confidence, open_.fastest_s, open_.onnx) == ("unknown", "", None, tmp_path / "a.onnx")


def test_the_benchmark_lists(shared_path):
    lists = sorted(shared_path.glob("vnncomp/**/instances.csv"))
    assert len(lists) > 15
    several = 0
    for path in lists:
        instances = load_instances(path)
        several += sum(i.error is not None for i in instances)
        assert all(i.vnnlib.exists() and i.timeout > 0 for i in instances)
        assert all(i.onnx.exists() for i in instances if i.error is None)
        expected = path.with_name("expected.csv")
        if expected.exists():
            assert {e.verdict for e in load_expected(expected)} <= {"sat", "unsat", "unknown"}
            assert [(e.onnx, e.vnnlib) for e in load_expected(expected)] == [(i.onnx, i.vnnlib) for i in instances]
    assert several == 2
