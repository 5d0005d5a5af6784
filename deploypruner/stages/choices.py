"""Names a recipe chooses by, checked before any work is done and before an earlier build is replaced."""

from __future__ import annotations

from deploypruner.criteria import Needs
from deploypruner.errors import RecipeError, nearest
from deploypruner.prune.allocate import SCOPES
from deploypruner.recipe import Recipe
from deploypruner.recover.hook import SIGNATURE, hook_name, load_hook
from deploypruner.runtime import runtimes
from deploypruner.sources.foreign import foreign
from deploypruner.stages import Given
from deploypruner.stages.score import criterion_name, make_criterion
from deploypruner.target import detect


def check_choices(recipe: Recipe, given: Given) -> None:
    """Check everything chosen by name, and that what needs data has it.

    Args:
        recipe: Resolved recipe.
        given: What the Python API passes beside it.

    Raises:
        RecipeError: An unknown name, a choice that needs data without data.
        InputError: The training function cannot be imported.
    """
    if given.model is None and not recipe.model.source:
        raise RecipeError("no MODEL given", hint="name it first, or as source under [model] of the recipe")
    detect(recipe.target)
    for name in recipe.measure.runtimes:
        runtimes.get(name)
    if recipe.prune.scope not in SCOPES:
        raise RecipeError(f"no scope called '{recipe.prune.scope}'", hint=nearest(recipe.prune.scope, SCOPES))
    has_data = given.data is not None or recipe.data.source is not None
    name = criterion_name(recipe.prune, has_data=has_data)
    if make_criterion(name, recipe.prune.parameters).needs != Needs.WEIGHTS and not has_data:
        raise RecipeError(
            f"criterion '{name}' looks at gradients and needs data",
            hint="pass --data DIR (labels are not required), or use --criterion magnitude",
        )
    if given.train is not None and not callable(given.train):
        raise RecipeError(f"train is a {type(given.train).__name__}, not a function", hint=f"expected {SIGNATURE}")
    if (recipe.recover.train or given.train is not None) and not has_data:
        named = recipe.recover.train if given.train is None else hook_name(given.train)
        raise RecipeError(f"training function '{named}' has nothing to train on", hint="pass --data DIR")
    if recipe.recover.train:
        with foreign(f"importing '{recipe.recover.train}' raised", hint="fix the module, or run from its folder"):
            load_hook(recipe.recover.train)
