"""The front: help in groups from the recipe's own fields, and quick answers without heavy libraries."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import deploypruner as dp
from deploypruner.cli.help import Grouped
from deploypruner.cli.main import _KINDS, cli
from deploypruner.recipe import Recipe
from deploypruner.recipe.option import GROUPS, flags
from deploypruner.recipe.overrides import overrides
from deploypruner.recipe.reading import read_recipe
from tests.builds import run_cli

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "scipy", "PIL", "numpy", "pydantic", "rich")
MISTAKES = (
    ("compile", "lib:net", "--target", "gpu"),
    ("compile", "lib:net", "--criterion", "tailor"),
    ("compile", "lib:net", "--normalizer", "men"),
    ("compile", "lib:net", "--scope", "globl"),
    ("compile", "lib:net", "--schedule", "graduall"),
    ("compile", "lib:net", "--sparse-schedule", "pdpp"),
    ("compile", "lib:net", "--pattern", "nm46"),
    ("compile", "lib:net", "--runtime", "openvin"),
    ("compile", "lib:net", "--task", "logits=classificaton"),
    ("compile", "lib:net", "--sparse-layers", "con"),
    ("compile", "lib:net", "--macs", "0"),
    ("compile", "lib:net", "--macs", "0.5", "--latency", "5ms"),
    ("compile", "lib:net", "--latency", "5 parsecs"),
    ("compile", "lib:net", "--lr", "-1"),
    ("compile", "lib:net", "--seed", "-1"),
    ("compile", "lib:net", "--max-cut", "2"),
    ("compile", "lib:net", "--sparsity", "2"),
    ("compile", "lib:net", "--threads", "0"),
    ("compile", "lib:net", "--step", "0"),
    ("compile", "lib:net", "--epochs", "many"),
    ("compile", "lib:net", "--recipe", "nothing.toml"),
    ("compile", "lib:net", "--bogus"),
    ("compile",),
    ("plan",),
    ("plan", "lib:net", "--max-cut", "2"),
    ("bench", "nothing.onnx"),
    ("bench", "nothing.onnx", "--runtime", "onnx"),
    ("criteria-check", "lib:net", "--data", "lib:data", "--criterion", "tailor"),
    ("quantize", "nothing.onnx", "--data", "lib:data"),
    ("quantize", "lib:net"),
    ("sparsify", "nothing.onnx"),
    ("sparsify", "nothing.onnx", "--threads", "0"),
    ("compile", "m.pt2"),
    ("compile", "m.pth"),
    ("compile", "m.onnx"),
    ("compile", "mobilenet"),
    ("compile", "lib:net", "--weights", "w.safetensors"),
    ("compile", "lib:net", "--data", "photos"),
    ("compile", "lib:net", "--data", "README.md"),
    ("compile", "--recipe", "pyproject.toml"),
    ("plan", "m.pt2"),
    ("frontier", "m.pt2", "--speedups", "2"),
    ("criteria-check", "m.pt2", "--data", "lib:data"),
    ("quantize", "m.pt2", "--data", "lib:data"),
    ("quantize", "lib:net", "--data", "photos"),
    ("export", "nothing"),
    ("measure", "nothing"),
    ("validate", "nothing", "--max-latency", "5ms"),
    ("compare", "nothing"),
    ("report", "nothing"),
    ("list", "criterias"),
    ("compil",),
)
# Every command line in one fresh process: what one of them loads stays loaded.
_RUN = """
import json, sys
from deploypruner.cli import main as cli
codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["deploypruner", *arguments]
    try:
        cli.main()
        codes.append(0)
    except SystemExit as done:
        codes.append(done.code)
    codes.append([name for name in json.loads(%r) if name in sys.modules])
print("\\n" + json.dumps(codes))
"""


def loaded_by(commands: list[tuple[str, ...]]) -> tuple[list[int], list[list[str]]]:
    """Exit code of each command line, and which heavy libraries are loaded after it."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN % json.dumps(HEAVY), json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found[::2], found[1::2]


def test_help_and_lists_load_no_heavy_library():
    helped = [(*path, option) for path, _ in commands() for option in ("--help", "--help-all")]
    lines = [(), *helped, *(("list", kind) for kind in _KINDS)]
    codes, loaded = loaded_by(lines)
    assert codes == [0] * len(lines)
    assert {name: found for name, found in zip(lines, loaded, strict=True) if found} == {}


def test_a_mistake_in_the_arguments_is_answered_without_a_heavy_library():
    codes, loaded = loaded_by(list(MISTAKES))
    assert codes == [2] * len(MISTAKES)
    assert {name: found for name, found in zip(MISTAKES, loaded, strict=True) if found} == {}


def test_importing_the_package_loads_no_heavy_library():
    code = f"import sys, deploypruner as dp; dp.Budget(macs=0.5); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its path: ("cache", "clear")."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def help_of(*path: str, columns: int = 80, option: str = "--help") -> str:
    done = CliRunner().invoke(cli, [*path, option], terminal_width=columns)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_the_help_of_compile_begins_with_examples_and_the_budget(option):
    text = help_of("compile", option=option)
    heads = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads == ["Examples", *GROUPS, "Help"]
    assert "\n  deploypruner compile model.pt2 --data photos/ --latency 5ms\n" in text


