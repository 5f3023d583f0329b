"""Every notebook runs from top to bottom, and stores little."""

import json
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.checkout

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

LARGEST_OUTPUTS = 300_000
"""Bytes of outputs that a notebook may store: it is read in a browser and in diffs."""


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_small(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    size = sum(len(json.dumps(cell.get("outputs", []))) for cell in cells)
    assert size < LARGEST_OUTPUTS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path, tmp_path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # In an empty folder: a notebook relies on the package, not on where it lies, and leaves nothing in the tree.
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
