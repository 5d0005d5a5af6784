"""Fields of the recipe that carry their help, and the flag and group they have on the command line.

The command line, `dp.compile` and the documentation of the dataclasses are made from these; there is no second list.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field
from functools import cache
from typing import Any, TypeVar, get_type_hints

from deploypruner.errors import RecipeError
from deploypruner.registry import Registry

T = TypeVar("T", bound=Callable[..., Any])
C = TypeVar("C")

# Groups of the help, in the order in which they are shown.
BUDGET = "Budget"
MODEL = "Model and data"
CHANNELS = "How channels are chosen"
RECOVERY = "Recovery"
SPARSE = "Sparse"
MEASURING = "Measuring"
OUTPUT = "Output"
GROUPS = (BUDGET, MODEL, CHANNELS, RECOVERY, SPARSE, MEASURING, OUTPUT)

_KEY = "deploypruner.option"
# Of a docstring: what comes after the arguments.
_SECTIONS = re.compile(r"^ *(Raises|Returns|Source|Attributes|Yields):$", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """What a field of the recipe says of itself.

    Args:
        help: What it is, unit and range included; begins with a noun.
        flag: On the command line, "" for a field that only recipe files set: "--step".
        group: Of the help, one of `GROUPS`.
        metavar: Stands for the value in the help.
        shown: The default as the help shows it, where the field's own does not say it.
        commas: Can one value hold several, with commas between?
        names: Registry of the names that may be chosen.
        to: See `Registry.check`.
        also: Names that may be chosen beside them.
        basic: Does the short help of the command line show it?
    """

    help: str
    flag: str = ""
    group: str = ""
    metavar: str = ""
    shown: str = ""
    commas: bool = False
    names: Registry[Any] | None = None
    to: str = ""
    also: tuple[str, ...] = ()
    basic: bool = False

    def check(self, value: Any) -> None:
        """Check a value, or several, where it is chosen by name.

        Raises:
            RecipeError: An unknown name; the nearest is offered.
        """
        if self.names is None:
            return
        called = f"sparse {self.names.kind}" if self.to == "weights" else ""
        for chosen in (value,) if isinstance(value, str) else value or ():
            self.names.check(chosen, to=self.to, also=self.also, called=called)


@dataclass(frozen=True)
class Flag:
    """A field of the recipe that has a flag.

    Args:
        path: Of the field: ("prune", "step").
        type: Of the field.
        default: Of the field, None where it is made anew each time.
        option: What the field says of itself.
    """

    path: tuple[str, ...]
    type: Any
    default: Any
    option: Option

    @property
    def name(self) -> str:
        """As a Python argument: "accuracy_drop"."""
        return self.option.flag.split("/")[0].removeprefix("--").replace("-", "_")

    @property
    def shown(self) -> str:
        """The default as the help shows it, "" where there is none to show."""
        if self.option.shown or isinstance(self.default, bool) or self.default in (None, "", ()):
            return self.option.shown
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return f"{self.default:g}" if isinstance(self.default, float) else f"{self.default}"


def option(
    default: Any,
    help: str,
    *,
    factory: Any = MISSING,
    flag: str = "",
    group: str = "",
    metavar: str = "",
    shown: str = "",
    commas: bool = False,
    names: Registry[Any] | None = None,
    to: str = "",
    also: tuple[str, ...] = (),
    basic: bool = False,
) -> Any:
    """A field with its help.

    Args:
        default: Its default.
        help: What it is; this and the rest as in `Option`.
        factory: Function that makes the default anew each time, in place of `default`.
        flag: See `Option`.
        group: See `Option`.
        metavar: See `Option`.
        shown: See `Option`.
        commas: See `Option`.
        names: See `Option`.
        to: See `Option`.
        also: See `Option`.
        basic: See `Option`.
    """
    metadata = {_KEY: Option(help, flag, group, metavar, shown, commas, names, to, also, basic)}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type, help: str = "", *, flags: bool = True) -> Any:
    """A field that holds a section of its own.

    Args:
        cls: Its dataclass.
        help: What it is; by default what the dataclass says of itself.
        flags: Do the flags of its fields set these? False for a second section of the same kind.
    """
    return field(default_factory=cls, metadata={_KEY: Option(help or _first_line(cls)), "flags": flags})


def same(cls: type, name: str) -> Any:
    """The field `name` of the dataclass `cls` once more: its default and everything it says of itself."""
    (found,) = (f for f in dataclasses.fields(cls) if f.name == name)
    if found.default_factory is not MISSING:
        return field(default_factory=found.default_factory, metadata=found.metadata)
    return field(default=found.default, metadata=found.metadata)


@contextmanager
def keyed(*names: str) -> Iterator[None]:
    """Errors of what is checked inside are about these fields of a record.

    Raises:
        RecipeError: The same, with the names of the fields.
    """
    try:
        yield
    except RecipeError as error:
        error.keys = names
        raise


def check_names(record: Any) -> None:
    """Check every field of a dataclass that is chosen by name.

    Raises:
        RecipeError: An unknown name; the nearest is offered.
    """
    for name, about in options_of(type(record)).items():
        with keyed(name):
            about.check(getattr(record, name))


@cache
def flags(cls: type) -> dict[str, Flag]:
    """Name of the Python argument -> the field it sets, for every field of `cls` and its sections with a flag."""
    return {flag.name: flag for flag in _flags(cls, ())}


def _flags(cls: type, path: tuple[str, ...]) -> Iterator[Flag]:
    hints = get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            if f.metadata.get("flags", True):
                yield from _flags(hints[f.name], (*path, f.name))
        elif _KEY in f.metadata and f.metadata[_KEY].flag:
            default = None if f.default is MISSING else f.default
            yield Flag((*path, f.name), hints[f.name], default, f.metadata[_KEY])


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").split("\n")[0]


def described(cls: type) -> dict[str, str]:
    """Name of a field, or of a section -> what it is."""
    return {name: about.help for name, about in options_of(cls).items()}


def options_of(cls: type) -> dict[str, Option]:
    """Name of a field, or of a section -> all that it says of itself."""
    return {f.name: f.metadata[_KEY] for f in dataclasses.fields(cls) if _KEY in f.metadata}


def documented(cls: type[C]) -> type[C]:
    """Class decorator: adds what the fields say of themselves to the docstring, as its `Args`."""
    lines = [f"    {name}: {about.help}" for name, about in options_of(cls).items()]
    text = inspect.cleandoc(cls.__doc__ or "")
    found = _SECTIONS.search(text)
    at = found.start() if found else len(text)
    arguments = "Args:\n" + "\n".join(lines) + "\n"
    cls.__doc__ = f"{text[:at].rstrip()}\n\n{arguments}\n{text[at:]}".rstrip() + "\n"
    return cls


def with_help_of(cls: type) -> Callable[[T], T]:
    """Function decorator: a line "step: --step" of the docstring becomes the help of the field with that flag.

    Args:
        cls: The dataclass whose fields, or those of its sections, have the flags.
    """

    def described(match: re.Match[str]) -> str:
        flag = flags(cls)[match["flag"].replace("-", "_")]
        return f"{match['name']}: {flag.option.help}" + (f" [default: {flag.shown}]" if flag.shown else "")

    def decorate(function: T) -> T:
        pattern = re.compile(r"(?P<name>\b\w+): --(?P<flag>[\w-]+)$", re.MULTILINE)
        function.__doc__ = pattern.sub(described, function.__doc__ or "")
        return function

    return decorate
