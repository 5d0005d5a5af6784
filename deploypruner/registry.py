"""What is chosen by name: names are read from the source, an implementation is imported when it is asked for."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Generic, TypeVar

from deploypruner.errors import RecipeError, nearest

T = TypeVar("T")
C = TypeVar("C")


@dataclass(frozen=True)
class Entry:
    """What is known of a name without importing what it stands for.

    Args:
        name: As the user writes it.
        about: One line for `deploypruner list`.
        module: Dotted name of the module that registers it.
        applies_to: What it can be chosen for, where not every entry can be for everything: "channels", "weights".
    """

    name: str
    about: str
    module: str
    applies_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """An entry that stands for many names.

    Args:
        entry: The name it is registered under.
        form: Regular expression of the names that it answers to.
        example: One of them.
    """

    entry: str
    form: str
    example: str


class Registry(Generic[T]):
    """Implementations of one kind by name.

    Names and descriptions come from reading the files, so that they can be listed and checked in milliseconds;
    a file is imported when its implementation is asked for. An error in a file propagates then: a broken file is
    never an unknown name.

    Args:
        kind: What a user calls one of them: "criterion", "runtime".
        plural: What a user calls them all, which is also the name of the variable that holds the registry.
        home: Dotted name of the package whose files register themselves, or of the one module that does.
        special: Names that are chosen like the others and stand for no implementation, with their descriptions.
        family: The entry that stands for many names, if one does.
    """

    def __init__(
        self,
        kind: str,
        plural: str,
        home: str,
        *,
        special: Mapping[str, str] | None = None,
        family: Family | None = None,
    ) -> None:
        self.kind = kind
        self.plural = plural
        self.home = home
        self.special = dict(special or {})
        self._family = family
        self._read: dict[str, Entry] | None = None
        self._added: dict[str, Entry] = {}
        self._found: dict[str, T] = {}

    def register(self, name: str, *, about: str = "", applies_to: tuple[str, ...] = ()) -> Callable[[C], C]:
        """Decorator for a class or function; a name that is taken is a programming error.

        Args:
            name: A literal: it is read, too, where the file is not imported.
            about: One line; the first of the docstring by default. A literal.
            applies_to: See `Entry`. Literals.
        """

        def add(implementation: C) -> C:
            assert name not in self._found, f"{self.kind} '{name}' is registered twice"
            said = about or (implementation.__doc__ or "").strip().split("\n")[0]
            self._added[name] = Entry(name, said, getattr(implementation, "__module__", ""), applies_to)
            self._found[name] = implementation  # type: ignore[assignment]
            return implementation

        return add

    def get(self, name: str) -> T:
        """Return what is called `name`, importing its file if need be.

        Raises:
            RecipeError: No such name; the hint offers the nearest.
        """
        if name not in self._found and name in self._entries():
            importlib.import_module(self._entries()[name].module)
        if name not in self._found:
            raise self._unknown(name)
        return self._found[name]

    def check(self, name: str, *, to: str = "", also: tuple[str, ...] = (), called: str = "") -> None:
        """Make sure that `name` can be chosen, without importing anything.

        Args:
            name: As the user wrote it.
            to: Only entries that apply to this.
            also: Names that may be chosen here beside the entries: "auto".
            called: What the user calls one of them here, `kind` by default.

        Raises:
            RecipeError: It cannot; the hint offers the nearest that can.
        """
        of_family = self._family is not None and re.fullmatch(self._family.form, name)
        if not of_family and name not in also and name not in self.choices(to=to):
            offered = {*self.choices(to=to), *also}
            raise RecipeError(f"no {called or self.kind} called '{name}'", hint=nearest(name, offered))

    def choices(self, *, to: str = "") -> list[str]:
        """Every name that can be chosen, the special ones first; an example stands for a family."""
        family = self._family
        names = [family.example if family and name == family.entry else name for name in self._applying(to)]
        return [*self.special, *names]

    def describe(self, *, to: str = "") -> dict[str, str]:
        """Name -> one line, the special ones first, then sorted by name."""
        return self.special | {name: entry.about for name, entry in self._applying(to).items()}

    def entry(self, name: str) -> Entry:
        """What is known of a registered name.

        Raises:
            RecipeError: No such name; the hint offers the nearest.
        """
        if name not in self._entries():
            raise self._unknown(name)
        return self._entries()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries()))

    def __len__(self) -> int:
        return len(self._entries())

    def __contains__(self, name: object) -> bool:
        return name in self._entries()

    def _applying(self, to: str) -> dict[str, Entry]:
        entries = self._entries()
        return {name: entries[name] for name in self if not to or to in entries[name].applies_to}

    def _unknown(self, name: str) -> RecipeError:
        return RecipeError(f"no {self.kind} called '{name}'", hint=nearest(name, self.choices()))

    def _entries(self) -> dict[str, Entry]:
        if self._read is None:
            self._read = {}
            for spec in _modules(self.home):
                for entry in _read_entries(spec, self.plural):
                    assert entry.name not in self._read, f"{self.kind} '{entry.name}' is registered twice"
                    self._read[entry.name] = entry
        return self._read | self._added


def _modules(home: str) -> Iterator[ModuleSpec]:
    """The module called `home`, or the modules of that package; none of them is imported."""
    found = importlib.util.find_spec(home)
    assert found is not None, f"there is no module {home}"
    if found.submodule_search_locations is None:
        yield found
        return
    for module in pkgutil.iter_modules(found.submodule_search_locations):
        spec = PathFinder.find_spec(f"{home}.{module.name}", found.submodule_search_locations)
        assert spec is not None, f"{home}.{module.name} is listed and cannot be found"
        yield spec


def _source(spec: ModuleSpec) -> str:
    """Text of a module; loaders of packages that are installed to be edited do not all hand it out."""
    get_source = getattr(spec.loader, "get_source", None)
    found: str | None = get_source(spec.name) if get_source is not None else None
    if found is None:
        assert spec.origin is not None, f"{spec.name} has no source"
        found = Path(spec.origin).read_text(encoding="utf-8")
    return found


def _read_entries(spec: ModuleSpec, registry: str) -> Iterator[Entry]:
    """What a file registers in the variable `registry`: `@registry.register("name")` over a class or function."""
    source = _source(spec)
    if f"{registry}.register(" not in source:
        return
    tree = ast.parse(source)
    documented = {
        id(decorator): (ast.get_docstring(node) or "").split("\n")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        for decorator in node.decorator_list
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{registry}.register":
            name, *given = (ast.literal_eval(value) for value in (*node.args, *(k.value for k in node.keywords)))
            said = dict(zip((k.arg for k in node.keywords), given))
            about = said.get("about") or documented.get(id(node), "")
            yield Entry(name, about, spec.name, said.get("applies_to", ()))
