"""Names a recipe chooses by, checked before any work is done and before an earlier build is replaced."""

from __future__ import annotations

from deploypruner.criteria import Needs
from deploypruner.errors import RecipeError, nearest
from deploypruner.prune.allocate import SCOPES
from deploypruner.recipe import Recipe
from deploypruner.recover.hook import load_hook
from deploypruner.runtime import runtimes
from deploypruner.sources.foreign import foreign
from deploypruner.stages import Given
from deploypruner.stages.score import criterion_name, make_criterion
from deploypruner.stages.sparsity import check_sparse
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
    hooked = bool(recipe.recover.train or given.train)
    check_sparse(recipe, trains=has_data and not hooked and recipe.recover.epochs > 0)
    if hooked and not has_data:
        named = recipe.recover.train or getattr(given.train, "__name__", "train")
        raise RecipeError(f"training function '{named}' has nothing to train on", hint="pass --data DIR")
    if recipe.recover.train:
        with foreign(f"importing '{recipe.recover.train}' raised", hint="fix the module, or run from its folder"):
            load_hook(recipe.recover.train)
