"""Notebooks are small, clean and the same on every machine. That they run is nbmake's to say: each is a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = sorted(Path(__file__).resolve().parent.parent.glob("notebooks/*.ipynb"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_there_is_a_tour_of_the_shapes():
    assert "trace" in {path.stem for path in NOTEBOOKS}


@each_notebook
def test_it_is_short(path: Path):
    assert len(code_cells(path)) <= 14
    assert path.stat().st_size < 200_000


@each_notebook
def test_it_is_shown_as_it_ran_and_without_errors(path: Path):
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    assert outputs and all(output.output_type != "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)


@each_notebook
def test_it_names_no_place_of_the_machine_that_wrote_it(path: Path):
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users)\b", path.read_text(encoding="utf-8"))


@each_notebook
def test_any_python_3_runs_it_and_nothing_tells_when_it_ran(path: Path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all("execution" not in cell.metadata for cell in notebook.cells)
    assert all(cell.execution_count is None for cell in code_cells(path))
