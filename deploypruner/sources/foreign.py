"""Code that is not ours: the user's factories, model zoos, unpicklers. What they raise is input, not a bug."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from deploypruner.errors import DeployPrunerError, InputError


@contextmanager
def foreign(doing: str, *, hint: str = "") -> Iterator[None]:
    """Turn whatever the enclosed foreign call raises into an InputError that names it.

    Args:
        doing: What failed, as the start of a sentence: "factory 'net:make' raised".
        hint: Passed on to the error.

    Raises:
        InputError: The enclosed code raised any Exception that is not already ours, or asked for the program's end,
            whose exit code would be taken for ours.
    """
    try:
        yield
    except DeployPrunerError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{doing} {type(error).__name__}: {first_line(error)}", hint=hint) from error


def first_line(error: BaseException) -> str:
    """First non-empty line of an exception's message, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "(no message)"


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """Put the working folder first on sys.path, as `python script.py` would; undone afterwards."""
    folder = str(Path.cwd())
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def require(package: str) -> ModuleType:
    """Import an optional package.

    Raises:
        InputError: It is not installed, or importing it fails.
    """
    try:
        with foreign(f"importing {package} failed with"):
            return importlib.import_module(package)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name == package:
            raise InputError(f"{package} is not installed", hint=f"pip install {package}") from cause
        raise
