"""The cells of docs/tutorial.ipynb run, from first to last, on a few small films."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
SHORT = "FILMS, VAL, TEST = 16, 8, 8\nSIZE, BATCH, STEPS = 32, 8, 6\nFOLDER = {!r}"


def test_cells_run(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "commit it empty"
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = [line.partition(" = ")[0] for line in parameters.source.splitlines()]
    parameters.source = SHORT.format(str(tmp_path / "runs"))
    assert names == [line.partition(" = ")[0] for line in parameters.source.splitlines()]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    page = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    assert page.count("data:image/png;base64,") == 2 and "to find opacity: 6 steps" in page
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    assert "price of the mask 0.001" in text and (tmp_path / "runs" / "scored" / "eval.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "ipython"}
