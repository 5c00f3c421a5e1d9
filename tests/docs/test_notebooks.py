"""The notebooks run from top to bottom, their own assertions included, and are stored without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, reader_environment

nbformat = pytest.importorskip("nbformat", reason="the notebooks need `pip install -e '.[docs]'`")
nbclient = pytest.importorskip("nbclient", reason="the notebooks need `pip install -e '.[docs]'`")

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "PYTHONPATH"):
        monkeypatch.setitem(os.environ, name, reader_environment()[name])
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
