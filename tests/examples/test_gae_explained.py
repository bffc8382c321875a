"""The annotated page: its source runs with all of its assertions, and the notebook is the source, executed."""

import base64
import os
import pathlib
import struct
import subprocess
import sys

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs the extra `notebook`")
pytest.importorskip("matplotlib", reason="needs the extra `notebook`")

pytestmark = pytest.mark.examples
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
SOURCE, NOTEBOOK = EXAMPLES / "gae_explained.py", EXAMPLES / "gae_explained.ipynb"
FIGURES = 13
LARGEST_FILE = 3_000_000  # bytes; GitHub shows no large notebook


def cells_of(path):
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def code_cells():
    return [cell for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"]


def texts():
    """What the code cells print, one after the other."""
    return "".join(output.text for cell in code_cells() for output in cell.outputs if output.output_type == "stream")


@pytest.mark.timeout(600)
def test_the_source_runs_and_prints_what_the_notebook_shows():
    """All assertions hold, and the library's source in the outputs is the library's source of today."""
    environment = os.environ | {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, "-W", "error", SOURCE], env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == texts(), "run the notebook again: see its first cell"


def test_the_notebook_is_the_source():
    assert cells_of(NOTEBOOK) == cells_of(SOURCE)


def test_every_code_cell_was_executed_in_order_and_without_error():
    cells = code_cells()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type in ("stream", "display_data") for cell in cells for output in cell.outputs)
    assert all(output.name == "stdout" for cell in cells for output in cell.outputs if output.output_type == "stream")


def test_every_figure_is_inside():
    pictures = [output.data for cell in code_cells() for output in cell.outputs if output.output_type == "display_data"]
    assert len(pictures) == FIGURES
    assert all(set(picture) == {"image/png", "text/plain"} for picture in pictures)  # no script, widget or reference


def test_a_cell_that_draws_asserts():
    for cell in code_cells():
        if any(output.output_type == "display_data" for output in cell.outputs):
            assert "assert " in cell.source or "close(" in cell.source, cell.source


def test_the_drawing_is_in_its_own_module():
    assert not any("plt." in cell.source or "axes." in cell.source for cell in code_cells())


def test_a_figure_has_120_dots_per_inch():
    for cell in code_cells():
        for output in cell.outputs:
            if output.output_type == "display_data":
                png = base64.b64decode(output.data["image/png"])
                at = png.index(b"pHYs") + 4
                assert round(struct.unpack(">I", png[at : at + 4])[0] * 0.0254) == 120


def test_nothing_in_the_outputs_is_external():
    for cell in code_cells():
        for output in cell.outputs:
            text = output.text if output.output_type == "stream" else output.data["text/plain"]
            assert "http" not in text


def test_the_file_is_small():
    assert NOTEBOOK.stat().st_size < LARGEST_FILE
