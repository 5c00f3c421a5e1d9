"""Files: plain or gzip by content, broken ones, and every query of the benchmark folder."""

import gzip

import numpy as np
import pytest

from curvverify.errors import CurvverifyError, ParseError, UnreadableError, UnsupportedError
from curvverify.spec import load_query

TEXT = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= Y_0 0))"
REFUSED = {
    "instance_1.vnnlib": "nonlinear arithmetic|2 networks",
    "instance_0.vnnlib": "2 networks",
    "instance_1_as_in_repo.vnnlib": "angle brackets",
}


@pytest.mark.parametrize("name", ["q.vnnlib", "q.vnnlib.gz", "q"])
@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_gzip_is_recognised_by_content(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(TEXT.encode()))
    query = load_query(tmp_path / name)
    assert query.inputs == 1
    assert query.path == str(tmp_path / name)


def test_the_packed_name_is_tried_where_the_plain_one_is_absent(tmp_path):
    (tmp_path / "q.vnnlib.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert load_query(str(tmp_path / "q.vnnlib")).path == str(tmp_path / "q.vnnlib.gz")
    (tmp_path / "q.vnnlib").write_text("\ufeff" + TEXT.replace(")(", ")\r\n("), encoding="utf-8")
    assert load_query(tmp_path / "q.vnnlib").path == str(tmp_path / "q.vnnlib")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (gzip.compress(b""), "an empty file"),
        (gzip.compress(TEXT.encode())[:-9], "broken gzip file"),
        (b"\x1f\x8bnonsense", "broken gzip file"),
        (gzip.compress(TEXT.encode() * 50).replace(b"\x00", b"\x01"), "broken gzip file"),
        (b"\x08\x07\x12\xff\xfe\x00binary", "not a text file"),
        (TEXT.encode() + b"\n\x00", "not a text file: it holds a zero byte"),
    ],
    ids=[
        "empty",
        "nothing packed",
        "cut short",
        "no gzip header",
        "damaged",
        "binary",
        "zero byte",
    ],  # gzip dates files
)
def test_broken_files(tmp_path, data, message):
    path = tmp_path / "q.vnnlib"
    path.write_bytes(data)
    with pytest.raises(ParseError, match=message) as caught:
        load_query(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UnreadableError, match=r"none\.vnnlib: No such file"):
        load_query(tmp_path / "none.vnnlib")
    with pytest.raises(UnreadableError, match="Is a directory"):
        load_query(tmp_path)


def test_every_benchmark_query_parses_or_is_refused_for_a_known_reason(shared_path):
    files = sorted(p for p in shared_path.rglob("*.vnnlib*") if p.is_file())
    assert len(files) > 300
    parsed = 0
    for path in files:
        if path.parent.name == "standard_syntax":
            with pytest.raises(ParseError, match="lower case, real"):
                load_query(path)
        elif path.name in REFUSED:
            with pytest.raises(CurvverifyError, match=REFUSED[path.name]):
                load_query(path)
        else:
            query = load_query(path)
            assert query.groups
            assert not any(g.box.empty for g in query.groups)
            assert all((g.box.cover[0] <= g.box.witness_range[0]).all() for g in query.groups)
            parsed += 1
    assert parsed > 300


def test_standard_syntax_files_in_lower_case(shared_path, tmp_path):
    """The standard's own examples, their type spelled as its grammar demands."""
    outcomes = {}
    for path in sorted((shared_path / "vnncomp/vnnlib2_examples/standard_syntax").glob("*.vnnlib")):
        copy = tmp_path / path.name
        copy.write_text(path.read_text().replace(" Real ", " real "))
        try:
            outcomes[path.stem] = len(load_query(copy).groups)
        except CurvverifyError as error:
            outcomes[path.stem] = type(error)
    assert outcomes.pop("multiple_networks") is UnsupportedError
    assert outcomes.pop("intermediate_nodes") is UnsupportedError
    for unbounded_or_later_version in ("initialized", "mnist", "test_linearise"):
        assert outcomes.pop(unbounded_or_later_version) is ParseError
    assert set(outcomes.values()) == {1}


def test_converted_files_state_what_their_originals_state(shared_path):
    """The 2.0 conversions agree with the 1.0 files entry by entry, and at random points of the box."""
    rng = np.random.default_rng(0)
    compared = hits = 0
    for path in sorted((shared_path / "vnncomp/vnnlib2_examples/converted_from_1.0/vnnlib").glob("*.vnnlib")):
        family, name = path.stem.split("__")
        original = next(iter(sorted(shared_path.glob(f"vnncomp/{family}*/vnnlib/{name}.vnnlib*"))), None)
        if original is None:
            continue
        new, old = load_query(path), load_query(original)
        assert (new.inputs, new.outputs, len(new.groups)) == (old.inputs, old.outputs, len(old.groups))
        for a, b in zip(new.groups, old.groups, strict=True):
            assert (a.box.lower == b.box.lower).all()
            assert (a.box.upper == b.box.upper).all()
            for p, q in zip(a.disjuncts, b.disjuncts, strict=True):
                assert (p.output == q.output).all()
                assert (p.bound == q.bound).all()
                assert (p.strict == q.strict).all()
                assert (p.input is None) == (q.input is None)
        for _ in range(60):
            low, high = old.groups[rng.integers(len(old.groups))].box.witness_range
            x = np.clip(low + rng.random(old.inputs, np.float32) * (high - low), low, high)
            y = np.float32(rng.normal(size=old.outputs) * 10.0 ** rng.integers(-2, 5))
            assert new.satisfied_by(x, y) == old.satisfied_by(x, y)
            hits += old.satisfied_by(x, y) is not None
        compared += 1
    assert compared >= 9
    assert hits > 50
