"""The examples run as they are: the script as a reader starts it, the notebook cell by cell.

A notebook is a list of cells in JSON; these have no magic, so that running them in one namespace is what Jupyter
does. Its own packages would be a dozen more in every environment, for one file.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from tests.test_snippets import made_up_times

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "own_model.ipynb"


def cells(path: Path) -> list[str]:
    """The source of every code cell."""
    document = json.loads(path.read_text())
    assert document["nbformat"] == 4
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]


def run_cells(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Run a notebook: its names, and what each cell that ends in an expression shows."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, source in enumerate(cells(path)):
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{path.name}, cell {number}", "exec"), namespace)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), f"{path.name}, cell {number}", "eval"), namespace))
    return namespace, shown


def test_a_notebook_is_kept_without_outputs_magics_and_paths_of_one_machine():
    document = json.loads(NOTEBOOK.read_text())
    for cell in document["cells"]:
        text = "".join(cell["source"])
        assert "/home/" not in text
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            assert re.search(r"^\s*[%!]", text, re.MULTILINE) is None
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])


@pytest.mark.slow
def test_the_script_ships_a_file_that_runs_without_us(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "own_model.py"), "own"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"right on ([\d.]+)% of 60 images", done.stdout)
    assert float(found[1]) > 80  # three classes, drawn on noise: a third by chance
    (file,) = (tmp_path / "own" / "shipped").glob("*.onnx")
    assert onnxruntime.InferenceSession(file).get_inputs()[0].shape[1:] == [3, 32, 32]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_the_graph_the_plan_and_the_build(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with contextlib.chdir(tmp_path), made_up_times():
        names, shown = run_cells(NOTEBOOK)
        assert (names["shipped"] / names["ship"]["file"]).is_file()
    tables = [what._repr_html_() for what in shown if hasattr(what, "_repr_html_")]
    assert [type(what).__name__ for what in shown if hasattr(what, "_repr_html_")] == [
        "Graph",
        "Plan",
        "CompiledBuild",
    ]
    assert all("<table" in table for table in tables)
    assert names["accuracy"] > 0.8


def test_the_pages_lead_to_the_examples():
    for page, folder in (("README.md", ""), ("docs/guide.md", "../")):
        text = (ROOT / page).read_text()
        for name in ("own_model.py", "own_model.ipynb"):
            assert f"({folder}examples/{name})" in text, page
