"""The README and the pages of docs/ say only what exists."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import shlex
from pathlib import Path

import click
import pytest

import deploypruner as dp
from deploypruner.cli.main import cli
from deploypruner.recipe.overrides import overrides
from deploypruner.recipe.reading import read_recipe

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT): path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
TEXT = "\n".join(PAGES.values())
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = sorted(set(re.findall(r"^ {4}(deploypruner .*)$", TEXT, flags=re.MULTILINE)))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_options_exist(line):
    name = line.split()[1]
    assert name in cli.commands, line
    known = {option for parameter in cli.commands[name].params for option in parameter.opts}
    for option in re.findall(r"--[a-z-]+", line):
        assert option in known, f"{option} in: {line}"


# Options in the text, and what their placeholders stand for.
INLINE = sorted(set(re.findall(r"`(--[a-z][^`]*)`", TEXT.replace("\n", " "))))
PLACEHOLDERS = {"FILE": "names.txt", "N": "3", "S": "0.8", "PATTERN": "fc"}


def alternatives(printed: str) -> list[list[str]]:
    """The words of one option or several, once for each value that it offers."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(printed)]
    offered = [word.split("|") for word in words]
    return [list(chosen) for chosen in itertools.product(*offered)]


@pytest.mark.parametrize("printed", INLINE)
def test_options_in_the_text_are_taken_with_these_values(printed):
    for words in alternatives(printed):
        taking = [command for command in every(cli) if words[0] in options_of(command)]
        assert taking, f"no command has {words[0]}"
        if words == [words[0]]:
            continue  # the name of an option
        for command in taking:
            needed = ["m.onnx"] if any(isinstance(p, click.Argument) for p in command.params) else []
            needed += ["--data", "d"] if "--data" in options_of(command) else []
            with command.make_context(command.name, [*needed, *words]) as context:
                overrides(context.params)  # names are checked here
                if command.name == "compile":
                    read_recipe(None, overrides(context.params))


def every(group: click.Group) -> list[click.Command]:
    """Its commands, and those of groups in it."""
    found = list(group.commands.values())
    return [*found, *(inner for command in found if isinstance(command, click.Group) for inner in every(command))]


def options_of(command: click.Command) -> set[str]:
    found = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return {*found, "--help"}


def calls() -> list[ast.Call]:
    found = [node for block in PYTHON for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    return [c for c in found if isinstance(c.func, ast.Attribute) and ast.unparse(c.func).startswith("dp.")]


@pytest.mark.parametrize("call", calls(), ids=ast.unparse)
def test_python_calls_have_these_names_and_arguments(call):
    signature = inspect.signature(getattr(dp, call.func.attr))
    bound = signature.bind(*call.args, **{keyword.arg: keyword.value for keyword in call.keywords})
    assert len(bound.arguments) == len(call.args) + len(call.keywords)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^ {4}make (\w+)", TEXT, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"@[A-Z0-9]+@", TEXT) == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        file, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / file if file else ROOT / page
        assert linked.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads], target


def test_the_readme_fits_on_a_screen_or_three():
    lines = PAGES[Path("README.md")].splitlines()
    assert len(lines) <= 130
    printed = re.findall(r"```\n(.*?)```", PAGES[Path("README.md")], flags=re.DOTALL)[0].splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|") and line not in printed] == []
