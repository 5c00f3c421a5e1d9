"""The notebooks, run at build time and shown as pages; they are stored without outputs."""

from __future__ import annotations

from pathlib import Path

import mkdocs_gen_files
import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"

for path in sorted(FOLDER.glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    exporter = MarkdownExporter()
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    page, resources = exporter.from_notebook_node(notebook, {"unique_key": path.stem, "output_files_dir": path.stem})
    for name, data in resources["outputs"].items():
        with mkdocs_gen_files.open(f"notebooks/{name}", "wb") as stream:
            stream.write(data)
    title, _, rest = page.lstrip().partition("\n")
    note = f"*This page is a notebook, run when the site was built: [{path.name}]({path.name}).*"
    with mkdocs_gen_files.open(f"notebooks/{path.stem}.md", "w") as stream:
        stream.write(f"{title}\n\n{note}\n{rest}")
