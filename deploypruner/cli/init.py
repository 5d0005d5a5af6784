"""The command `init`: a commented recipe to start from."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from deploypruner.atomic import replacing
from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.recipe_options import command_option
from deploypruner.errors import InputError
from deploypruner.recipe.sections import ModelRecipe
from deploypruner.terminal import write_line


@click.command("init", cls=GroupedCommand, examples={"deploypruner init model.pt2 --out recipe.toml": ""})
@click.argument("model")
@command_option("--out", default="recipe.toml", show_default=True, type=click.Path(path_type=Path), help="File.")
def init_command(model: str, out: Path) -> None:
    """Write a recipe for MODEL in which every key stands with what it is, as a comment.

    MODEL is not looked at. Take away a # to set a key, then: deploypruner compile --recipe recipe.toml
    """
    ModelRecipe(model).require_source()
    if out.exists() or out.is_symlink():
        raise InputError(f"'{out}' is there already, and is not replaced", hint="name another file with --out")
    from deploypruner.recipe.commented import commented_recipe

    with replacing(out, instead="name another file with --out") as temporary:
        temporary.write_text(commented_recipe(model), encoding="utf-8")
    write_line(sys.stderr, f"{out} has every key, none of them set: deploypruner compile --recipe {out}")
