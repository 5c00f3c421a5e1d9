"""The code blocks of a documentation page, run in order as a reader would run them.

    ```python                       run; all blocks of a page share their names
    ``` {.python title="x.py"}      written to that file (any language), with the files it includes
    ```sh                           run by bash, which stops at the first command that fails
    ```output                       what the block before printed; `...` stands for anything, white space does not count

Other blocks are only shown.  The reader's folder is a clone: what `make demo` needs and `examples` are there.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RUNNABLE = ("python", "sh", "output")
INFO = re.compile(r"(?:[ \t]*\{[ \t]*\.)?(?P<language>\w+)(?:[ \t]+title=\"(?P<title>[^\"]+)\")?[^\n]*\n")
MATCH = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
INCLUDE = re.compile(r'^--8<-- "([^":]+)"$', re.MULTILINE)


class Runner:
    """Runs blocks in the current folder and keeps what the last one printed."""

    def __init__(self) -> None:
        self.printed: str | None = None
        self.python = PythonEvaluator()

    def parse(self, document: Document) -> Iterable[Region]:
        """The parser for sybil: every block that runs, or writes a file."""
        for region in RawFencedCodeBlockLexer(INFO)(document):
            if region.lexemes["language"] in RUNNABLE or region.lexemes["title"]:
                region.parsed = region.lexemes["source"]
                region.evaluator = self.evaluate
                yield region

    def evaluate(self, example: Example) -> None:
        """One block; AssertionError where it fails or printed something else."""
        lexemes = example.region.lexemes
        if lexemes["title"]:
            Path(lexemes["title"]).write_text(included(example.parsed), encoding="utf-8")
        elif lexemes["language"] == "output":
            self.compare(example)
        elif lexemes["language"] == "sh":
            self.printed = shell(example.parsed)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                self.python(example)
            self.printed = out.getvalue()

    def compare(self, example: Example) -> None:
        assert self.printed is not None, "output without a block that printed it"
        if not doctest.OutputChecker().check_output(example.parsed, self.printed, MATCH):
            pytest.fail(f"{example.path}:{example.line}: expected\n{example.parsed}\nprinted\n{self.printed}")


def included(source: str) -> str:
    """The source with the files that it includes."""
    return INCLUDE.sub(lambda match: (ROOT / match[1]).read_text(encoding="utf-8").rstrip("\n"), source)


def reader_environment() -> dict[str, str]:
    """The environment of somebody who installed this checkout."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return {**inherited, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "140"}


def shell(source: str) -> str:
    """Standard output of a script; the exit code must be 0."""
    command = ["bash", "-euo", "pipefail", "-c", source]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=reader_environment(), timeout=600)
    assert done.returncode == 0, f"exit code {done.returncode}\n{source}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def runnable(page: Path) -> bool:
    """Whether a page has a block that runs."""
    return any(f"```{language}" in page.read_text(encoding="utf-8") for language in ("python", "sh"))


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run all blocks of a page in a folder laid out like a clone; how many there were."""
    for name in ("curvverify/demo", "examples", "Makefile", "pyproject.toml", "constraints.txt", ".venv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    runner = Runner()
    examples = list(Document.parse(str(page), runner.parse).examples())
    for example in examples:
        example.evaluate()
    return len(examples)
