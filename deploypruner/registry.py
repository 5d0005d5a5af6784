"""Named implementations, discovered by importing every file of a package: adding one is one file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from deploypruner.errors import RecipeError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one kind by name.

    Args:
        kind: What a user calls them, in the singular: "criterion", "runtime".
        package: Dotted name of the package whose modules register themselves. An import error in
            one of them propagates: a broken file is never an unknown name.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._found: dict[str, type[T]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator; a name that is taken is a programming error."""

        def add(cls: type[T]) -> type[T]:
            assert name not in self._found, f"{self.kind} '{name}' is registered twice"
            self._found[name] = cls
            return cls

        return add

    def get(self, name: str) -> type[T]:
        """Return the class called `name`.

        Raises:
            RecipeError: No such name; the hint offers the nearest.
        """
        self._discover()
        if name not in self._found:
            raise RecipeError(f"no {self.kind} called '{name}'", hint=nearest(name, self._found))
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._found))

    def describe(self) -> dict[str, str]:
        """Name -> first line of the class docstring, sorted by name."""
        return {name: (self._found[name].__doc__ or "").strip().split("\n")[0] for name in self}

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._discovered = True
