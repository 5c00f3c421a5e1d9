"""Every page's code runs as written and prints what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, run_page, runnable

INSTALLING = {"start.md"}
"""Pages that run `make demo`: in a clone that is installed already, as it is under `make test`."""

PAGES = [p for p in sorted(DOCS.rglob("*.md")) if runnable(p)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if str(page.relative_to(DOCS)) in INSTALLING and not installed():
        pytest.skip("this page is run where `make` has installed the checkout as it is now")
    assert run_page(page, tmp_path, monkeypatch) > 0


def installed() -> bool:
    """Whether `make demo` has nothing to install."""
    stamp = ROOT / ".venv" / ".installed"
    needs = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    return stamp.exists() and all(path.stat().st_mtime <= stamp.stat().st_mtime for path in needs)


def test_every_tutorial_runs() -> None:
    assert {page.name for page in (DOCS / "tutorials").glob("*.md")} <= {page.name for page in PAGES}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```python\nassert 1 == 2\n```", AssertionError),
        ("```sh\nfalse\n```", AssertionError),
        ("```sh\necho one\n```\n\n```output\ntwo\n```", pytest.fail.Exception),
        ("```python\nprint(1 + 1)\n```\n\n```output\n3\n```", pytest.fail.Exception),
    ],
)
def test_a_wrong_page_is_found(
    text: str, problem: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    (tmp_path / "clone").mkdir()
    with pytest.raises(problem):
        run_page(page, tmp_path / "clone", monkeypatch)
