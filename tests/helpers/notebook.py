"""Runs the lecture's notebook, and saves it with its outputs: `python -m tests.helpers.notebook` (`make notebook`)."""

from __future__ import annotations

from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.helpers.paths import ROOT

NOTEBOOK = ROOT / "experiments" / "examples" / "lecture.ipynb"
PLAIN = {"text/html": "(a table: see the notebook in a browser)", "image/png": "(a figure)"}


def read() -> Any:
    """The notebook as it is saved."""
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook: Any) -> None:
    """Runs all cells in place, in the root of the repository.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()


def clean(notebook: Any) -> None:
    """Removes, in place, what differs from machine to machine: times, warnings with paths, addresses of objects."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            for kind, text in PLAIN.items():
                if kind in data:
                    data["text/plain"] = text
            if "image/png" in data:
                data["image/png"] = data["image/png"].replace("\n", "")


if __name__ == "__main__":
    content = read()
    execute(content)
    clean(content)
    nbformat.validate(content)
    NOTEBOOK.write_text(nbformat.writes(content) + "\n", encoding="utf-8")
    print(f"{NOTEBOOK.relative_to(ROOT)}: {NOTEBOOK.stat().st_size:,} bytes")
