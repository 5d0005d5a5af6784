"""The schedule by which channels are chosen while training."""

from __future__ import annotations

from deploypruner.channels.criteria import Criterion
from deploypruner.channels.learned.schedules import (
    can_score_while_training,
)
from deploypruner.errors import RecipeError
from deploypruner.recipe import LearnRecipe
from deploypruner.registries import schedules


def schedule_name(recipe: LearnRecipe, criterion: Criterion) -> str:
    """Resolve "auto", and refuse what does not go together.

    Raises:
        RecipeError: No such schedule, or one that makes no sense with this criterion.
    """
    named, learned = type(criterion).__name__.lower(), criterion.learned
    if recipe.schedule == "auto":
        return "learned" if learned else "one-shot"
    schedules.check(recipe.schedule, to="channels")
    if learned and recipe.schedule != "learned":
        raise RecipeError(
            f"criterion '{named}' trains its masks and has a schedule of its own, not '{recipe.schedule}'",
            hint="leave out --schedule, or use --criterion magnitude or taylor",
        )
    if recipe.schedule == "learned" and not learned:
        raise RecipeError(
            f"criterion '{named}' has no masks that could be learned", hint="use --criterion pdp or dtp"
        )
    if recipe.schedule != "one-shot" and not can_score_while_training(criterion):
        raise RecipeError(
            f"criterion '{named}' needs more than the gradients of a training step, which is all that schedule "
            f"'{recipe.schedule}' has",
            hint="use --schedule one-shot, or a criterion such as taylor or magnitude",
        )
    return recipe.schedule


def check_learning(recipe: LearnRecipe, criterion: Criterion, *, has_data: bool) -> None:
    """Check before any work that a schedule which trains has something to train on.

    Raises:
        RecipeError: See `schedule_name`; or there is no data, or no epoch.
    """
    schedule, named = schedule_name(recipe, criterion), type(criterion).__name__.lower()
    if schedule == "one-shot":
        return
    what = f"criterion '{named}'" if schedule == "learned" else f"schedule '{schedule}'"
    if not has_data:
        raise RecipeError(
            f"{what} chooses channels while training and needs data",
            hint="pass --data DIR (labels are not required), or use --criterion magnitude with --schedule one-shot",
        )
    if not recipe.epochs:
        raise RecipeError(f"{what} chooses channels while training, and --learn-epochs is 0", hint="3 is a start")