def test_every_example_is_a_command_line_that_is_understood():
    assert [line for line, _ in cli.examples.items() if not line.startswith("deploypruner ")] == []
    for path, command in commands():
        assert command.examples, path
        for line in command.examples:
            words = shlex.split(line)
            assert tuple(words[1 : 1 + len(path)]) == path
            command.make_context(path[-1], words[1 + len(path) :])


def test_the_short_help_leaves_out_what_few_need_and_says_how_many():
    short, full = help_of("compile"), help_of("compile", option="--help-all")
    shown = [set(re.findall(r"^  (?:-\w, )?(--[a-z0-9-]+)", text, re.MULTILINE)) for text in (short, full)]
    every = {
        o.opts[-1] for o in cli.commands["compile"].get_params(click.Context(cli)) if isinstance(o, click.Option)
    }
    assert shown[0] < shown[1] == every
    assert f"{len(shown[1] - shown[0])} more options" in short
    assert "more options" not in full
    assert {"--latency", "--data", "--input-shape", "--mean", "--std", "--recipe", "--out"} < shown[0]
    assert len(short.splitlines()) < 0.5 * len(full.splitlines())


def test_where_little_would_be_left_out_everything_is_shown_and_help_all_says_the_same():
    assert "more options" not in help_of("bench")
    assert "--seed" in help_of("bench")
    assert help_of("bench") == help_of("bench", option="--help-all")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_no_line_of_the_help_is_wider_than_the_terminal(columns, option):
    texts = {path: help_of(*path, columns=columns, option=option) for path, _ in commands()}
    texts[()] = help_of(columns=columns)
    for path, text in texts.items():
        assert max(map(len, text.splitlines())) <= columns, path
        assert "[default:\n" not in text
        assert text.isascii() or "±" in text, path


def test_every_command_is_in_a_panel_of_the_help():
    assert sorted(name for names in cli.panels.values() for name in names) == sorted(cli.commands)
    assert all(f"\n  {name} " in help_of() for name in cli.commands)


def test_an_option_that_does_not_exist_is_answered_with_the_help_that_has_all():
    said = run_cli("compile", "m.pt2", "--stepp", "8")
    said.assert_error(2, "no such option '--stepp'", "`deploypruner compile --help-all` lists what there is")


def test_every_flag_of_the_recipe_is_an_option_of_compile_with_the_help_of_its_field():
    options = {o.name: o for o in cli.commands["compile"].params if isinstance(o, click.Option)}
    for name, flag in flags(Recipe).items():
        assert flag.option.group in GROUPS
        assert flag.option.help.endswith("."), name
        assert isinstance(options[name], Grouped)
        assert options[name].help.startswith(flag.option.help)
    assert set(options) - set(flags(Recipe)) == {
        "recipe",
        "out",
        "resume",
        "overwrite",
        "verbose",
        "quiet",
        "log",
        "help_all",
    }


def test_options_of_a_command_line_and_arguments_of_compile_make_the_same_recipe():
    seen = {}

    @click.command()
    @click.pass_context
    def spy(context: click.Context, **options: object) -> None:
        seen.update(options)

    spy.params = [p for p in cli.commands["compile"].params if p.name not in ("out", "resume", "overwrite", "recipe")]
    line = "m.pt2 --macs 0.3 --pattern channel,2:4 --sparse-layers conv --mean 0.5,0.25,0.125 --no-reconstruct"
    line += " --input-shape 1x3x8x8 --learn-epochs 2 --ema 0.5 --runtime auto --task regression --seed 7"
    assert CliRunner().invoke(spy, line.split()).exit_code == 0
    recipe = read_recipe(None, overrides(seen))
    assert (recipe.model.source, recipe.model.input_shapes) == ("m.pt2", ((1, 3, 8, 8),))
    assert (recipe.prune.macs, recipe.prune.patterns, recipe.sparse.layers) == (0.3, ("channel", "2:4"), ("conv",))
    assert (recipe.data.settings.mean, recipe.recover.reconstruct) == ((0.5, 0.25, 0.125), False)
    assert (recipe.learn.epochs, recipe.recover.settings.ema, recipe.learn.settings.ema) == (2, 0.5, 0.0)
    assert (recipe.measure.runtimes, recipe.measure.tasks, recipe.seed) == ((), ("regression",), 7)


def test_compile_is_documented_by_the_fields_it_sets():
    text = inspect.getdoc(dp.compile)
    for name in inspect.signature(dp.compile).parameters:
        assert f"\n    {name}: " in text, name
        assert f"{name}: --" not in text
    assert f"sparsity: {flags(Recipe)['sparsity'].option.help} [default: 0.8]" in text


@pytest.mark.parametrize("cls", [dp.Budget, dp.Constraints, Recipe, type(Recipe().recover.settings)])
def test_a_record_of_the_recipe_is_documented_by_its_fields(cls):
    text = inspect.getdoc(cls)
    assert [name for name in (f.name for f in fields(cls)) if f"    {name}: " not in text] == []


def test_the_guide_names_every_kind_that_can_be_listed():
    assert f"deploypruner list [{'|'.join(_KINDS)}]" in (ROOT / "docs" / "guide.md").read_text()
