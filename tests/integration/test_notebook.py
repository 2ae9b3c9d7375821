"""The notebook of the guide does what it says, executed as a reader would."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "guides" / "notebook.ipynb"

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_it_trains_and_plots(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=300, startup_timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    plan, run, plot, facts = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert plan.outputs[-1].data["text/plain"] == "(True, 'embedded', 20)"
    said = "".join(output.text for output in run.outputs if output.output_type == "stream")
    assert "step 20/20" in said
    assert run.outputs[-1].data["text/plain"] == "'finished'"
    (figure,) = (output.data["application/vnd.plotly.v1+json"] for output in plot.outputs)
    assert len(figure["data"][0]["x"]) == 20
    assert "checkpoint_megatron" in facts.outputs[-1].data["text/plain"]
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 1
