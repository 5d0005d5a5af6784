"""`package.module:factory`: import it, call it, and say precisely what went wrong."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from deploypruner.errors import InputError, nearest
from deploypruner.sources.foreign import foreign, working_folder_importable
from deploypruner.sources.found import FoundModel, ModelRequest


def load_factory(request: ModelRequest) -> FoundModel:
    """Build the model that a factory (or class) without arguments returns.

    Raises:
        InputError: See `call_factory`; or it returned no nn.Module.
    """
    module = call_factory(request.source)
    if not isinstance(module, nn.Module):
        raise InputError(
            f"factory '{request.source}' returned a {type(module).__name__}, not a torch.nn.Module",
            hint="it must take no arguments and return the model",
        )
    if isinstance(module, nn.DataParallel):
        module = module.module
    return FoundModel(module, request.source.partition(":")[2])


def random_weights(module: nn.Module, request: ModelRequest) -> tuple[str, ...]:
    """Say which weights of a factory's model are random: from another seed a second call makes others.

    Args:
        module: What the first call made.
        request: Names the factory.
    """
    torch.manual_seed(1)
    try:
        again = load_factory(request).module
    except InputError:  # it can be called but once
        return ()
    others = dict(again.named_parameters())
    made = {name: value for name, value in module.named_parameters() if value.ndim > 1 and name in others}
    random = [name for name, value in made.items() if not torch.equal(value, others[name])]
    if not random:
        return ()
    some = ", ".join(random[:3]) + (f" and {len(random) - 3} more" if len(random) > 3 else "")
    which = "the weights" if len(random) == len(made) else some
    return (f"{which} of '{request.source}' are random, and so are its answers: --weights FILE gives trained ones",)


def call_factory(source: str) -> object:
    """Import `package.module` with the working folder on the path and call `factory()`.

    Raises:
        InputError: See `find_callable`, or the call raised.
    """
    found = find_callable(source, "name what makes the model")
    with working_folder_importable(), foreign(f"factory '{source}' raised", hint="it is called without arguments"):
        return found()


def find_callable(source: str, what: str) -> Callable[..., object]:
    """Import `package.module` with the working folder on the path and return its function.

    Args:
        source: "package.module:function".
        what: For the hint where it is none.

    Raises:
        InputError: The module or the attribute does not exist, or is not callable.
    """
    module_name, _, attribute = source.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        raise InputError(f"'{module_name}' is a path, not a module", hint=_as_module(Path(module_name), attribute))
    with working_folder_importable():
        found = _import(module_name, source)
        with foreign(f"looking up '{attribute}' in '{module_name}' raised", hint="fix the module's __getattr__"):
            for part in attribute.split("."):
                if not hasattr(found, part):
                    public = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n))]
                    hint = nearest(part, public) if public else "it defines nothing callable"
                    raise InputError(f"module '{module_name}' has no '{attribute}'", hint=hint)
                found = getattr(found, part)
        if not callable(found):
            raise InputError(f"'{source}' is a {type(found).__name__}, not a function or class", hint=what)
        return found


def _as_module(path: Path, attribute: str) -> str:
    """How a file is named as a module: from here, or from its own folder where it is not below this one."""
    file, here = path.with_suffix("").resolve(), Path.cwd().resolve()
    if file.is_relative_to(here):
        return f"write {'.'.join(file.relative_to(here).parts)}:{attribute}"
    return f"run it in '{file.parent}' and write {file.name}:{attribute}"


def _import(module_name: str, source: str) -> object:
    with foreign(f"importing '{module_name}' raised", hint="fix the module, or run from its folder"):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that the user's module lacks is another error than a mistyped MODEL.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise InputError(
                f"no module '{error.name}' for '{source}'", hint=_importable(module_name, error.name)
            ) from error


def _importable(module_name: str, missing: str) -> str:
    parent = missing.rpartition(".")[0]
    if parent:
        paths: Iterable[str] = getattr(sys.modules.get(parent), "__path__", [])
        known = [f"{parent}.{module.name}" for module in pkgutil.iter_modules(paths)]
        return nearest(missing, known) if known else f"'{parent}' is a module without submodules"
    here = sorted(module.name for module in pkgutil.iter_modules([str(Path.cwd())]))
    where = f"modules in {Path.cwd()}"
    if not here:
        return f"there are no {where}; run from the folder that holds '{module_name}'"
    close = nearest(missing, here)
    return close if close.startswith("did you mean") else f"{where}: {', '.join(here)}"
