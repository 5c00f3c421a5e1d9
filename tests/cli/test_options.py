"""Flags, config file and printed config are views of one record."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from curvverify.cli.options import as_flags, coerce, option_types, read_config, resolve, to_toml
from curvverify.errors import ParseError, UnreadableError, UsageError
from curvverify.verification.options import Options

OTHER = {float: 12.5, int: 7, bool: False, str: 'a "quoted" \\ name'}


def other_options() -> Options:
    """Every option away from its default."""
    return replace(Options(), **{name: OTHER[kind] for name, kind in option_types().items()})


def test_every_option_is_a_flag_with_its_help(call) -> None:
    text = " ".join(call("verify", "--help").out.replace("│", " ").split())
    for field in fields(Options):
        assert "--" + field.name.replace("_", "-") in text
        assert field.metadata["help"].split()[0] in text


def test_printed_config_reads_back(tmp_path: Path) -> None:
    options = other_options()
    path = tmp_path / "options.toml"
    path.write_text(to_toml(options))
    assert resolve(path, {}) == options


def test_print_config_shows_what_holds(call, tmp_path: Path) -> None:
    config = tmp_path / "options.toml"
    config.write_text("seed = 3\nbranch = false\ntimeout = 20\n")
    done = call("verify", "--config", config, "--seed", 5, "--print-config")
    assert done.code == 0
    (tmp_path / "printed.toml").write_text(done.out)
    assert read_config(tmp_path / "printed.toml")["seed"] == 5
    assert resolve(tmp_path / "printed.toml", {}) == replace(Options(), seed=5, branch=False, timeout=20.0)


def test_flags_reach_a_child_process_unchanged(call, tmp_path: Path) -> None:
    options = other_options()
    (tmp_path / "printed.toml").write_text(call("verify", "--print-config", *as_flags(options)).out)
    assert resolve(tmp_path / "printed.toml", {}) == options


def test_unknown_key_names_the_nearest(call, tmp_path: Path) -> None:
    config = tmp_path / "options.toml"
    config.write_text("atack_seconds = 3.0\n")
    done = call("verify", "--config", config, "--print-config")
    assert done.code == 2
    assert "atack_seconds" in done.err
    assert "attack_seconds" in done.err
    assert str(config) in done.err


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1.5), ("seed", True), ("branch", 1), ("timeout", "1"), ("timeout", float("nan")), ("seed", [1])],
)
def test_wrong_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        coerce(name, value)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_timeout_must_be_positive(timeout: float) -> None:
    with pytest.raises(UsageError, match="timeout"):
        resolve(None, {"timeout": timeout})


def test_config_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="missing"):
        read_config(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 1\n")
    with pytest.raises(ParseError, match="line 1"):
        read_config(broken)
