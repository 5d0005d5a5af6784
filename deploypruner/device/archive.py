"""What is sent to a device: one file with the agent, the timing worker and what they import of this package.

Nothing is written twice: these are the modules that measure here. What a device lacks or does not need (torch, onnx)
is left out, and so is what packages only pass on.
"""

from __future__ import annotations

import ast
import hashlib
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from deploypruner import __version__

_ROOT = Path(__file__).parents[1]
_PACKAGE = _ROOT.name
# The worker is started by the agent, and runtimes are imported by name.
_ENTRIES = (
    "deploypruner.device.agent",
    "deploypruner.device.facts",
    "deploypruner.measure.worker",
    "deploypruner.runtime.on_onnxruntime",
    "deploypruner.runtime.on_openvino",
    "deploypruner.runtime.on_openvino_bf16",
)
# They need onnx, which a device does not have; whoever imports them does without.
_LEFT_OUT = frozenset({"deploypruner.onnx_advice"})
# Packages whose own file is more than a list of what their modules offer.
_WHOLE = frozenset({"deploypruner.runtime"})
# Equal sources make equal bytes.
_DATE = (1980, 1, 1, 0, 0, 0)
_MAIN = '''"""`agent FOLDER` or `worker`."""

import sys
from pathlib import Path

if sys.argv[1] == "agent":
    from deploypruner.device.agent import main

    main(Path(sys.argv[2]), [sys.executable, sys.argv[0], "worker"])
else:
    from deploypruner.measure.worker import WorkerState, serve

    serve(WorkerState().answer)
'''


@cache
def archive() -> bytes:
    """The file, for `python FILE agent FOLDER`."""
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as file:
        _add(file, "__main__.py", _MAIN)
        for name, text in sorted(sources().items()):
            _add(file, name, text)
    return found.getvalue()


def holds(module: str) -> bool:
    """Is a module of this package in it?"""
    return module in _needed()


def digest() -> str:
    """Of its bytes."""
    return hashlib.sha256(archive()).hexdigest()


def sources() -> dict[str, str]:
    """Name in the archive -> text of every file of the package that goes into it."""
    modules = _needed()
    found = {f"{_PACKAGE}/__init__.py": f'__version__ = "{__version__}"\n'}
    for module in modules:
        path = _file(module)
        found[path.relative_to(_ROOT.parent).as_posix()] = path.read_text(encoding="utf-8")
        for package in _packages(module):
            found.setdefault(f"{package.replace('.', '/')}/__init__.py", "")
    return found


def _add(file: zipfile.ZipFile, name: str, text: str) -> None:
    about = zipfile.ZipInfo(name, _DATE)
    about.compress_type = zipfile.ZIP_DEFLATED
    file.writestr(about, text)


@cache
def _needed() -> set[str]:
    """Modules that the entries import, directly or through others, inside of functions too."""
    found, waiting = set[str](), [*_ENTRIES]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        waiting += [name for name in _imported(_file(module)) if name not in _LEFT_OUT]
    return found


def _imported(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports when it runs; not those that only type checkers see."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{_PACKAGE}."):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in (*inner, node.module) if _is_module(name))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(f"{_PACKAGE}."))
        waiting += ast.iter_child_nodes(node)


def _is_module(name: str) -> bool:
    path = _ROOT.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or name in _WHOLE


def _file(module: str) -> Path:
    path = _ROOT.parent / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(2, len(parts))]
