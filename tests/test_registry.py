"""One registry for everything that is chosen by name: what is read from the files is what importing them gives."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import deploypruner
from deploypruner.errors import RecipeError
from deploypruner.registries import REGISTRIES, criteria, patterns, schedules
from deploypruner.registry import Registry

ROOT = Path(deploypruner.__file__).parent


@pytest.mark.parametrize("kind", REGISTRIES)
def test_what_is_read_from_the_files_is_what_they_register(kind):
    registry = REGISTRIES[kind]
    assert len(registry) > 0
    for name in registry:
        found, entry = registry.get(name), registry.entry(name)
        written = (inspect.getdoc(found) or "").split("\n")[0]
        module = importlib.import_module(entry.module)
        assert entry.about, name
        assert entry.about == written or repr(entry.about)[1:-1] in Path(module.__file__).read_text(), name


@pytest.mark.parametrize("kind", REGISTRIES)
def test_no_file_outside_of_its_home_registers_anything(kind):
    registry = REGISTRIES[kind]
    registered = [
        path
        for path in ROOT.rglob("*.py")
        if f"{kind}.register" in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{kind}.register"
    ]
    assert len(registered) == len(registry)


def test_every_kind_is_listed_without_importing_any_implementation():
    code = (
        "import sys\nfrom deploypruner.registries import REGISTRIES\n"
        "print(sum(len(r.describe()) for r in REGISTRIES.values()) > 40, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout == "True False\n"


def test_an_unknown_name_is_answered_with_the_nearest_that_can_be_chosen_there():
    with pytest.raises(RecipeError, match=r"no criterion called 'tailor'[\s\S]*did you mean 'taylor'"):
        criteria.get("tailor")
    with pytest.raises(RecipeError, match=r"no pattern called '2::4'[\s\S]*did you mean '2:4'"):
        patterns.check("2::4")
    with pytest.raises(RecipeError, match=r"no schedule called 'pdp'[\s\S]*known: auto, gradual, iterative"):
        schedules.check("pdp", to="channels", also=("auto",))
    for name in ("1:4", "channel", "auto", "nm64"):
        patterns.check(name)


@pytest.mark.parametrize("name", schedules)
def test_a_schedule_applies_to_what_it_says(name):
    applies_to, found = schedules.entry(name).applies_to, schedules.get(name)
    assert applies_to
    assert ("weights" in applies_to) == (found.weights is not None)
    assert found.last_ranking is None or "channels" in applies_to


def test_a_name_registered_in_a_program_can_be_chosen_as_well():
    registry: Registry[type] = Registry("fruit", "fruits", "deploypruner.tasks")

    @registry.register("pear")
    class Pear:
        """Soft."""

    assert registry.get("pear") is Pear
    assert registry.describe() == {"pear": "Soft."}
    with pytest.raises(AssertionError, match="fruit 'pear' is registered twice"):
        registry.register("pear")(Pear)


def test_a_broken_file_is_never_an_unknown_name(tmp_path, monkeypatch):
    package = tmp_path / "orchard"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plum.py").write_text('@fruits.register("plum")\nclass Plum:\n    """Blue."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    fruits: Registry[type] = Registry("fruit", "fruits", "orchard")
    assert fruits.describe() == {"plum": "Blue."}
    with pytest.raises(NameError, match="fruits"):
        fruits.get("plum")
