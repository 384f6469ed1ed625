"""The notebooks of the documentation run from top to bottom, and keep the pictures that they show."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


# The kernel is a process of its own, and its parts warn of each other.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    kept = [_pictures(cell) for cell in notebook.cells]
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    made = [_pictures(cell) for cell in notebook.cells]
    assert sum(made) > 0
    assert made == kept, "run the notebook again and save it"


def _pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))
