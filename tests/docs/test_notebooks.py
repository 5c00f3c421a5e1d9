"""The notebooks are stored without outputs.  `.ci/run` runs them, with their own assertions, by `make docs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS

nbformat = pytest.importorskip("nbformat", reason="the notebooks need `pip install -e '.[docs]'`")

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
