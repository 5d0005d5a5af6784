"""What a sweep is asked to do, and the folder it may do it in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploypruner.build.common import CommonRequest
from deploypruner.build.state import Given
from deploypruner.errors import RecipeError
from deploypruner.recipe import Recipe
from deploypruner.recipe.reading import overlay
from deploypruner.registries import CHANNEL
from deploypruner.sweep.records import SweepSettings

_EPOCHS = 1


@dataclass(frozen=True, kw_only=True)
class SweepRequest(CommonRequest):
    """What to do.

    Args:
        settings: How large it is.
        beside: Folders of sweeps of the same model at other costs, for the conjectures about several.
    """

    settings: SweepSettings
    beside: tuple[Path, ...] = ()


def short_recovery(recipe: Recipe, given: Given) -> tuple[Recipe, list[str]]:
    """The recipe with the same short recovery for every trial, and what to say about it.

    Raises:
        RecipeError: There is no data, or something else than channels at a fixed cost is asked for.
    """
    if recipe.data.source is None and given.data is None:
        raise RecipeError("a sweep trains every recipe, and there is no data", hint="pass --data DIR")
    if recipe.prune.patterns != (CHANNEL,):
        raise RecipeError(
            f"a sweep samples widths, and the recipe's patterns are {', '.join(recipe.prune.patterns)}",
            hint='set patterns = ["channel"]; `compile --recipe winner.toml --pattern` adds zeros to the winner',
        )
    if recipe.prune.latency is not None:
        raise RecipeError("a sweep is at a share of the MACs or at a speed-up", hint="give --macs or --speedup")
    if recipe.prune.scope == "recipe" or any(table.cut is not None for table in recipe.prune.layers):
        raise RecipeError(
            "a sweep chooses the widths itself, and the recipe has cuts of layers",
            hint="take scope and cut out of the recipe; exclude, min_width and max_cut hold here, too",
        )
    if recipe.recover.epochs != "auto":
        return recipe, []
    remark = f"every recipe is trained for {_EPOCHS} epoch; --epochs says otherwise"
    return overlay(recipe, {"recover": {"epochs": _EPOCHS}}), [remark]
