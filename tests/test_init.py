"""`init`: a recipe in which every key stands, that changes nothing as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from deploypruner.recipe import Recipe
from deploypruner.recipe.commented import commented_recipe
from deploypruner.recipe.reading import read_recipe
from deploypruner.recipe.sections import ModelRecipe
from tests.builds import run_cli

# `key = value` behind a `#`: what a user sets by taking that away.
KEY = re.compile(r"^# ([a-z_0-9]*[a-z_]+[a-z_0-9]* = (?!\.\.\.$).*)$", re.MULTILINE)


def test_the_recipe_as_it_is_written_gives_the_defaults(tmp_path):
    (tmp_path / "r.toml").write_text(commented_recipe("net.pt2"))
    assert read_recipe(tmp_path / "r.toml", {}) == Recipe(model=ModelRecipe("net.pt2"))


def test_with_every_key_set_it_gives_the_defaults_too(tmp_path):
    text = commented_recipe("net.pt2")
    assert len(KEY.findall(text)) > 60
    (tmp_path / "r.toml").write_text(KEY.sub(r"\1", text))
    assert read_recipe(tmp_path / "r.toml", {}) == Recipe(model=ModelRecipe("net.pt2"))


def test_every_key_has_its_help_above_it():
    lines = commented_recipe("net.pt2").splitlines()
    for above, line in pairwise(lines):
        if re.match(r"# [a-z_]+\w* = ", line):
            assert above.startswith("# "), line
    text = "\n".join(lines)
    assert "# Bits of int8 weights; auto: 8" in text
    assert '# weight_bits = "auto"' in text
    assert "[recover.settings]" in text
    assert "# latency = ..." in text  # nothing stands for it
    assert not re.search(r"^# epochs = .*\n(?:.*\n)*?\[recover\.settings\.", text, re.MULTILINE)


def completed(line: str) -> list[str]:
    """What a shell is offered for the last word of a line."""
    asked = {"_DEPLOYPRUNER_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **asked}
    command = [sys.executable, "-m", "deploypruner"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_shell_is_told_what_a_line_can_go_on_with():
    assert completed("deploypruner do") == ["plain,doctor"]
    assert completed("deploypruner compile --weight-b") == ["plain,--weight-bits"]
    assert completed("deploypruner cache cl") == ["plain,clear"]
    assert "plain,doctor" not in completed("deploypruner quantiz --da")  # a typing error is no traceback


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    done = run_cli("init", "net.pt2", folder=tmp_path)
    assert done.code == 0
    assert "compile --recipe recipe.toml" in done.err
    before = (tmp_path / "recipe.toml").read_text()
    assert 'source = "net.pt2"' in before
    run_cli("init", "other.pt2", folder=tmp_path).assert_error(2, "'recipe.toml' is there already", "--out")
    assert (tmp_path / "recipe.toml").read_text() == before
    assert run_cli("init", "other.pt2", "--out", "b.toml", folder=tmp_path).code == 0
