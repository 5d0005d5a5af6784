"""What all trials share, as bytes for workers on other machines.

A traced graph holds operators that cannot be pickled, and the log a file. So the model travels, and every worker
process traces it again, once; the groups it finds there have to be those of the driver, which the recipes speak of.
"""

from __future__ import annotations

import hashlib
import io
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from deploypruner import __version__
from deploypruner.build.folder import BuildFolder
from deploypruner.build.state import Build
from deploypruner.errors import InputError
from deploypruner.graph import trace
from deploypruner.logbook import Logbook
from deploypruner.progress import SilentProgress
from deploypruner.sweep.trial import TrialContext

_OURS = ("deploypruner", "torch")  # also where they are installed from a working copy


@dataclass(frozen=True)
class Shipped:
    """A context that has been taken apart.

    Args:
        versions: Of everything that has to be the same at both ends.
        groups: Names of the graph's groups, in order.
        context: Pickled, without model and graph.
        model: A pickled module, or the bytes of a program.
        program: Is it a program?
    """

    versions: dict[str, str]
    groups: tuple[str, ...]
    context: bytes
    model: bytes
    program: bool


def versions() -> dict[str, str]:
    """Of this process; results of others would not be the same to the bit."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"deploypruner": __version__, "torch": torch.__version__, "Python": python}


def pack(context: TrialContext, pickle: Any) -> Shipped:
    """Take a context apart.

    Args:
        context: Of the driver.
        pickle: Module with `dumps` and `register_pickle_by_value`, as cloudpickle has them: the user's own classes
            travel with the objects, so that their files need not be on the other machine.

    Raises:
        InputError: Something of the user's cannot be pickled.
    """
    build = context.build
    program = isinstance(build.model, ExportedProgram)
    bare = replace(
        build,
        graph=None,
        model=None,
        given=replace(build.given, model=None, data=None),
        folder=BuildFolder(Path("sweep")),
        progress=SilentProgress(),
        log=Logbook(),
        say=_silent,
    )
    with _by_value(pickle, _own_modules(build)):
        return Shipped(
            versions=versions(),
            groups=tuple(group.id for group in build.traced.groups),
            context=_pickled(pickle, replace(context, build=bare), "the data, or a function of yours,"),
            model=_program_bytes(build.model)
            if isinstance(build.model, ExportedProgram)
            else _pickled(pickle, build.model, "the model"),
            program=program,
        )


def unpack(shipped: Shipped, loads: Callable[[bytes], Any]) -> TrialContext:
    """Put it together again, with a graph of this process.

    Raises:
        InputError: Versions differ, or the graph is another one here.
    """
    here = versions()
    for name, there in shipped.versions.items():
        if here[name] != there:
            raise InputError(
                f"the driver has {name} {there}, the worker on {platform.node()} {here[name]}",
                hint="install the same versions on every machine of the cluster",
            )
    context: TrialContext = loads(shipped.context)
    model = torch.export.load(io.BytesIO(shipped.model)) if shipped.program else loads(shipped.model)
    build: Build = replace(context.build, model=model)
    graph = trace(model, build.example_inputs, dynamic_shapes=build.recipe.model.dynamic or None)
    groups = tuple(group.id for group in graph.groups)
    if groups != shipped.groups:
        raise InputError(
            f"traced on {platform.node()} the model has other groups of channels than at the driver "
            f"({len(groups)} there, {len(shipped.groups)} here)",
            hint="a model that looks at the machine it is on cannot be swept on a cluster",
        )
    return replace(context, build=replace(build, graph=graph))


_KNOWN: dict[bytes, TrialContext] = {}


def unpacked(key: bytes, shipped: Shipped, loads: Callable[[bytes], Any]) -> TrialContext:
    """As `unpack`; what this process has unpacked last is there already.

    Args:
        key: From `digest`.
        shipped: What it is the digest of.
        loads: As for `unpack`.
    """
    if key not in _KNOWN:
        _KNOWN.clear()
        _KNOWN[key] = unpack(shipped, loads)
    return _KNOWN[key]


def digest(shipped: Shipped) -> bytes:
    """Of what was taken apart."""
    return hashlib.sha256(shipped.context + shipped.model).digest()


def _silent(line: str) -> None:
    """Workers say nothing."""


def _program_bytes(program: ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _pickled(pickle: Any, thing: object, what: str) -> bytes:
    try:
        found: bytes = pickle.dumps(thing)
    except Exception as cause:  # whatever the user's own __getstate__ raises
        raise InputError(
            f"{what} cannot be sent to the workers of a cluster: {type(cause).__name__}: {cause}",
            hint="without --ray trials run in processes of this machine, which need nothing sent; of the model a "
            ".pt2 file can always be",
        ) from cause
    return found


def _own_modules(build: Build) -> list[ModuleType]:
    """Python modules of the user's that model, data and functions come from: not installed, and not this library."""
    metric, data = build.metric, build.given.data
    functions = [build.given.train, None if metric is None else metric.function]
    instances = [data, getattr(data, "dataset", None)]
    if isinstance(build.model, nn.Module):
        instances += build.model.modules()
    names = {thing.__module__ for thing in (*functions, *map(type, instances)) if hasattr(thing, "__module__")}
    return [module for name in sorted(names) if (module := _own(name)) is not None]


def _own(name: str) -> ModuleType | None:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or file is None or name == "__main__" or name.partition(".")[0] in _OURS:
        return None
    installed = (sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return None if any(Path(file).is_relative_to(folder) for folder in installed) else module


@contextmanager
def _by_value(pickle: Any, modules: list[ModuleType]) -> Iterator[None]:
    for module in modules:
        pickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            pickle.unregister_pickle_by_value(module)
