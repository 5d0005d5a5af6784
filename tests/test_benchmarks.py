"""The scripts of benchmarks/ still fit the package: they import, their commands parse, old results make tables."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import shlex
from pathlib import Path
from types import ModuleType
from unittest import mock

import click
import pytest
import torch
from click.testing import CliRunner

import benchmarks
from deploypruner.runtime import runtimes

HOME = Path(benchmarks.__file__).parent
MODULES = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
TEXT = "\n".join(path.read_text() for path in [HOME / "README.md", *sorted(HOME.glob("*.py"))])
CONTINUED = re.compile(r"\\\n *")
# What prints and runs nothing.
TABLES = ("--markdown", "table")


@pytest.fixture(scope="module", autouse=True)
def runtimes_stay_the_packages_own():
    """Benchmarks register rival engines, which the laws over every runtime are not to see afterwards."""
    for name in runtimes:
        runtimes.get(name)
    with mock.patch.multiple(runtimes, _added=runtimes._added.copy(), _found=runtimes._found.copy()):
        yield


def imported(name: str) -> ModuleType:
    """A script, unless it needs at its top what is not installed here."""
    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if importlib.util.find_spec(package) is not None:
            raise
        pytest.skip(f"benchmarks.{name} needs {package}, which is not installed")


def said(command: click.Command, words: list[str]) -> str:
    """What it prints, and what stopped it, if something did."""
    done = CliRunner().invoke(command, words)
    return done.output if done.exit_code == 0 else f"{done.output}stopped by {done.exception!r}"


@pytest.mark.parametrize("name", MODULES)
def test_every_script_imports_and_explains_itself(name):
    commands = [found for found in vars(imported(name)).values() if isinstance(found, click.Command)]
    for command in commands:
        text = said(command, ["--help"])
        assert "Usage:" in text, text
        assert "stopped by" not in text, text


def printed(text: str = TEXT) -> list[tuple[str, str]]:
    """Module and arguments of the command lines in the texts; a line that ends in a backslash goes on in the next."""
    whole = CONTINUED.sub("", text)
    lines = re.findall(r"^ {4}(?:\S+ )?(python -m benchmarks\.\w.*)$", whole, flags=re.MULTILINE)
    found = re.findall(r"python -m benchmarks\.(\w+)([^;\n]*)", "\n".join(lines))
    return sorted({(name, shlex.join(shlex.split(words, comments=True))) for name, words in found})


def test_a_command_line_goes_on_behind_a_backslash():
    text = "    nice python -m benchmarks.a run --net b \\\n        --form c  # why\n    python -m benchmarks.d\n"
    assert printed(text) == [("a", "run --net b --form c"), ("d", "")]


@pytest.mark.parametrize(("name", "words"), printed())
def test_command_lines_are_taken_as_they_are_printed(name, words, monkeypatch):
    main = imported(name).main
    monkeypatch.setattr(click.Path, "convert", lambda self, value, *_: value)  # no file needs to be there
    for command in [main, *(main.commands.values() if isinstance(main, click.Group) else ())]:
        monkeypatch.setattr(command, "callback", None)  # it parses, and runs nothing
    text = said(main, shlex.split(words))
    assert "stopped by" not in text, text


def with_tables() -> list[tuple[str, str]]:
    return [(name, words) for name, words in printed() if set(TABLES) & set(words.split())]


@pytest.mark.parametrize(("name", "words"), with_tables())
def test_the_kept_results_make_a_table(name, words, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    text = said(imported(name).main, words.split())
    assert "stopped by" not in text, text
    assert re.search(r"^\|( *:?-+:? *\|)+$", text, flags=re.MULTILINE), text


def test_the_best_of_some_taken_at_random_is_the_mean_over_all_choices() -> None:
    from benchmarks.pruning_spaces import best_expected

    assert best_expected([1.0, 2.0, 4.0], 1) == pytest.approx(7 / 3)
    assert best_expected([1.0, 2.0, 4.0], 2) == pytest.approx((1 + 1 + 2) / 3)
    assert best_expected([1.0, 2.0, 4.0], 3) == 1.0
