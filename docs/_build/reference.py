"""The reference pages, generated from what they describe: the command line, Options, the registry, the records."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import griffe
import mkdocs_gen_files
import torch
from typer.main import get_command

import curvverify
from curvverify.cli.main import app
from curvverify.cli.options import PANEL, flag, option_types
from curvverify.errors import CurvverifyError
from curvverify.graph.onnx_import.supported import CONSTANT_ONLY, supported_operators, supported_opsets
from curvverify.ops import linear
from curvverify.ops.base import Elementwise, Linear
from curvverify.ops.product import Product
from curvverify.ops.registry import ELEMENTWISE
from curvverify.report.serialise import RECORDS
from curvverify.types import Interval, Verdict
from curvverify.verification.options import Options

EXAMPLES: dict[str, dict[str, Any]] = {
    "PRelu": {"negative_slope": torch.tensor(0.25, dtype=torch.float64)},
    "Clip": {"lower": 0.0, "upper": 6.0},
    "Power": {"exponent": 2.0},
}
"""Attributes for operators that have no defaults, or only senseless ones."""

BESIDE_JSON = (
    ("curvverify.report.batch", "Record"),
    ("curvverify.certificates.record", "RadiusReport"),
    ("curvverify.certificates.record", "SampleRadius"),
)
"""Records that have another form than `to_json`: a line of JSON, the columns of a csv file."""


def main() -> None:
    write("commands", commands())
    write("options", options())
    write("operators", operators())
    write("records", records())
    write("python", python())


def write(name: str, parts: Iterable[str]) -> None:
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as page:
        page.write("\n\n".join(parts) + "\n")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; empty where there is no row."""
    lines = ["| " + " | ".join(cell(text) for text in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines]) if lines else ""


def cell(value: object) -> str:
    parts = re.split("(`[^`]*`)", " ".join(str(value).split()))
    return "".join(part if i % 2 else part.replace("|", "&#124;") for i, part in enumerate(parts))


def code(value: object) -> str:
    return f"`{value}`"


def commands() -> Iterable[str]:
    """One section per command, from the program itself."""
    yield "# Command line"
    yield (
        "Answers go to stdout, messages and logs to stderr. Flags named after an option of the verifier are described "
        "under [Options](options.md)."
    )
    group = get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        shown = [p for p in command.params if p.name != "help"]
        arguments = [p for p in shown if p.param_type_name == "argument"]
        own = [p for p in shown if p not in arguments and p.rich_help_panel != PANEL]
        common = [p for p in shown if p not in arguments and p.rich_help_panel == PANEL]
        usage = " ".join([f"curvverify {name}", *(metavar(p) for p in arguments), "[OPTIONS]"])
        yield f"## `curvverify {name}`"
        yield inspect.cleandoc(command.help or "")
        yield f"```sh\n{usage}\n```"
        yield table(("argument", ""), ((code(metavar(p)), p.help or "") for p in arguments))
        yield table(("flag", "", "default"), ((flags(p), p.help or "", default(p)) for p in own))
        if common:
            yield "Options of the verifier: " + ", ".join(code(p.opts[0]) for p in common) + "."


def metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def flags(parameter: Any) -> str:
    names = ", ".join(code(name) for name in [*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {code(value_name(parameter))}"


def value_name(parameter: Any) -> str:
    """What stands for the flag's value: its metavar, its choices, or its type."""
    if parameter.metavar:
        return parameter.metavar
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return {Path: "FILE", str: "TEXT", int: "N", float: "NUMBER"}.get(annotation, parameter.name.upper())


def default(parameter: Any) -> str:
    value = parameter.default
    plain = isinstance(value, bool | str | int | float) and value is not False
    return code(value) if plain and value is not True else ""


def options() -> Iterable[str]:
    """The one record of options in its three spellings."""
    yield "# Options"
    yield inspect.cleandoc(Options.__doc__ or "")
    yield (
        "The same names are fields of `curvverify.Options` in Python, flags on the command line, and keys of a TOML "
        "file for `--config`; `curvverify verify --print-config` prints such a file. Flags win over the file."
    )
    rows = []
    for field in fields(Options):
        text = f"{flag(field.name)}/--no-{field.name.replace('_', '-')}" if field.default is True else flag(field.name)
        kind = option_types()[field.name].__name__
        rows.append((code(field.name), code(text), kind, code(field.default), field.metadata["help"]))
    yield table(("option", "flag", "type", "default", ""), rows)


def operators() -> Iterable[str]:
    """What the front end reads, and what the bounds know of it."""
    oldest, newest = supported_opsets()
    names = supported_operators()
    yield "# Operators"
    yield (
        f"Models may use the ONNX operator sets {oldest} to {newest}. A model with anything that cannot be read is "
        "refused with the list of all such nodes. `curvverify supports --onnx-operators` prints the first list."
    )
    yield "## ONNX operators"
    yield f"{len(names)} operators, on values that depend on the input or to make constants:"
    yield ", ".join(map(code, names)) + "."
    yield "On constants only: " + ", ".join(map(code, sorted(CONSTANT_ONLY))) + "."
    yield "## Elementwise functions"
    yield (
        "Everything that is not linear becomes one of these, or a product. The three columns are proved upper bounds, "
        "rounded up, over all real numbers; on the range a node can take they are smaller, and finite wherever the "
        "function is smooth. Infinite in the second column means a kink: such a function has finite Lipschitz "
        "constants, and no curvature."
    )
    head = ("function", "value", "sup abs first", "sup abs second", "sup abs third derivative")
    yield table(head, (elementwise(name, op) for name, op in ELEMENTWISE.items()))
    yield "## Products and linear operators"
    kinds = [op for op in vars(linear).values() if inspect.isclass(op) and issubclass(op, Linear)]
    kinds = [op for op in kinds if not inspect.isabstract(op) and not op.__name__.startswith("_")]
    yield table(("operator", "value"), ((code(op.__name__), summary(op)) for op in [Product, *kinds]))
    yield (
        "Softmax, normalisations, attention, max-pooling, division and minima are made of these when the model is "
        "read; constants of Lipschitz type recognise softmax, normalisations and residual blocks again and bound them "
        "as one map."
    )


def elementwise(name: str, kind: type[Elementwise]) -> tuple[str, ...]:
    attributes = EXAMPLES.get(name, {})
    op = kind(**attributes)
    ends = torch.full((1,), torch.inf, dtype=torch.float64)
    bounds = (float(op.derivative(order, Interval(-ends, ends)).magnitude) for order in (1, 2, 3))
    shown = [f"{key} = {float(value):g}" for key, value in attributes.items()]
    shown += [f"{f.name} = {getattr(op, f.name):.6g}" for f in fields(kind) if f.name not in attributes and f.init and getattr(op, f.name)]
    about = summary(kind) + (f" ({', '.join(shown)})" if shown else "")
    return (code(name), about, *(f"{bound:.10g}" for bound in bounds))


def summary(kind: type) -> str:
    """The first paragraph of the docstring, safe from markdown."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    return text.replace("*", "&#42;").replace("_", "&#95;")


def records() -> Iterable[str]:
    """The fields of everything that is written to files."""
    yield "# Records and JSON"
    yield (
        "Results are frozen records. `--json` writes them with two fields of its own, `kind` (the record's name) and "
        "`format` (the version of this form, now 1); `curvverify.report.serialise.from_json` reads them back. The "
        "numbers that JSON cannot hold are the strings `inf`, `-inf` and `nan`; tensors are nested lists."
    )
    yield "Verdicts are " + ", ".join(f"`{v.value}` ({v.name.lower()})" for v in Verdict) + "."
    done: set[type] = set()
    for kind, module in RECORDS.items():
        yield from record(getattr(import_module(module), kind), done, level=2)
    yield "## In other forms"
    yield (
        "A `Record` is one line of `curvverify batch --out R.jsonl`; `SampleRadius` has the columns of "
        "`curvverify radius --out R.csv`."
    )
    for module, kind in BESIDE_JSON:
        yield from record(getattr(import_module(module), kind), done, level=3)
    yield "## Exit codes"
    errors = [CurvverifyError, *sorted(CurvverifyError.__subclasses__(), key=lambda error: error.exit_code)]
    rows = [("0", "an answer, whichever it is")]
    rows += [(str(error.exit_code), summary(error) if error is not CurvverifyError else BUG) for error in errors]
    yield table(("code", "meaning"), rows)


BUG = (
    "a bug of ours, reported as such with the traceback under `-v`; `batch` and `radius`: a result contradicts a known "
    "verdict or a counterexample"
)


def record(kind: type, done: set[type], level: int) -> Iterable[str]:
    """The record's own fields, then the records inside it."""
    if kind in done:
        return
    done.add(kind)
    hints = get_type_hints(kind)
    described = attributes(kind)
    yield f"{'#' * level} {kind.__name__}"
    yield inspect.cleandoc(kind.__doc__ or "").replace("*", "\\*")
    rows = []
    for field in fields(kind):  # type: ignore[arg-type]
        optional = field.default is not MISSING or field.default_factory is not MISSING
        rows.append((code(field.name), code(type_text(hints[field.name])), described.get(field.name, ""), optional))
    yield table(("field", "type", ""), (row[:3] for row in rows))
    for hint in hints.values():
        for inner in records_in(hint):
            yield from record(inner, done, level + 1)


def attributes(kind: type) -> dict[str, str]:
    """What stands below the fields of a record."""
    found = griffe.load(kind.__module__)[kind.__name__]
    return {name: member.docstring.value for name, member in found.members.items() if member.docstring}


def records_in(hint: Any) -> Iterable[type]:
    if is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for argument in get_args(hint):
        yield from records_in(argument)


def type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if a is type(None) else type_text(a) for a in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"list of {type_text(arguments[0])}"
    if origin is None:
        return getattr(hint, "__name__", str(hint))
    return f"{origin.__name__}[{', '.join(map(type_text, arguments))}]"


def python() -> Iterable[str]:
    """Everything that the package's front door offers, functions first."""
    yield "# Python"
    yield (
        "The names of the package itself are its stable interface. A `model` is the path of an ONNX file, an "
        "`onnx.ModelProto`, a `torch.nn.Module`, or what `load` returned; a `query` is the path of a VNN-LIB file or "
        "what `load_query` returned."
    )
    names = sorted(curvverify.__all__, key=lambda name: (not name.islower(), name))
    yield from (f"::: curvverify.{name}" for name in names)
    yield "### Results to JSON and back"
    yield from (f"::: curvverify.report.serialise.{name}" for name in ("to_json", "from_json"))
    yield "### Errors"
    yield from (f"::: curvverify.errors.{kind.__name__}" for kind in CurvverifyError.__subclasses__())


main()
