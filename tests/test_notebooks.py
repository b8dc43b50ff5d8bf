"""Every notebook runs from top to bottom without an error, and shows and asserts something."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    assert pictures(stored) > 0
    assert any(line.startswith("assert ") for cell in stored.cells for line in cell.source.splitlines())

    executed = nbformat.from_dict(stored)
    NotebookClient(
        executed, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert pictures(executed) == pictures(stored)


def test_there_are_notebooks():
    assert NOTEBOOKS
