"""The notebooks run from top to bottom, and are stored with their outputs."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    nbformat = pytest.importorskip("nbformat", reason="needs requirements/docs.txt")
    return nbformat.read(request.param, as_version=4)


def images(notebook):
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return [o for o in outputs if any(kind.startswith("image/") for kind in o.get("data", {}))]


def test_outputs_are_kept(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert images(notebook)
    assert all(o.output_type != "error" for cell in code for o in cell.outputs)


@pytest.mark.slow
def test_runs(notebook, tmp_path, monkeypatch):
    if find_spec("nbclient") is None or find_spec("ipykernel") is None:
        pytest.skip("needs pip install -r requirements/docs.txt")
    from nbclient import NotebookClient

    (tmp_path / "python").symlink_to("/bin/false")  # another Python, without our packages
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    kept = len(images(notebook))
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert len(images(notebook)) == kept
