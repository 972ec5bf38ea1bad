"""The notebook runs from a clean kernel, and shows what it says."""

import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_the_tour_runs_from_a_clean_kernel(drawn, monkeypatch):
    # The kernel has warnings of its own, and a machine's one CPU.
    for name in ("PYTHONWARNINGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    tour = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    smaller = {'"validation",': '"validation[:64]",', "steps=48": "steps=4"}
    smaller |= {"steps=100": "steps=4", "(1, 10, 40, 100)": "(1, 2, 3, 4)"}
    for cell in tour.cells:
        for whole, part in smaller.items():
            cell.source = cell.source.replace(whole, part)
    shown = [cell for cell in tour.cells if cell.get("outputs")]
    for cell in shown:
        cell.outputs = []
    where = {"metadata": {"path": str(ROOT / "docs")}}
    nbclient.NotebookClient(tour, timeout=300, resources=where).execute()
    data = [x.get("data", {}) for cell in tour.cells for x in cell.get("outputs", [])]
    assert sum("image/png" in x for x in data) == 13
    assert any("{'conv1'" in x.get("text/plain", "") for x in data)
