"""The verifier's options as command-line flags and as a TOML file: both are views of the one record `Options`."""

from __future__ import annotations

import difflib
import inspect
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, asdict, fields, replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from curvverify.errors import ParseError, UnreadableError, UsageError
from curvverify.verification.options import Options

PANEL = "Options of the verifier"
R = TypeVar("R")


@lru_cache
def option_types() -> dict[str, type]:
    """The type of every option, by name."""
    return get_type_hints(Options)


def flag(name: str) -> str:
    """`attack_starts` -> `--attack-starts`."""
    return "--" + name.replace("_", "-")


def with_options(*, without: Iterable[str] = ()) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command one flag per field of `Options`; what the user set arrives in its `**overrides`, nothing else."""
    skipped = frozenset(without)

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [_parameter(field) for field in fields(Options) if field.name not in skipped]
        names = {parameter.name for parameter in added}

        @wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> R:
            overrides = {name: kwargs.pop(name) for name in names & kwargs.keys()}
            return command(*args, **kwargs, **{name: v for name, v in overrides.items() if v is not None})

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
        wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def resolve(config: Path | None, overrides: Mapping[str, object]) -> Options:
    """Defaults, then the config file, then the flags; UsageError for an unknown name or a value of the wrong type."""
    settings = read_config(config) if config is not None else {}
    settings |= {name: coerce(name, value) for name, value in overrides.items()}
    options = replace(Options(), **settings)  # type: ignore[arg-type]
    if not options.timeout > 0.0:
        raise UsageError(f"the timeout must be positive, not {options.timeout}")
    return options


def read_config(path: Path) -> dict[str, object]:
    """The settings of a TOML file: top-level keys, the options' names."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ParseError(str(path), None, f"not TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: {error}") from error
    return {name: coerce(name, value, f"{path}: ") for name, value in table.items()}


def coerce(name: str, value: object, source: str = "") -> object:
    """The value as the option's own type; an integer may stand for a float, nothing else is converted."""
    wanted = option_types().get(name)
    if wanted is None:
        near = difflib.get_close_matches(name, option_types(), n=1, cutoff=0.0)
        raise UsageError(f"{source}unknown option {name!r}; the nearest known one is {near[0]!r}")
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted or (isinstance(value, float) and math.isnan(value)):
        raise UsageError(f"{source}option {name!r} is a {wanted.__name__}, not {value!r}")
    return value


def to_toml(options: Options) -> str:
    """Every option with its value and its help, as a config file that reads back."""
    lines = ["# Options of curvverify; pass this file with --config."]
    for field in fields(Options):
        lines += ["", f"# {_help(field)}", f"{field.name} = {_toml_value(getattr(options, field.name))}"]
    return "\n".join(lines) + "\n"


def changed(options: Options) -> dict[str, object]:
    """The options that differ from their defaults."""
    default = asdict(Options())
    return {name: value for name, value in asdict(options).items() if value != default[name]}


def as_flags(options: Options, without: Iterable[str] = ()) -> list[str]:
    """The command-line flags that give a child process these options."""
    arguments: list[str] = []
    for name, value in changed(options).items():
        if name in without:
            continue
        if isinstance(value, bool):
            arguments.append(flag(name) if value else flag(f"no_{name}"))
        else:
            arguments += [flag(name), str(value)]
    return arguments


def _parameter(field: Field) -> inspect.Parameter:
    """The command-line parameter of one option; None stands for "not given"."""
    names = [flag(field.name)]
    if option_types()[field.name] is bool:
        names = [f"{flag(field.name)}/{flag(f'no_{field.name}')}"]
    text = f"{_help(field)} (default: {_shown(field.default)})"
    info = typer.Option(*names, help=text, show_default=False, rich_help_panel=PANEL)
    annotation = Annotated[option_types()[field.name] | None, info]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(field: Field) -> str:
    return field.metadata.get("help", "")


def _shown(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)  # integers and floats, inf included, are written alike in Python and TOML
