"""Each notebook runs from beginning to end."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def check_callbacks(text, pictures, outputs):
    assert pictures == 2
    assert float(text.split("accuracy ")[1].split()[0]) > 0.8
    shown = [output.get("data", {}) for output in outputs]
    (report,) = [data["text/markdown"] for data in shown if "text/markdown" in data]
    assert "NaN or infinity at step 100" in report


def check_gradnorm(text, pictures, outputs):
    assert pictures == 1
    equal, balanced = (
        float(text.rsplit(name, 1)[1].split()[0].strip(",")) for name in ("weights", "GradNorm")
    )
    assert balanced < 0.9 * equal


CHECKS = {"callbacks": check_callbacks, "gradnorm": check_gradnorm}


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_runs(file, tmp_path):
    notebook = nbformat.read(file, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    CHECKS[file.stem]("".join(output.get("text", "") for output in outputs), pictures, outputs)
