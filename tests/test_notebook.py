"""The notebook runs on its own example, reduced to a few clips."""

import nbclient
import nbformat

from tests.conftest import ROOT


def test_the_notebook_shows_table_plots_and_players(monkeypatch):
    monkeypatch.setenv("EXAMPLE_CLIPS", "4")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(ROOT / "launch" / "colab_evaluate.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    resources = {"metadata": {"path": str(ROOT / "launch")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "Onset F1 (spectral flux)" in text and "Real sound" in text and "report:" in text
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 1
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert sum("<video" in page for page in pages) == 2 and sum("<audio" in page for page in pages) == 2
