"""Names a recipe chooses by, checked before any work is done and before an earlier build is replaced."""

from __future__ import annotations

from deploypruner.build.criterion import criterion_name, make_criterion, normalizer_name
from deploypruner.build.learning import check_learning
from deploypruner.build.sparsity import check_sparse
from deploypruner.build.state import Given
from deploypruner.channels.allocate import check_recipe_scope
from deploypruner.channels.statistics import require_data
from deploypruner.errors import RecipeError
from deploypruner.latency.clock import current_clock
from deploypruner.recipe import PruneRecipe, Recipe
from deploypruner.recipe.sections import MeasureRecipe
from deploypruner.registries import normalizers, runtimes, scopes
from deploypruner.runtime import check_machine
from deploypruner.sources.foreign import foreign
from deploypruner.sparsity.patterns import CHANNEL
from deploypruner.train.hook import SIGNATURE, hook_name, load_hook


def check_choices(recipe: Recipe, given: Given) -> None:
    """Check everything chosen by name, and that what needs data has it.

    Args:
        recipe: Resolved recipe.
        given: What the Python API passes beside it.

    Raises:
        RecipeError: An unknown name, a choice that needs data without data.
        InputError: The training function cannot be imported, or a runtime cannot run on this machine.
    """
    if given.model is None:
        recipe.model.require_source()
    if not current_clock().machine.elsewhere:  # of another one that was said where it was reached
        for name in recipe.measure.runtimes:
            check_machine(runtimes.get(name))
    _check_bf16(recipe.measure)
    has_data = given.data is not None or recipe.data.source is not None
    name = criterion_name(recipe.prune, has_data=has_data)
    criterion = make_criterion(name, recipe.prune.parameters)
    check_learning(recipe.learn, criterion, has_data=has_data)
    require_data(criterion, name, has_data=has_data)
    _check_fastest(recipe, has_data=has_data)
    _check_axes(recipe.prune, name)
    hooked = bool(recipe.recover.train) or given.train is not None
    check_sparse(recipe, trains=has_data and not hooked and recipe.recover.trains)
    if given.train is not None and not callable(given.train):
        raise RecipeError(f"train is a {type(given.train).__name__}, not a function", hint=f"expected {SIGNATURE}")
    if hooked and not has_data:
        named = recipe.recover.train if given.train is None else hook_name(given.train)
        raise RecipeError(f"training function '{named}' has nothing to train on", hint="pass --data DIR")
    if recipe.quantize.qat and not has_data:
        raise RecipeError("quantization-aware training has nothing to train on", hint="pass --data DIR")
    if recipe.recover.train:
        with foreign(f"importing '{recipe.recover.train}' raised", hint="fix the module, or run from its folder"):
            load_hook(recipe.recover.train)


def _check_bf16(measure: MeasureRecipe) -> None:
    """A permission that no runtime can use is a mistake.

    Raises:
        RecipeError: None of those named computes in bf16.
    """
    named = measure.runtimes
    able = [name for name in named if runtimes.get(name).in_bf16 or runtimes.get(name).in_float32]
    if measure.allow_bf16 and named and not able:
        raise RecipeError(
            f"--allow-bf16 allows nothing in {', '.join(named)}: on the CPU only OpenVINO has kernels for bf16",
            hint="add --runtime openvino, or leave out --allow-bf16",
        )


def _check_fastest(recipe: Recipe, *, has_data: bool) -> None:
    """The fastest within a budget of accuracy is found by judging plans.

    Raises:
        RecipeError: None can be judged, or none is made.
    """
    if not recipe.prune.budget.fastest:
        return
    budget = recipe.prune.budget
    if not has_data:
        raise RecipeError(f"{budget} is found by judging plans, and there is no data", hint="pass --data DIR")
    if CHANNEL not in recipe.prune.patterns:
        raise RecipeError(f"{budget} is found by removing channels", hint="add channel to --pattern, or give a time")
    if recipe.search.plans == 1:
        raise RecipeError(f"{budget} is found by judging plans, and search.plans is 1", hint="raise search.plans")


def _check_axes(recipe: PruneRecipe, criterion: str) -> None:
    """Scope, normalizer and budget, each by itself and together.

    Raises:
        RecipeError: An unknown name, or a combination that makes no sense.
    """
    scopes.check(recipe.scope)
    normalizer = normalizer_name(recipe, criterion)
    adds_up = normalizers.get(normalizer).adds_up
    if recipe.scope == "recipe":
        check_recipe_scope(recipe.constraints, recipe.budget)
    if recipe.budget.kind == "macs":
        return
    budget = f"--{recipe.budget.kind}"
    if recipe.scope != "global":
        raise RecipeError(
            f"scope '{recipe.scope}' orders cuts for a budget of multiply-adds; {budget} chooses every width by the "
            f"time it saves",
            hint="leave out --scope, or give --macs",
        )
    if not adds_up:
        raise RecipeError(
            f"normalizer '{normalizer}' gives scores below zero, and {budget} looks for the largest sum of scores",
            hint="choose another --normalizer, such as mean, or give --macs",
        )
    if any(table.cut is not None for table in recipe.layers):
        raise RecipeError(
            f"the cut of a [[prune.layers]] table fixes a width, and {budget} has to choose all of them",
            hint="use exclude, min_width or max_cut in that table, or give --macs",
        )
