"""The README and the pages of docs/ say only what exists."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import deploypruner as dp
from deploypruner.cli.main import cli

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
    assert len(PAGES[Path("README.md")].splitlines()) <= 130
