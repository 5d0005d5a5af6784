"""Options that fill a recipe: made from its fields, which carry their flag, group and help."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click

from deploypruner.cli.help import Grouped
from deploypruner.cli.options import RANGES, shape_of
from deploypruner.recipe import Recipe
from deploypruner.recipe.option import MODEL, OUTPUT, Flag, flags
from deploypruner.recipe.origins import Origins
from deploypruner.recipe.overrides import overrides
from deploypruner.recipe.reading import origins_of, recipe_of
from deploypruner.sources.named import check_named

Command = Callable[..., None]

FLAGS = flags(Recipe)


def _shape(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """ "1,3,224,224" -> (1, 3, 224, 224)."""
    shapes = []
    for value in values:
        shape = shape_of(value)
        if not shape:
            raise click.BadParameter(f"'{value}' is not a shape such as 1,3,224,224")
        shapes.append(shape)
    return tuple(shapes)


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """ "0.485,0.456,0.406" -> a tuple of floats."""
    if value is None:
        return None
    try:
        found = tuple(float(number) for number in value.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise click.BadParameter(f"'{value}' is not a list of numbers such as 0.5,0.5,0.5")
    return found


def _int_or_auto(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """ "auto" or a number."""
    if value is None or value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"'{value}' is neither a number nor auto") from None


def recipe_option(name: str, *, required: bool = False) -> Callable[[Command], Command]:
    """The option of one field.

    Args:
        name: As a Python argument: "accuracy_drop".
        required: Must it be given?
    """
    flag = FLAGS[name]
    about = flag.option.help + (f"  [default: {flag.shown}]" if flag.shown else "")
    kind = {"type": RANGES[name]} if name in RANGES else _kind(flag)
    metavar = {"metavar": flag.option.metavar} if flag.option.metavar else {}
    return click.option(
        flag.option.flag,
        help=about,
        required=required,
        cls=Grouped,
        group=flag.option.group,
        basic=flag.option.basic,
        **kind,
        **metavar,
    )


def recipe_options(*groups: str, without: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """MODEL, --recipe, and the option of every field in one of the groups.

    Args:
        groups: Of `recipe.option.GROUPS`.
        without: Names of options that mean nothing to this command.
    """
    names = [name for name, flag in FLAGS.items() if flag.option.group in groups and name not in without]

    def decorate(command: Command) -> Command:
        file = click.Path(path_type=Path)
        command = click.option(
            "--recipe", type=file, help="TOML file with any of these and more.", cls=Grouped, group=MODEL
        )(command)
        for name in reversed(names):
            command = recipe_option(name)(command)
        return click.argument("model", required=False)(command)

    return decorate


def checked_recipe(options: Mapping[str, Any]) -> tuple[Recipe, Origins]:
    """The recipe that was asked for, and who set what; a mistake in it need not wait for torch.

    Args:
        options: Of a command with `recipe_options`.

    Raises:
        RecipeError: A wrong name or value, or no model.
        InputError: The model, its weights or the data are not there, or no kind that can be read.
    """
    origins = origins_of(options["recipe"], overrides(options))
    recipe = recipe_of(origins)
    recipe.model.require_source()
    check_named(recipe.model.source, recipe.model.weights, recipe.data.source)
    return recipe, origins


# An option of a command that is no field of the recipe: `click.option`, with a group of the help.
command_option = partial(click.option, cls=Grouped, group=OUTPUT)


def _kind(flag: Flag) -> dict[str, Any]:
    """How click reads a value of the field's type."""
    kinds = [kind for kind in (get_args(flag.type) or (flag.type,)) if kind is not NoneType]
    if get_origin(flag.type) is Literal:
        return {"type": click.Choice(get_args(flag.type))}
    if get_origin(flag.type) is tuple:
        shapes = get_origin(kinds[0]) is tuple
        return {"multiple": True, "callback": _shape} if shapes else {"multiple": True}
    if get_origin(kinds[0]) is tuple:
        return {"callback": _numbers}
    if bool in kinds:
        return {"is_flag": True, "default": None}
    if int in kinds and len(kinds) > 1:
        return {"callback": _int_or_auto}
    if Path in kinds:
        return {"type": click.Path(path_type=Path)}
    return {"type": kinds[-1]}
