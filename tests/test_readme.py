"""The README says only what exists."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import deploypruner as dp
from deploypruner.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^ {4}(deploypruner .*)$", README, flags=re.MULTILINE)


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
    for target in re.findall(r"^ {4}make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_nothing_is_left_to_fill_in():
    assert re.findall(r"@[A-Z0-9]+@", README) == []
