"""The house style as failures: imports point down, functions stay short, errors carry a message."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import deploypruner


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax tree, which no test changes."""
    return ast.parse(path.read_text())


ROOT = Path(deploypruner.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.glob("test_*.py"))

# Top to bottom. Imports point down, or sideways within one package.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"api"},
    {"compiled", "frontier", "sweep"},
    {"build", "doctor"},
    {"report"},
    {"sparsity.assign"},
    {"verify", "search"},
    {"latency", "channels.learned", "sparse.verify"},
    {"schedules", "qat"},
    {"channels"},
    {"sparsity.training"},
    {"export", "quantize", "measure", "train", "sources"},
    {"losses"},
    {"runtime", "channels.criteria", "sparsity", "tasks"},
    {"graph", "sparsity.masks", "sparse", "pt2"},
    {"recipe"},
    {"onnx_graph"},
    {"device"},
    {"scratch", "progress", "openvino_import", "target", "onnx_advice", "caches"},
    {"onnx_file", "logbook"},
    {"atomic"},
    {"registries"},
    {"registry", "records", "locking", "reading"},
    {"refusals", "ranges", "terminal", "openmp", "quality_records", "notebook", "command_line", "figures"},
    {"errors"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def layer(module: str) -> str:
    """The longest name of a layer that the module is in: some packages hold more than one."""
    parts = module.split(".")[1:]
    return next(name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in LEVEL)


def test_every_module_has_a_layer():
    assert {
        p.name.removesuffix(".py") for p in ROOT.iterdir() if p.name not in ("__init__.py", "__pycache__", "py.typed")
    } == {name.split(".")[0] for name in LEVEL}


def test_imports_point_down():
    graph = grimp.build_graph("deploypruner", exclude_type_checking_imports=True, cache_dir=None)
    upward = [
        f"{module} imports {imported}"
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if "." in module
        and "." in imported
        and layer(module) != layer(imported)
        and LEVEL[layer(imported)] <= LEVEL[layer(module)]
    ]
    assert upward == []


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


# Not the package itself, which resolves its names when they are asked for.
MODULES = {module_of(path): path for path in SOURCES if path.parent != ROOT or path.stem != "__init__"}
# It names, for type checkers alone, what the packages register that it lists.
NAMES_WHAT_IT_LISTS = "registries"


def modules_imported_by(path: Path) -> set[str]:
    """Our modules that a file imports anywhere: for type checkers alone and inside functions, too."""
    found = set()
    for node in ast.walk(parsed(path)) if path.stem != NAMES_WHAT_IT_LISTS else ():
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys() or {node.module}
    return found & MODULES.keys()


def import_circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or through others; one circle at a time, each edge used once."""
    edges, circles = {module: set(found) for module, found in imports.items()}, []
    while True:
        try:
            TopologicalSorter(edges).prepare()
        except CycleError as error:
            circle = error.args[1]
            circles.append(circle)
            edges[circle[1]].discard(circle[0])
        else:
            return circles


def test_no_import_goes_in_a_circle_not_even_for_types_or_inside_a_function():
    assert import_circles({module: modules_imported_by(path) for module, path in MODULES.items()}) == []
    known = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}
    assert [set(circle) for circle in import_circles(known)] == [{"a", "b", "c"}]


def test_no_stage_is_imported_by_another_or_by_what_they_share():
    """Stages are found, not named: one more is one file more."""
    for path in (ROOT / "build").rglob("*.py"):
        stages = [name for name in modules_imported_by(path) if name.startswith("deploypruner.build.stages.")]
        assert stages == [], path


def test_criteria_see_neither_the_graph_nor_layer_types():
    for path in (ROOT / "criteria").glob("*.py"):
        assert "deploypruner.graph" not in path.read_text(), path
        assert "torch.nn" not in path.read_text(), path


def functions(path: Path):
    return [n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
    # Signature and docstring are for reading; the body is what has to fit into a head.
    for function in functions(path):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        assert lines < 60, f"{path.name}:{function.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_raise_or_assert_without_a_message(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Assert):
            assert node.msg is not None, f"{path.name}:{node.lineno}"
        # `raise self._gone()` builds its message in a method.
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            assert node.exc.args or node.exc.keywords, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_take_few_positional_arguments_and_no_kwargs(path):
    for function in functions(path):
        if function.name.startswith("_"):
            continue
        names = [a.arg for a in function.args.args if a.arg not in ("self", "cls")]
        is_command = any(
            "option" in ast.unparse(d) or "model_options" in ast.unparse(d) for d in function.decorator_list
        )
        if not is_command:
            assert len(names) <= 4, f"{path.name}:{function.name}({', '.join(names)})"
            wire_message = function.name in ("tell", "ask") and path.name == "process.py"
            assert function.args.kwarg is None or wire_message, f"{path.name}:{function.name} takes **kwargs"


@pytest.mark.parametrize("path", TESTS, ids=lambda p: p.name)
def test_every_test_can_fail(path):
    for function in functions(path):
        if function.name.startswith("test_"):
            text = ast.unparse(function)
            assert "assert" in text or "pytest.raises" in text or "pytest.warns" in text, (
                f"{path.name}:{function.name}"
            )


def test_every_public_name_resolves():
    for name in deploypruner.__all__:
        assert getattr(deploypruner, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = deploypruner.nothing


def test_every_module_imports():
    for module in pkgutil.walk_packages(deploypruner.__path__, "deploypruner."):
        if module.name not in ("deploypruner.__main__", "deploypruner.measure.worker", "deploypruner.device.agent"):
            importlib.import_module(module.name)
    assert "deploypruner.build.pipeline" in sys.modules


def test_the_command_line_starts_without_heavy_libraries():
    heavy = ("torch", "numpy", "onnx", "openvino", "onnxruntime", "pydantic", "rich")
    code = f"import sys, deploypruner.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_class_names_are_unique_in_the_package():
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_a_percentage_is_written_in_one_way():
    """ "99.4 %", with a space, as in the tables: a format of `%` would leave it out."""
    short = re.compile(r":\.\d%\}")
    assert [path for path in SOURCES if short.search(path.read_text())] == []
