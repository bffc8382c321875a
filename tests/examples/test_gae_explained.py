"""The annotated page: its source runs with all of its assertions, and the notebook is the source, executed."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs the extra `notebook`")
pytest.importorskip("matplotlib", reason="needs the extra `notebook`")

pytestmark = pytest.mark.examples
NOTEBOOKS = pathlib.Path(__file__).parents[2] / "examples" / "notebook"
SOURCE, NOTEBOOK = NOTEBOOKS / "gae_explained.py", NOTEBOOKS / "gae_explained.ipynb"
CODE = [cell for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"]
FIGURES = 9


def cells_of(path):
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def outputs(kind):
    return [output for cell in CODE for output in cell.outputs if output.output_type == kind]


@pytest.mark.timeout(600)
def test_source_runs_and_prints_what_the_notebook_shows():
    environment = os.environ | {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, "-W", "error", SOURCE], env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stderr
    shown = "".join(output.text for output in outputs("stream"))
    assert run.stdout == shown, "execute the notebook again, as examples/README.md says"


def test_notebook_is_the_source():
    assert cells_of(NOTEBOOK) == cells_of(SOURCE)


def test_every_code_cell_was_executed_in_order_and_without_error():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert all(output.output_type in ("stream", "display_data") for cell in CODE for output in cell.outputs)
    assert all(output.name == "stdout" for output in outputs("stream"))


def test_every_figure_is_inside():
    pictures = [output.data for output in outputs("display_data")]
    assert len(pictures) == FIGURES
    assert all(set(picture) == {"image/png", "text/plain"} for picture in pictures)  # no script, widget or reference
    assert NOTEBOOK.stat().st_size < 3_000_000  # GitHub shows no large notebook


def test_cell_that_draws_calls_a_check():
    for cell in CODE:
        if any(output.output_type == "display_data" for output in cell.outputs):
            assert "measured.check_" in cell.source, cell.source


def test_every_check_asserts_and_is_called():
    tree = ast.parse((NOTEBOOKS / "gae_measured.py").read_text(encoding="utf-8"))
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]
    assert len(checks) > 10
    for check in checks:
        assert any(f"measured.{check.name}(" in cell.source for cell in CODE), check.name
        assert "assert " in ast.unparse(check) or "close(" in ast.unparse(check), check.name


def test_page_stays_short_and_answers_are_folded():
    lines = [len(cell.source.splitlines()) for cell in CODE]
    assert max(lines) <= 10
    assert sum(lines) <= 250
    text = "\n".join(source for kind, source in cells_of(NOTEBOOK) if kind == "markdown")
    assert len(text.split()) <= 3_500
    exercises = text.partition("## Exercises")[2]
    assert exercises.count("\n**") == exercises.count("<details><summary>Answer</summary>\n\n") == 5
    assert exercises.count("\n\n</details>") == 5
